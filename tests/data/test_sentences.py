"""Scene questions as sentences: the same question and answer, in words that a model which speaks would use."""

import itertools
import re

import pytest
from failures import raises

from workbench.data.examples import load_examples
from workbench.data.grading import grade
from workbench.data.scenes import make_examples
from workbench.data.scenes.sentences import as_sentences
from workbench.errors import ConfigError
from workbench.types import PRIVILEGED, VISIBLE, Example, Mark, mark_tokens

ANSWER = Mark(r"\banswer (\w+)", "answer", VISIBLE)
KNOWN = [  # family, question and answer of the world, and as sentences
    (
        "tag",
        ("what is the tag of the blue square?", "at bottom center, tag A, answer A"),
        ("What is the tag of the blue square?", "The blue square at the bottom center has the tag A."),
    ),
    (
        "color",
        ("what color is the star?", "at middle right, color red, answer red"),
        ("What color is the star?", "The star at the middle right is red."),
    ),
    (
        "shape",
        ("what shape is the black object?", "at top left, shape cross, answer cross"),
        ("What shape is the black object?", "The black object at the top left is a cross."),
    ),
    (
        "count",
        ("how many crosses are there?", "at top left, at middle right, answer 2"),
        (
            "How many crosses are there?",
            "There is one at the top left and one at the middle right, so the answer is 2.",
        ),
    ),
    (
        "relation",
        ("what shape is left of the red star?", "at top center, then at top left, shape circle, answer circle"),
        ("What shape is left of the red star?", "The red star is at the top center and left of it is a circle."),
    ),
]


@pytest.mark.parametrize(
    ("family", "plain", "spoken"), KNOWN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_sentence_says_what_the_reference_says(family: str, plain: tuple, spoken: tuple) -> None:
    example = as_sentences(Example("one", plain[0], (), reference=plain[1], domain=family, marks=(ANSWER,)))
    assert (example.question, example.reference) == spoken


def test_comparison_marks_each_tag_by_its_own_visibility() -> None:
    spoken = load_examples("scenes:eval?count=8&families=compare&style=sentences")
    plain = make_examples("eval", count=8, families=("compare",))
    example, original = next(
        pair
        for pair in zip(spoken, plain, strict=True)
        if PRIVILEGED in str(pair[1].marks) and "no." in pair[0].reference
    )
    words = re.findall(r"\w+|\W+", example.reference)
    starts = [sum(map(len, words[:idx])) for idx in range(len(words) + 1)]
    spans = list(itertools.pairwise(starts))
    labels = dict(zip(words, mark_tokens(spans, example.reference, example.marks), strict=True))
    tags = re.findall(r"tag (\w)", example.reference)
    expected = [mark.truth for mark in original.marks if mark.kind == "tag"]
    assert set(expected) == {VISIBLE, PRIVILEGED}
    assert [labels[tag] for tag in tags] == [("tag", truth) for truth in expected]
    assert labels["no"] == ("answer", PRIVILEGED)


def test_references_of_every_split_are_graded_right_and_keep_their_evidence() -> None:
    for split in ("train", "eval", "combos", "hard"):
        spoken = load_examples(f"scenes:{split}?count=64&style=sentences")
        plain = make_examples(split, count=64)
        assert all(grade(example.reference, example.answer) == 1.0 for example in spoken)
        assert [example.evidence for example in spoken] == [example.evidence for example in plain]
        assert all(example.others.find(example, "crop") is not None for example in spoken[:8])


def test_unknown_style_is_refused() -> None:
    with raises(ConfigError, '"sentence"', "sentences"):
        load_examples("scenes:eval?count=1&style=sentence")
