"""Wrong evidence: of another example, never true by accident, the same on every call."""

import json
import pickle

import pytest
from failures import raises
from PIL import Image

from workbench.data.contexts import build_prompt, missing_evidence, parse_context
from workbench.data.examples import load_examples
from workbench.data.images import open_image
from workbench.data.scenes import make_examples
from workbench.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def scenes() -> list:
    return make_examples("eval", count=64)


def write(folder, rows: list[dict]) -> list:
    for number in range(len(rows)):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    file = folder / "data.jsonl"
    defaults = [{"question": "What?", "images": [f"{number}.png"]} for number in range(len(rows))]
    file.write_text("".join(json.dumps({**base, **row}) + "\n" for base, row in zip(defaults, rows, strict=True)))
    return load_examples(file)


def test_wrong_crop_of_scene_shares_no_fact(scenes) -> None:
    for example in scenes:
        other = example.others.find(example, "crop")
        assert (other.domain, other.answer == example.answer) == (example.domain, False)
        assert not example.evidence.facts["crop"] & other.evidence.facts["crop"]
        assert {mark.truth for mark in other.marks} == {mark.truth for mark in example.marks}


def test_wrong_hint_of_scene_names_other_places(scenes) -> None:
    for example in scenes:
        places = build_prompt(example, "hint").text.partition("hint: ")[2].split(" and ")
        wrong = build_prompt(example, "wrong_hint").text.partition("hint: ")[2].split(" and ")
        assert wrong != [""]
        assert not set(places) & set(wrong)


def test_wrong_context_prompt_differs_in_evidence_only(scenes) -> None:
    example = scenes[0]
    true, wrong = (build_prompt(example, context) for context in ("crop+answer", "wrong_crop+wrong_answer"))
    assert wrong.images[0] is example.images[0]
    assert open_image(wrong.images[1]).tobytes() != open_image(true.images[1]).tobytes()
    assert open_image(wrong.images[1]).size == open_image(true.images[1]).size
    requested, _, answer = wrong.text.partition("\nanswer: ")
    assert requested == example.question
    assert answer not in ("", example.answer)


def test_wrong_evidence_depends_on_example_only(scenes) -> None:
    (again,) = make_examples("eval", start=5, count=1)
    for context in ("wrong_crop", "wrong_hint", "wrong_answer"):
        first, second = build_prompt(scenes[5], context), build_prompt(again, context)
        assert first.text == second.text
        assert open_image(first.images[-1]).tobytes() == open_image(second.images[-1]).tobytes()


def test_wrong_evidence_of_rows_is_of_same_domain(tmp_path) -> None:
    rows = [{"domain": "a", "answer": str(n), "hint": f"left {n}"} for n in range(3)]
    rows += [{"domain": "b", "answer": "9", "hint": "right"}, {"domain": "b", "answer": "8", "hint": " Right "}]
    examples = write(tmp_path, rows)
    for example in examples[:3]:
        assert build_prompt(example, "wrong_answer").text.rpartition(" ")[2] in {"0", "1", "2"} - {example.answer}
    # the only other row of domain b says the same, but for case and blanks
    assert missing_evidence(examples[3], "wrong_hint") == "wrong hint (of another example of its domain)"
    assert build_prompt(examples[3], "wrong_answer").text.endswith("answer: 8")


def test_wrong_evidence_is_of_a_row_with_another_answer(tmp_path) -> None:
    box = {"boxes": [{"x0": 1, "y0": 1, "x1": 9, "y1": 9}]}
    examples = write(tmp_path, [{"answer": "Yes", **box}, {"answer": "yes", **box}, {"answer": "no", **box}, {**box}])
    assert {examples[0].others.find(examples[0], "crop").id for _ in range(3)} <= {"3", "4"}
    only_yes = write(tmp_path, [{"answer": "yes", **box}, {"answer": "yes", **box}])
    with pytest.raises(DataError, match=r"row 1|:1.*has no \"wrong crop"):
        build_prompt(only_yes[0], "wrong_crop")


def test_wrong_evidence_without_true_evidence_is_missing(tmp_path) -> None:
    examples = write(tmp_path, [{"answer": "a"}, {"answer": "b", "hint": "there"}])
    assert missing_evidence(examples[0], "wrong_hint") == "hint"
    assert missing_evidence(examples[1], "wrong_hint") == "wrong hint (of another example of its domain)"


def test_pickled_example_leaves_out_its_data_set(tmp_path) -> None:
    examples = write(tmp_path, [{"answer": str(n)} for n in range(50)])
    assert len(pickle.dumps(examples[0])) < 2000


@pytest.mark.parametrize(
    "context", ["crop+wrong_crop", "crop_only+wrong_crop", "hint+wrong_hint", "answer+wrong_answer"]
)
def test_parse_context_true_and_wrong_evidence_raises(context: str) -> None:
    with raises(ConfigError, "wrong"):
        parse_context(context)
