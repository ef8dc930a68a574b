"""Which prompts hold the answer: each row of the table was judged by hand."""

from unittest.mock import create_autospec

import pytest

from workbench.data.leaks import find_leaks, leak_of
from workbench.methods import load_method
from workbench.runs.folder import RunFolder
from workbench.training.filter import report_leaks
from workbench.types import Evidence, Example, Turn

ROWS = [
    ("prompt", "What colour is the red door?", "red", None),
    ("prompt", '[{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "It is red."}]', "red", None),
    ("reference", '[{"content": "Which?"}, {"content": "First line.\\nIt is red."}]', "red", "First line.\nIt is red."),
    ("reference", "Q? USER: which? ASSISTANT: The door is red", None, "the door is RED."),
    ("prompt", "天空是蓝色的吗?它是什么颜色?", "蓝色", None),
    ("", "What colour is the door?", "red", None),
    ("", "Is the door bored?", "red", None),  # "bored" is another word
    ("", "What colour is the door?", "red", "The door is red, as the picture shows."),
    ("choices", "Which colour?\n(A) red\n(B) blue", "red", None),
    ("choices", "Which colour?\nA. red\nB. blue", "Red.", None),
    ("choices", "Which colour? A) red B) blue", "red", None),
    ("choices", "Which colour?\n- red\n- blue", "red", None),
    ("choices", "Which colour? Options: red, blue", "red", None),
    ("choices", "Is the door red or blue?", "red", None),
    ("choices", "Is it red, green, or blue? Answer with one word.", "green", None),
    ("choices", "门是红色还是蓝色?", "红色", None),
    ("prompt", "The door is red.\n(A) red\n(B) blue", "red", None),
    ("not searched", "Which of these?\n(A) red\n(B) blue", "A", None),
    ("not searched", "Which of the 3 doors?", "3", None),
    ("not searched", "Is there a door? Answer yes.", "yes", None),
]


@pytest.mark.parametrize(("position", "question", "answer", "reference"), ROWS)
def test_leak_of_locates_answer(position, question, answer, reference):
    assert leak_of(Example("a", question, answer=answer, reference=reference)) == position


def test_leak_of_searches_history_and_evidence():
    printed = Example("a", "Which?", answer="red", history=(Turn("assistant", "It is red."),))
    assert leak_of(printed) == "prompt"
    captioned = Example("a", "Which?", answer="red", evidence=Evidence(caption="a red door"))
    assert (leak_of(captioned, "plain"), leak_of(captioned, "caption")) == ("", "prompt")


def test_find_leaks_counts_rows_and_names_first():
    examples = [
        Example(str(n), *row[1:2], answer=row[2], reference=row[3], origin=f"f:{n}") for n, row in enumerate(ROWS)
    ]
    leaks = find_leaks([*examples, Example("none", "Which?")], "plain")
    assert (leaks.num_examples, len(leaks.in_prompt), leaks.num_references) == (20, 6, 2)
    assert (leaks.num_among_choices, leaks.num_not_searched) == (8, 3)
    assert str(leaks).startswith(
        "6 of 20 prompts of the student hold the answer or the reference (2 the whole reference); first: f:0."
    )


def test_report_leaks_records_frequent_leaks_only():
    folder, method = create_autospec(RunFolder, instance=True), load_method("opd")
    hidden = [Example(str(n), "Which colour is the door?", answer="red") for n in range(99)]
    report_leaks([*hidden, Example("a", "Why is it red?", answer="red")], method, folder)
    folder.update.assert_not_called()
    report_leaks([*hidden, Example("a", "Q? The door is red.", reference="The door is red.")], method, folder)
    (call,) = folder.update.call_args_list
    assert call.kwargs["answers_in_prompts"].startswith("1 of 100 prompts of the student hold")
