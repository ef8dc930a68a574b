"""data.privileged_template: placeholders, what it applies to, and the default text, which stays as it was."""

from dataclasses import replace

import pytest
from failures import raises
from small import example

from workbench.data.contexts import build_prompt, shown_texts
from workbench.data.privileged_template import apply_template, check_template, placeholders_of
from workbench.errors import ConfigError

TEMPLATE = "{question}\n\nA source says:\n{evidence}\nAnswer {{as}} you would without it."


def test_build_prompt_without_template_keeps_default_text() -> None:
    assert build_prompt(example(), "caption+hint").text == "question\ncaption: a caption\nhint: a hint"


def test_build_prompt_fills_template_for_privileged_text_alone() -> None:
    row = replace(example(), privileged_template=TEMPLATE)
    filled = "question\n\nA source says:\ncaption: a caption\nhint: a hint\nAnswer {as} you would without it."
    assert build_prompt(row, "caption+hint").text == filled
    assert build_prompt(row, "plain").text == "question"
    assert build_prompt(row, "crop").text == "question"  # evidence as an image alone
    pictures = replace(example(), privileged_template="Look closely. {question}")
    assert build_prompt(pictures, "crop").text == "Look closely. question"
    assert build_prompt(pictures, "hint").text == "question\nhint: a hint"
    assert build_prompt(pictures, "plain").text == "question"


def test_braces_in_question_and_evidence_stay() -> None:
    assert apply_template("{question} | {evidence}", "{x}", "{y}") == "{x} | {y}"


def test_shown_texts_have_the_template_for_privileged_views() -> None:
    row = replace(example(), privileged_template=TEMPLATE)
    assert ("data.privileged_template", TEMPLATE) in list(shown_texts(row, "hint"))
    assert [name for name, _ in shown_texts(row, "plain")] == ["question"]


@pytest.mark.parametrize(
    ("template", "textual", "names"),
    [
        ("{question} {evidnce}", [True], ['placeholder "evidnce"', 'Did you mean "evidence"']),
        ("{question} {}", [True], ["placeholder"]),
        ("{question!r} {evidence}", [True], ["placeholder"]),
        ("{question", [True], ["is not a template"]),
        ("{evidence}", [True], ["lacks {question}"]),
        ("{question}", [True, False], ["lacks {evidence}"]),
        ("{question} {evidence}", [False], ["images alone"]),
        ("{question} {evidence}", [], ["no view", "method.privilege"]),
    ],
)
def test_check_template_mistakes_raise(template: str, textual: list[bool], names: list[str]) -> None:
    with raises(ConfigError, "data.privileged_template", *names):
        check_template(template, textual)


def test_check_template_of_valid_ones() -> None:
    check_template(TEMPLATE, [True, False])
    check_template("{question}", [False])
    assert placeholders_of(TEMPLATE) == {"question", "evidence"}
