"""The built-in scenes: hidden parts are hidden byte for byte, and every answer token has the right visibility."""

import dataclasses
import random
import re

import numpy as np
import pytest
from failures import raises
from PIL import Image

from workbench.data.contexts import EVIDENCE, build_prompt
from workbench.data.grading import grade
from workbench.data.scenes import (
    FAMILIES,
    SPLITS,
    Scene,
    Thing,
    _digest,
    make_examples,
    make_scene,
)
from workbench.data.scenes.questions import Wish, ask
from workbench.data.scenes.turns import split_into_turns
from workbench.data.scenes.world import TAGS, WITHHELD, crop, full_view, original
from workbench.errors import ConfigError, DataError
from workbench.training.pretraining.lessons import CAPTIONS, DETAIL, MIX, SHAPES, make_lesson
from workbench.training.pretraining.tokenizer import SPECIAL_TOKENS, build_processor
from workbench.types import PRIVILEGED, VISIBLE, mark_tokens

SCENE = Scene(
    (
        Thing(0, "star", "red", "A", readable=True),
        Thing(3, "circle", "blue", "L", readable=True),
        Thing(5, "square", "red", "A", readable=False),
        Thing(8, "cross", "black", "X", readable=False),
    )
)

KNOWN = [
    ("what is the tag of the blue square?", "at bottom center, tag A, answer A"),
    ("what color is the diamond?", "at middle right, color red, answer red"),
    (
        "do the yellow square and the red star have the same tag?",
        "at bottom right, tag C, at bottom left, tag C, answer yes",
    ),
]


def with_tag(scene: Scene, cell: int, tag: str) -> Scene:
    return Scene(tuple(dataclasses.replace(t, tag=tag) if t.cell == cell else t for t in scene.things))


def requested(family: str, visibility: str, question: str, *, same: bool = False, number: int = 1):
    """The example about SCENE with this very question."""
    for seed in range(300):
        example = ask(SCENE, Wish(family, visibility, same, number), random.Random(seed))
        if example is not None and example.question == question:
            return example
    raise AssertionError(f"never asked: {question}")


def marked(example, text: str | None = None) -> list[tuple[str, str, str]]:
    """(word, kind, visibility) of the words that are not template."""
    text = text or example.reference
    spans = [match.span() for match in re.finditer(r"\w+", text)]
    marks = mark_tokens(spans, text, example.marks)
    return [(text[a:b], *mark) for (a, b), mark in zip(spans, marks, strict=True) if mark[0] != "template"]


@pytest.mark.parametrize("cell", [5, 8])
def test_full_view_does_not_depend_on_small_tags(cell):
    views = {full_view(with_tag(SCENE, cell, tag)).tobytes() for tag in TAGS}
    assert len(views) == 1


@pytest.mark.parametrize("cell", [5, 8])
def test_original_and_crop_differ_by_small_tag(cell):
    assert len({original(with_tag(SCENE, cell, tag)).tobytes() for tag in TAGS}) == len(TAGS)
    assert len({crop(with_tag(SCENE, cell, tag), cell).tobytes() for tag in TAGS}) == len(TAGS)


@pytest.mark.parametrize("cell", [0, 3])
def test_full_view_differs_by_large_tag_when_shrunk(cell):
    shrunk = [full_view(with_tag(SCENE, cell, tag)).resize((96, 96), Image.Resampling.LANCZOS) for tag in TAGS]
    assert len({image.tobytes() for image in shrunk}) == len(TAGS)


@pytest.mark.parametrize(("cell", "picture"), [(0, full_view), (5, lambda scene: crop(scene, 5))])
def test_tag_lies_inside_one_patch(cell, picture):
    def seen(tag):
        image = picture(with_tag(SCENE, cell, tag)).resize((96, 96), Image.Resampling.BOX)
        return np.asarray(image, dtype=int)

    changed = np.abs(seen("A") - seen("T")).sum(-1) > 0
    rows, columns = np.nonzero(changed)
    assert rows.min() // 16 == rows.max() // 16
    assert columns.min() // 16 == columns.max() // 16


def test_crop_equals_cell_of_original():
    cut = original(SCENE).crop((2 * 192, 192, 3 * 192, 2 * 192))
    assert crop(SCENE, 5).tobytes() == cut.tobytes()


def test_examples_depend_on_split_seed_and_index_only():
    whole = make_examples("eval", seed=3, start=0, count=12)
    part = make_examples("eval", seed=3, start=8, count=4)
    for first, second in zip(whole[8:], part, strict=True):
        assert (first.id, first.question, first.reference) == (second.id, second.question, second.reference)
        assert first.images[0].tobytes() == second.images[0].tobytes()
        assert first.evidence.crops[0].tobytes() == second.evidence.crops[0].tobytes()
    assert whole[5].id == "scenes:eval:3:5"
    assert make_examples("eval", seed=4, start=8, count=4)[0].reference != part[0].reference


def test_known_examples_are_unchanged():
    """Whoever compares runs over time must get the same questions. Written down when the world was made."""
    texts = [(e.question, e.reference) for e in make_examples("eval", count=3)]
    assert texts == KNOWN


def test_scenes_of_train_are_in_no_other_split():
    rng = random.Random(0)
    assert all(_digest(make_scene("train", rng)) % 4 != 0 for _ in range(200))
    for split in ("eval", "combos", "hard"):
        assert all(_digest(make_scene(split, rng)) % 4 == 0 for _ in range(200))


def test_withheld_combinations_are_in_combos_only():
    rng = random.Random(1)
    for split in SPLITS:
        for _ in range(200):
            pairs = {(thing.shape, thing.color) for thing in make_scene(split, rng).things}
            assert bool(pairs & WITHHELD) == (split == "combos")
    assert {shape for shape, _ in WITHHELD} == {"circle", "square", "triangle", "star", "diamond", "cross"}


def test_combos_questions_name_withheld_object():
    names = {f"{color} {shape}" for shape, color in WITHHELD}
    for example in make_examples("combos", count=40):
        if example.domain in ("tag", "compare", "relation"):
            assert any(name in example.question for name in names), example.question


def test_hard_scenes_have_more_objects():
    def sizes(split):
        return [len(example.evidence.caption.split(";")) for example in make_examples(split, count=40)]

    assert max(sizes("eval")) == 6 and min(sizes("eval")) == 3
    assert set(sizes("hard")) == {8, 9}


def test_large_tag_in_full_view_is_visible():
    example = requested("tag", VISIBLE, "what is the tag of the red star?")
    assert example.reference == "at top left, tag A, answer A"
    assert example.answer == "A"
    assert marked(example) == [
        ("top", "location", VISIBLE),
        ("left", "location", VISIBLE),
        ("A", "tag", VISIBLE),
        ("A", "answer", VISIBLE),
    ]


def test_small_tag_is_privileged_and_its_place_visible():
    example = requested("tag", PRIVILEGED, "what is the tag of the black cross?")
    assert marked(example) == [
        ("bottom", "location", VISIBLE),
        ("right", "location", VISIBLE),
        ("X", "tag", PRIVILEGED),
        ("X", "answer", PRIVILEGED),
    ]


def test_marks_hold_in_wrong_answer():
    example = requested("tag", PRIVILEGED, "what is the tag of the black cross?")
    words = marked(example, "at middle center, tag T, answer C")
    assert words[2:] == [("T", "tag", PRIVILEGED), ("C", "answer", PRIVILEGED)]


@pytest.mark.parametrize(
    ("question", "visibilities", "answer"),
    [
        ("do the red star and the red square have the same tag?", [VISIBLE, PRIVILEGED], "yes"),
        ("do the red square and the red star have the same tag?", [PRIVILEGED, VISIBLE], "yes"),
        ("do the black cross and the blue circle have the same tag?", [PRIVILEGED, VISIBLE], "no"),
    ],
)
def test_compared_tags_one_privileged_makes_answer_privileged(question, visibilities, answer):
    example = requested("compare", PRIVILEGED, question, same=answer == "yes")
    words = [word for word in marked(example) if word[1] != "location"]
    assert [word[2] for word in words if word[1] == "tag"] == visibilities
    assert words[-1] == (answer, "answer", PRIVILEGED)
    small = "red square" if "square" in question else "black cross"
    assert example.evidence.boxes[0].label == small


def test_compared_large_tags_are_visible():
    example = requested("compare", VISIBLE, "do the red star and the blue circle have the same tag?")
    assert example.reference == "at top left, tag A, at middle left, tag L, answer no"
    assert {visibility for _, _, visibility in marked(example)} == {VISIBLE}


@pytest.mark.parametrize(
    ("family", "question", "reference", "number"),
    [
        ("color", "what color is the circle?", "at middle left, color blue, answer blue", 1),
        ("shape", "what shape is the black object?", "at bottom right, shape cross, answer cross", 1),
        ("count", "how many red objects are there?", "at top left, at middle right, answer 2", 2),
        ("count", "how many crosses are there?", "at bottom right, answer 1", 1),
        (
            "relation",
            "what shape is below the red star?",
            "at top left, then at middle left, shape circle, answer circle",
            1,
        ),
        (
            "relation",
            "what shape is above the black cross?",
            "at bottom right, then at middle right, shape square, answer square",
            1,
        ),
    ],
)
def test_other_families_are_visible_in_full_view(family, question, reference, number):
    example = requested(family, VISIBLE, question, number=number)
    assert example.reference == reference
    assert {visibility for _, _, visibility in marked(example)} == {VISIBLE}
    assert marked(example)[-1] == (example.answer, "answer", VISIBLE)


def test_scene_evidence_suffices_for_every_context():
    for split in SPLITS:
        for example in make_examples(split, count=16):
            for context in ("plain", *EVIDENCE):
                build_prompt(example, context)
            first = example.evidence.boxes[0]
            view = example.images[0].size
            assert view == (288, 288) and 0 <= first.x0 < first.x1 <= 288 and 0 <= first.y0 < first.y1 <= 288
            assert example.evidence.crops[0].size == (192, 192)


def test_scenes_one_in_four_is_privileged_in_every_family():
    examples = make_examples("train", count=16)
    privileged = [any(m.kind == "answer" and m.truth == PRIVILEGED for m in example.marks) for example in examples]
    assert sum(privileged) == 4
    assert {example.domain for example in examples} == set(FAMILIES)
    assert {e.domain for e in make_examples("train", count=8, families=("count", "tag"))} == {"count", "tag"}


def test_compare_answers_are_balanced():
    answers = [example.answer for example in make_examples("eval", count=400, families=("compare",))]
    assert abs(answers.count("yes") - 200) < 3 * 10  # three standard deviations of a fair coin


def test_scene_references_are_graded_right_and_others_wrong():
    examples = make_examples("eval", count=64)
    for example in examples:
        assert grade(example.reference, example.answer) == 1.0
        others = {other.answer for other in examples} - {example.answer}
        assert not any(grade(example.reference, other) for other in others)


def test_make_examples_unknown_names_and_ranges_raise():
    with raises(ConfigError, "evl", "eval"):
        make_examples("evl", count=1)
    with raises(ConfigError, "colour", "color"):
        make_examples("eval", count=1, families=("colour",))
    with raises(DataError, "count=-3"):
        make_examples("eval", count=-3)


def test_lessons_are_deterministic_and_of_all_kinds():
    lessons = [make_lesson(0, index) for index in range(200)]
    again = make_lesson(0, 117)
    assert (again.prompt.text, again.completion) == (lessons[117].prompt.text, lessons[117].completion)
    assert sum(MIX.values()) == 100
    only = dict.fromkeys(MIX, 0) | {SHAPES: 1}
    assert {make_lesson(0, index, mix=only).prompt.text for index in range(20)} == {SHAPES}
    no_captions = dict.fromkeys(CAPTIONS, 0)
    assert not any(make_lesson(0, index, mix=no_captions).prompt.text in CAPTIONS for index in range(50))
    assert {lesson.prompt.text for lesson in lessons} > {"describe the scene", "find the objects", DETAIL}
    assert {len(lesson.prompt.images) for lesson in lessons} == {1, 2}


def test_tokenizer_scene_words_are_one_token_each():
    tokenizer = build_processor().tokenizer
    assert len(tokenizer) <= 512
    for example in make_examples("hard", count=24):
        text = build_prompt(example, "boxes+caption+hint+reference+answer").text
        words = re.findall(r"\w+|[^\w\s]|\n", text)
        assert len(tokenizer(text)["input_ids"]) == len(words)
    strange = "Zoë's 日本 café:\t42 % <b>triangles</b>\n\x07"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange


def test_tokenizer_special_tokens_are_distinct():
    tokenizer = build_processor().tokenizer
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert set(SPECIAL_TOKENS) == set(tokenizer.all_special_tokens)
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_scene_turns_reveal_description_or_image_rows():
    for plain in make_examples("eval", count=8):
        printed, seen = split_into_turns(plain, "caption"), split_into_turns(plain, "rows")
        requests, *parts = printed.turns
        assert (requests.text, requests.images) == (plain.question, plain.images)
        assert "; ".join(part.text.removeprefix("caption: ") for part in parts) == plain.evidence.caption
        assert build_prompt(printed, "plain").text == build_prompt(plain, "caption").text
        assert {mark.truth for mark in printed.marks} == {VISIBLE}  # all is in the question now
        assert len(parts) == 2 and (seen.question, seen.marks) == (plain.question, plain.marks)
        rows = [turn.images[0] for turn in seen.turns]
        whole = rows[0].copy()
        for row in (1, 2):
            whole.paste(rows[row].crop((0, 96 * row, 288, 288)), (0, 96 * row))
        assert whole == plain.images[0] and len({row.tobytes() for row in rows}) > 1
