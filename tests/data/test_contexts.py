"""What a policy is shown, for every name of a context and for sums; evidence that is missing is named."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import example

import workbench.data.contexts
from workbench.data.contexts import (
    CONTEXTS,
    EVIDENCE,
    build_prompt,
    dummy_rollout,
    evidence_crops,
    evidence_text,
    is_missing_rollout_data,
    is_privileged,
    missing_evidence,
    parse_context,
    require_promptable,
    user_turns,
)
from workbench.data.counterparts import WRONG, Counterparts
from workbench.errors import ConfigError, DataError
from workbench.types import Box, Evidence, Example, Rollout, Turn


def test_plain_context_shows_question_images_and_history() -> None:
    turns = (Turn("user", "hello"), Turn("assistant", "yes"))
    prompt = build_prompt(example(history=turns), "plain")
    assert (prompt.text, len(prompt.images), prompt.history) == ("question", 1, turns)
    assert [context for context in CONTEXTS if not is_privileged(context)] == ["plain", "concat", "turns"]


@pytest.mark.parametrize(
    ("context", "text", "num_images"),
    [
        ("crop", "question", 2),
        ("crop_only", "question", 1),
        ("marked", "question", 1),
        ("boxes", "question\nboxes: thing at 10 20 40 80", 1),
        ("caption", "question\ncaption: a caption", 1),
        ("hint", "question\nhint: a hint", 1),
        ("answer", "question\nanswer: 3", 1),
        ("reference", "question\nreference: 5 3", 1),
        ("hint+caption+crop", "question\ncaption: a caption\nhint: a hint", 2),
        ("answer + boxes", "question\nboxes: thing at 10 20 40 80\nanswer: 3", 1),
        ("marked+crop", "question", 2),
    ],
)
def test_context_shows_its_evidence_only(context: str, text: str, num_images: int) -> None:
    prompt = build_prompt(example(), context)
    assert (prompt.text, len(prompt.images)) == (text, num_images)


def test_every_context_has_a_test() -> None:
    assert {"crop", "crop_only", "marked", "boxes", "caption", "hint", "answer", "reference"} == set(EVIDENCE)
    assert set(CONTEXTS) - {*EVIDENCE} == {
        "plain",
        *WRONG,
        "feedback",
        "concat",
        "turns",
        "future",
    }  # tested below, WRONG in test_counterparts


FACTS = "A red box holds 3 pens. How many pens are there?\nA blue box holds 1.5 times as many."


def test_turns_reveal_question_by_sentence() -> None:
    item = example(question=FACTS)
    turns = user_turns(item)
    assert [turn.text for turn in turns] == [
        "How many pens are there?",
        "A red box holds 3 pens.",
        "A blue box holds 1.5 times as many.",
    ]
    assert [len(turn.images) for turn in turns] == [1, 0, 0]
    assert user_turns(example(question="Say how many. There are 3.", images=()))[0].text == "There are 3."
    concat = build_prompt(item, "concat")
    assert (concat.text, concat.history) == ("\n".join(turn.text for turn in turns), ())
    assert build_prompt(item, "plain").text == FACTS
    pictured_turns = (Turn("user", "one", item.images), Turn("user", "two", item.images))
    assert user_turns(example(question=FACTS, turns=pictured_turns)) == pictured_turns
    assert len(build_prompt(example(turns=pictured_turns), "concat").images) == 2


def test_last_turn_follows_replies_to_earlier_turns() -> None:
    rollout = Rollout(example(question=FACTS), 0, (1,), "1", True, replies=("3", "4"))
    prompt = build_prompt(rollout.example, "turns+hint", rollout)
    assert [(turn.role, turn.text, len(turn.images)) for turn in prompt.history] == [
        ("user", "How many pens are there?", 1),
        ("assistant", "3", 0),
        ("user", "A red box holds 3 pens.", 0),
        ("assistant", "4", 0),
    ]
    assert (prompt.text, prompt.images) == ("A blue box holds 1.5 times as many.\nhint: a hint", ())
    assert prompt.all_images == rollout.example.images
    assert is_missing_rollout_data(replace(rollout, replies=("3",)), "turns") and not is_missing_rollout_data(
        rollout, "turns"
    )
    for context in ("turns", "concat"):
        assert missing_evidence(example(), context) == "turns (or a question of several sentences)"


def test_feedback_context_shows_feedback_of_rollouts_only() -> None:
    rollout = Rollout(example(), 0, (1,), "1", True, feedback="reference: 5 3")
    assert build_prompt(rollout.example, "hint+feedback", rollout).text == "question\nhint: a hint\nreference: 5 3"
    for context, values in (("feedback", None), ("feedback", replace(rollout, feedback=None)), ("turns", None)):
        with raises(DataError, "rollout"):
            build_prompt(example(question=FACTS), context, values)
    with raises(ConfigError, "existing answer"):
        require_promptable("crop+feedback")
    build_prompt(example(question=FACTS), "turns+feedback", dummy_rollout(example(question=FACTS)))


def test_context_sum_in_any_order_gives_equal_prompts() -> None:
    first, second = (build_prompt(example(), context) for context in ("boxes+caption", "caption+boxes"))
    assert (first.text, first.images) == (second.text, second.images)


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ("box", 'context "box" is unknown.*Did you mean "boxes"'),
        ("", 'context "" is unknown'),
        ("boxes+", "is unknown"),
        ("boxes+boxes", "repeats a part"),
        ("plain+boxes", 'adds "plain"'),
        ("crop+crop_only", "Choose one"),
        ("turns+marked", "Choose one"),
        ("concat+turns", "Choose one"),
        ("Crop", 'Did you mean "crop"'),
    ],
)
def test_parse_context_unknown_name_raises(context: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_context(context)


@pytest.mark.parametrize(
    ("context", "column"),
    [
        ("crop", "boxes (or crop)"),
        ("crop_only", "boxes (or crop)"),
        ("marked", "boxes"),
        ("boxes", "boxes"),
        ("caption", "caption"),
        ("hint", "hint"),
        ("answer", "answer"),
        ("reference", "reference"),
        ("caption+hint", "caption"),
    ],
)
def test_missing_evidence_names_row_and_column(context: str, column: str) -> None:
    bare = Example("7", "question", example().images, origin="data.jsonl:7")
    assert missing_evidence(bare, context) == column
    with pytest.raises(DataError) as raised:
        build_prompt(bare, context)
    assert f'data.jsonl:7 has no "{column}"; context "{context}" needs one' in str(raised.value)
    assert missing_evidence(bare, "plain") is None
    assert missing_evidence(example(), context) is None


def test_missing_evidence_counts_empty_text() -> None:
    assert missing_evidence(example(evidence=Evidence(caption="")), "caption") == "caption"
    assert missing_evidence(example(answer=""), "answer") == "answer"


@pytest.mark.parametrize("context", ["crop", "crop_only", "boxes", "marked"])
def test_missing_evidence_counts_boxes_without_image(context: str) -> None:
    assert missing_evidence(example(images=()), context) == "images"
    with raises(DataError, "images"):
        build_prompt(example(images=()), context)


def test_boxes_are_written_in_hundredths() -> None:
    boxes = (Box(0, 0, 20, 10, "all"), Box(19.99, 9.99, 20, 10), Box(10, 5, 10.4, 5.2, "dot"))
    text = evidence_text(example(evidence=Evidence(boxes)), "boxes")
    assert text == "all at 0 0 99 99; region at 99 99 99 99; dot at 50 50 52 52"


def quarters() -> Image.Image:
    image = Image.new("RGB", (20, 10))
    image.paste((255, 0, 0), (0, 0, 10, 5))
    image.paste((0, 255, 0), (10, 5, 20, 10))
    return image


def test_crop_is_first_box_at_twice_its_size() -> None:
    boxes = (Box(10, 5, 20, 10), Box(0, 0, 3, 3))
    (crop,) = evidence_crops(example(images=(quarters(),), evidence=Evidence(boxes)))
    assert crop.size == (20, 10)
    assert set(crop.getdata()) == {(0, 255, 0)}


def test_crop_of_example_is_used_unchanged(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 3))
    assert evidence_crops(example(evidence=Evidence(crops=(image,)))) == (image,)
    assert build_prompt(example(evidence=Evidence(crops=(tmp_path / "c.png",))), "crop").images[1] == tmp_path / "c.png"


@pytest.mark.parametrize(
    "box", [Box(5.2, 4, 5.4, 8), Box(5.9, 4.1, 6.1, 4.2), Box(0, 0, 0.3, 0.3), Box(19.8, 9.8, 20, 10)]
)
@pytest.mark.parametrize("context", ["crop", "crop_only", "marked", "boxes", "marked+boxes+crop"])
def test_context_with_box_below_a_pixel_builds_prompt(box: Box, context: str) -> None:
    images = build_prompt(example(evidence=Evidence((box,))), context).images
    assert all(min(image.size) >= 1 for image in images)


def test_crop_covers_every_touched_pixel() -> None:
    box = Box(2.3, 1.7, 6.1, 4.2)
    (crop,) = evidence_crops(example(evidence=Evidence((box,))))
    assert crop.size == (2 * (math.ceil(6.1) - 2), 2 * (math.ceil(4.2) - 1))


def test_crop_too_large_is_not_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.data.contexts, "MAX_PIXELS", 799)
    assert evidence_crops(example(evidence=Evidence((Box(0, 0, 20, 10),))))[0].size == (20, 10)
    assert evidence_crops(example(evidence=Evidence((Box(0, 0, 10, 10),))))[0].size == (20, 20)


def test_marked_context_draws_red_frame_on_a_copy() -> None:
    item = example()
    (marked,) = build_prompt(item, "marked").images
    red = {(x, y) for x in range(20) for y in range(10) if marked.getpixel((x, y)) == (255, 0, 0)}
    frame = {(x, y) for x in range(2, 8) for y in range(2, 8) if x in (2, 7) or y in (2, 7)}
    assert red == frame
    assert item.images[0].getpixel((2, 2)) != (255, 0, 0)


def test_prompt_keys_differ_by_row_file_and_context() -> None:
    rows = [example(0, origin=origin) for origin in ("train.jsonl:1", "eval.jsonl:1")] + [example(0), example(1)]
    assert all(row.id == "example-0" for row in rows[:3])
    keys = [build_prompt(row, context).key for row in rows for context in ("plain", "boxes", "boxes+hint")]
    assert len(set(keys)) == len(keys)


def test_plain_prompt_has_no_evidence() -> None:
    secret = dataclasses.replace(
        example(answer="S3CRET", reference="S3CRET"),
        evidence=Evidence((Box(1, 1, 2, 2, "S3CRET"),), caption="S3CRET", hint="S3CRET"),
    )
    assert "S3CRET" not in build_prompt(secret, "plain").text
    assert build_prompt(secret, "plain").images == secret.images


def test_prompts_show_several_crops_in_order() -> None:
    crops = tuple(Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in (10, 20, 30))
    row = example(evidence=Evidence((Box(0, 0, 2, 2),), crops=crops))
    assert build_prompt(row, "crop").images == (*row.images, *crops)
    assert build_prompt(row, "crop_only").images == crops
    others = [replace(example(idx, answer=str(idx)), evidence=Evidence(crops=crops[:idx])) for idx in (1, 2)]
    wrong = replace(others[0], others=Counterparts(others))
    assert build_prompt(wrong, "wrong_crop").images == (*wrong.images, *crops[:2])
