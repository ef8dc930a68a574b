"""Accuracies on common questions and flips, against numbers worked out by hand."""

import math
from pathlib import Path

import pytest
from known_answers import rows

from workbench.analysis.common_questions import NO_COMMON, both_answers, common_accuracy, flips
from workbench.evals.records import EvalRecord, save_records


def save(folder: Path, name: str, records: list[EvalRecord], step: int = 9) -> Path:
    run = folder / name
    run.mkdir()
    save_records(run, step, records)
    return run


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Visible questions 0 to 3 and privileged 0 are common; `b` lacks visible 4, `c` has privileged 1 alone."""
    a = [*rows(9, "student", "plain", "11000", "visible"), *rows(9, "student", "plain", "1", "privileged")]
    b = [*rows(9, "student", "plain", "1011", "visible"), *rows(9, "student", "plain", "0", "privileged")]
    c = [*rows(9, "student", "plain", "11001", "visible"), *rows(9, "student", "plain", "11", "privileged")]
    b += rows(9, "student", "crop", "1111", "visible") + rows(9, "teacher", "plain", "1111", "visible")
    folders = [save(tmp_path, name, records) for name, records in zip("abc", (a, b, c), strict=True)]
    save_records(folders[0], 2, rows(2, "student", "plain", "00000", "visible"))
    return folders


def test_common_accuracy_three_runs_equal_hand_computed(three: list[Path]) -> None:
    """`b` minus `a` on visible questions: 0, -1, 1, 1, so 1/4 with variance 11/12; on all: 0, -1, 1, 1, -1."""
    result = common_accuracy(*three)
    assert result.common == 5 and result.left_out == {"a": 1, "b": 0, "c": 2} and result.unanswered == ()
    measured = {(row["visibility"], row["run"]): row for row in result.accuracies.rows}
    assert [measured["visible", run]["accuracy"] for run in "abc"] == [0.5, 0.75, 0.5]
    assert [measured["all", run]["accuracy"] for run in "abc"] == [0.6, 0.6, 0.6]
    assert [measured["privileged", run]["accuracy"] for run in "abc"] == [1, 0, 1]
    assert [measured[group, "b"]["count"] for group in ("visible", "privileged", "all")] == [4, 1, 5]
    visible, margin = measured["visible", "b"], 1.96 * math.sqrt(11 / 12 / 4)
    assert [visible[name] for name in ("difference", "low", "high")] == pytest.approx(
        [0.25, 0.25 - margin, 0.25 + margin]
    )
    assert (visible["gained"], visible["lost"], visible["step"]) == (2, 1, 9)
    every, margin = measured["all", "b"], 1.96 * math.sqrt(4 / 4 / 5)
    assert [every[name] for name in ("difference", "low", "high")] == pytest.approx([0, -margin, margin])
    assert measured["privileged", "b"]["difference"] == -1 and measured["privileged", "b"]["low"] is None
    assert measured["all", "a"]["difference"] is None and measured["all", "c"]["difference"] == 0


def test_flips_both_directions_name_question_and_answers(three: list[Path]) -> None:
    result = flips(three[0], three[1])
    assert [(row["flip"], row["example"]) for row in result.rows] == [
        ("wrong to right", "visible2"),
        ("wrong to right", "visible3"),
        ("right to wrong", "visible1"),
        ("right to wrong", "privileged0"),
    ]
    assert {(row["expected"], row["answer_a"], row["answer_b"]) for row in result.rows} == {("3", "3", "3")}
    assert "none is right" in flips(three[0], three[0]).empty


def test_common_accuracy_unanswered_run_is_named_and_restricts_nothing(three: list[Path], tmp_path: Path) -> None:
    ungraded = [EvalRecord(9, "student", "plain", "visible0", "", None, None, "3", None, 0.5, 2, True)]
    runs = [save(tmp_path, "ungraded", ungraded), *three[:2]]
    result = common_accuracy(*runs)
    assert result.unanswered == ("ungraded",) and result.common == 5
    assert [row["difference"] for row in result.accuracies.rows if row["run"] == "a"] == [None] * 3
    assert flips(runs[0], runs[1]).empty == NO_COMMON


def test_common_accuracy_other_questions_are_not_common(three: list[Path], tmp_path: Path) -> None:
    other = save(tmp_path, "other", rows(9, "student", "plain", "11", "else"))
    result = common_accuracy(three[0], other)
    assert result.accuracies.empty == NO_COMMON and result.left_out == {"a": 6, "other": 2}
    assert both_answers(three[0], other, "visible0") is None
    answers = both_answers(three[0], three[1], "visible1")
    assert answers is not None and [answer.reward for answer in answers] == [1, 0]
