"""Spellings of one answer that data and models use: numbers, units, abbreviations, wrappers. Values by hand."""

from fractions import Fraction

import pytest

from workbench.data.grading import final_answer, grade
from workbench.data.numerals import numbers_in, same_number, spell_numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("½", Fraction(1, 2)),
        ("1½", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("10²", None),
        ("10^5", Fraction(100_000)),
        ("3 × 10⁴", Fraction(30_000)),
        ("3×10^{-2}", Fraction(3, 100)),
        ("1\u202f000", Fraction(1000)),
        ("–5", Fraction(-5)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        ("1{,}000", Fraction(1000)),
        ("2³", None),
        ("1/0", None),
    ],
)
def test_numbers_in_one_number_is_its_value(text, value):
    wanted = Fraction(100) if text == "10²" else value
    assert [number for _, number in numbers_in(spell_numbers(text))] == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
    ("item", "other", "same"),
    [
        ("27.0", "27", True),
        ("1,000", "1000", True),
        ("1e5", "100000", True),
        ("007", "7", False),
        ("1/2", "2/4", False),
    ],
)
def test_same_number_compares_decimals_by_value(item, other, same):
    assert same_number(item, other) is same


@pytest.mark.parametrize(
    ("text", "answer", "rule", "right"),
    [
        ("27", "27.0", "final", 1.0),
        ("It is 1,000.", "1000", "final", 1.0),
        ("10²", "102", "final", 0.0),
        ("10^5", "5", "numeric", 0.0),
        ("5cm", "5 cm", "final", 1.0),
        ("5 m", "5 min", "final", 0.0),
        (r"\boxed{90^{\circ}}", "90°", "final", 1.0),
        # around a right answer, as TRL's and R1's data keep it
        ("The answer is 27.", "<answer>27</answer>", "final", 1.0),
        ("27", r"$\boxed{27}$", "numeric", 1.0),
        ("red</answer>", "red", "final", 1.0),
        (r"\boxed{\mathrm{red}}", "red", "final", 1.0),
        # thoughts are no answer
        ("<think>The answer is blue?</think>\nred", "red", "final", 1.0),
        ("<think>The answer is blue?</think>\nred", "blue", "contains", 0.0),
        # full stops that end no sentence
        ("The answer is St. Louis", "St. Louis", "final", 1.0),
        ("The answer is J. K. Rowling. She wrote it.", "J. K. Rowling", "final", 1.0),
        ("St. Louis. It is big.", "St. Louis", "final", 0.0),
        # a verdict and a sentence
        ("No, it is red.", "no", "final", 1.0),
        ("No, it is red.", "yes", "final", 0.0),
        ("Нет, она красная.", "нет", "final", 1.0),
        # signs that make another name
        ("C++", "C", "final", 0.0),
        ("C", "C#", "final", 0.0),
        ("A+", "A+", "final", 1.0),
        # denials and choices in other Latin scripts
        ("Antwort: nicht rot", "rot", "final", 0.0),
        ("pas rouge", "rouge", "contains", 0.0),
        ("rojo o azul", "azul", "final", 0.0),
        # other characters, the same word
        ("ёлка", "елка", "final", 1.0),
        ("İstanbul", "istanbul", "final", 1.0),
        ("re\u00add", "red", "final", 1.0),
    ],
)
def test_grade_other_spelling_of_same_answer_is_right(text, answer, rule, right):
    assert grade(text, answer, rule) == right


def test_final_answer_follows_closed_thoughts():
    assert final_answer("<think>Answer: blue</think> Answer: red") == "red"
    assert final_answer("<think>Answer: blue</think>") == ""
