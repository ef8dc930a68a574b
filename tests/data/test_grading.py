"""Hand-written texts and what a person would say of them; where a rule errs by design, the test's name says so."""

import pytest
from failures import raises

from workbench.data.grading import GRADERS, final_answer, grade, normalize
from workbench.errors import ConfigError

BUILT_IN = "the purple ring is at the top left . its tag reads K . answer K"


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("red", "red", 1.0),
        ("  Red. ", "red", 1.0),
        ("**Red**", "red", 1.0),
        ("“Red”", "red", 1.0),
        ("ｒｅｄ", "red", 1.0),  # full-width letters
        ("dark  red", "dark red", 1.0),
        ("−3", "-3", 1.0),
        ("-3", "3", 0.0),
        ("it is red", "red", 0.0),
        ("", "red", 0.0),
    ],
)
def test_grade_exact_compares_whole_text(text, answer, right):
    assert grade(text, answer, "exact") == right


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (BUILT_IN, "K", 1.0),
        (BUILT_IN, "k", 1.0),
        (BUILT_IN + " .", "K", 1.0),
        (BUILT_IN, "purple", 0.0),
        (BUILT_IN, "ring", 0.0),
        ("Answer: red", "red", 1.0),
        ("Answer:\nred", "red", 1.0),
        ("**Answer:** red.", "red", 1.0),
        ("The answer is the red.", "red", 1.0),
        ("the answer to the question is red", "red", 1.0),
        ("The correct answer would be red.", "red", 1.0),
        ("The answer is red, because the sign is.", "red", 1.0),
        ("The answer is red, not blue.", "red", 1.0),
        ("The answer is not red.", "red", 0.0),
        ("The answer isn't red.", "red", 0.0),
        ("The answer is red or blue.", "red", 0.0),
        ("answer: red, blue", "red", 0.0),
        ("answer: 100", "10", 0.0),
        ("answer: 10", "100", 0.0),
        ("answer: 3.5", "3", 0.0),
        ("answer: -5", "5", 0.0),
        ("answer: reddish", "red", 0.0),
        ("answer: blue. Wait, that is wrong. Answer: red", "red", 1.0),
        ("answer: blue. Wait, that is wrong. Answer: red", "blue", 0.0),
        (r"So \boxed{42}.", "42", 1.0),
        (r"The answer is $\boxed{\text{red}}$.", "red", 1.0),
        (r"\boxed{f(\{1\})} holds", r"f(\{1\})", 1.0),
        (r"\boxed{41} is wrong. The answer is 42.", "42", 1.0),
        (r"\boxed{42", "42", 0.0),  # cut off: never finished
        ("<think>blue?</think><answer> red </answer>", "red", 1.0),
        ("<answer>red</answer>", "blue", 0.0),
        ("The colour is red.", "red", 1.0),
        ("It is not red.", "red", 0.0),
        ("It isn't the red", "red", 0.0),
        ("It is blue or red.", "red", 0.0),
        ("Red is what I see, but it is blue.", "red", 0.0),
        ("I cannot answer.", "red", 0.0),
        ("I cannot answer this question", "red", 0.0),
        ("The name is Anna Berg.", "Anna Berg", 1.0),
        ("The name is Anna Berg.", "Anna", 0.0),
        ("", "red", 0.0),
        ("answer: +", "+", 1.0),
        ("+", "-", 0.0),
    ],
)
def test_grade_final_reads_stated_answer(text, answer, right):
    assert grade(text, answer, "final") == right
    assert grade(text, answer) == right


def test_grade_final_unit_on_one_side_errs():
    assert grade("answer: 5 cm", "5") == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("B", "B", 1.0),
        ("(B)", "B", 1.0),
        ("[b]", "B", 1.0),
        ("B.", "(B)", 1.0),
        ("B. red", "B", 1.0),
        ("answer: B) red", "B", 1.0),
        ("The answer is option B.", "B. red", 1.0),
        ("**Answer: (B)**", "B", 1.0),
        (r"\boxed{B}", "B", 1.0),
        ("(A) is wrong, (B) is right", "B", 1.0),
        ("(A) is wrong, (B) is right", "A", 0.0),
        ("So it must be B.", "B", 1.0),
        ("Apple", "A", 0.0),  # the letter begins a word
        ("A dog", "A", 0.0),  # an article
        ("The answer is a dog", "A", 0.0),
        ("the answer is a", "A", 1.0),
        ("I see a dog and a cat", "A", 0.0),
        ("It is not B", "B", 0.0),
        ("the answer is B or C", "C", 0.0),
        ("the answer is B or C", "B", 0.0),
        ("AB", "A", 0.0),
        ("", "A", 0.0),
    ],
)
def test_grade_choice_reads_one_letter(text, answer, right):
    assert grade(text, answer, "choice") == right


def test_grade_choice_rejected_letter_at_end_errs():
    assert grade("B is right, not A", "B", "choice") == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("10", "10", 1.0),
        ("100", "10", 0.0),
        ("answer: 10.0", "10", 1.0),
        ("answer: 1,234.5", "1234.5", 1.0),
        ("answer: -3", "3", 0.0),
        ("answer: −3", "-3", 1.0),
        ("answer: 5 cm", "5", 1.0),
        ("answer: 5cm", "5", 1.0),
        ("answer: $3.50", "3.5", 1.0),
        ("answer: 12%", "12", 1.0),
        ("answer: 3/4", "0.75", 1.0),
        ("answer: 3/4", "4", 0.0),
        ("answer: 1e3", "1000", 1.0),
        ("answer: .5", "0.5", 1.0),
        ("answer: 1999", "2000", 0.0),
        ("answer: 1/0", "1", 0.0),
        ("answer: 10 or 12", "12", 0.0),
        ("the answer is not 10", "10", 0.0),
        ("it is not 10", "10", 0.0),
        ("there are 3 rows of 4, so 12 seats", "12", 1.0),
        ("there are 3 rows of 4, so 12 seats", "4", 0.0),
        ("version 1.2.3", "3", 0.0),
        ("tag K7", "7", 0.0),
        ("between 5-10", "-10", 0.0),
        ("ten", "10", 0.0),
        ("9" * 5000, "1", 0.0),
        ("1e999999999", "1", 0.0),
    ],
)
def test_grade_numeric_compares_values(text, answer, right):
    assert grade(text, answer, "numeric") == right


def test_grade_numeric_tolerance_is_relative():
    assert grade("104", "100", "numeric", tolerance=0.05) == 1.0
    assert grade("106", "100", "numeric", tolerance=0.05) == 0.0
    assert grade("0.001", "0", "numeric", tolerance=0.05) == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("the red car", "red", 1.0),
        ("Red.", "red", 1.0),
        ("not red", "red", 0.0),
        ("it is not a red car", "red", 0.0),
        ("not blue but red", "red", 1.0),
        ("bored", "red", 0.0),
        ("100", "10", 0.0),
        ("10", "100", 0.0),
        ("3.5", "3", 0.0),
        ("-5", "5", 0.0),
        ("1,000", "1", 0.0),
        ("a dark red car", "dark red", 1.0),
        ("red, dark", "dark red", 0.0),
        ("", "red", 0.0),
    ],
)
def test_grade_contains_needs_whole_undenied_words(text, answer, right):
    assert grade(text, answer, "contains") == right


def test_grade_contains_hedge_errs():
    assert grade("red or blue", "red", "contains") == 1.0


@pytest.mark.parametrize("rule", GRADERS)
def test_grade_without_answer_is_none(rule):
    assert grade("red", None, rule) is None
    assert grade("red", " . ", rule) is None


def test_grade_incomparable_answer_is_none():
    assert grade("10", "red", "numeric") is None
    assert grade("10", "1 or 2", "numeric") is None
    assert grade("B", "red", "choice") is None


def test_grade_unknown_grader_suggests_name():
    with raises(ConfigError, "finl", "final"):
        grade("red", "red", "finl")


def test_final_answer_keeps_its_spelling():
    assert final_answer(BUILT_IN) == "K"
    assert final_answer("First. The Sign says Stop!") == "The Sign says Stop"
    assert final_answer("") == ""


def test_normalize_unifies_spelling():
    assert normalize(" **The  Café’s** ! ") == "the café's"


def test_grade_long_hostile_text_is_fast():
    for text in (
        "answer to " * 20_000,
        "\\boxed{" * 3_000,
        "{" * 50_000,
        "1," * 50_000,
        "(A" * 50_000,
        "-" * 100_000,
        " " * 100_000,
    ):
        for rule in GRADERS:
            assert grade(text, "B" if rule == "choice" else "5", rule) == 0.0


@pytest.mark.parametrize("grader", ["final", "exact", "contains"])
@pytest.mark.parametrize(
    ("prefix", "text", "right"),
    [
        ("", "<think>It is red", 0.0),  # truncated in its thinking
        ("", "red<think>or blue", 1.0),
        ("", "<think>blue</think>red", 1.0),
        ("", "<think>red</think>", 0.0),
        ("assistant\n<think>\n", "red", 0.0),
        ("assistant\n<think>\n", "blue</think>red", 1.0),
        ("assistant\n<think>\n\n</think>\n", "red", 1.0),
    ],
)
def test_grade_thinking_is_no_answer(prefix: str, text: str, right: float, grader: str) -> None:
    assert grade(text, "red", grader, prefix=prefix) == right
