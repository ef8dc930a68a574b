"""Accuracy and calibration, by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failures import raises
from small import answered, example
from table_policy import LogitTablePolicy

from workbench.errors import DataError, RunError
from workbench.evals.evaluate import evaluate_policy, visibility_of
from workbench.evals.records import (
    forget_answers_after,
    load_records,
    measure,
    require_answers,
    save_records,
    summarize,
    tabulate,
)
from workbench.types import Mark


def test_measure_calibration_equals_hand_computed() -> None:
    """Bins: 0.15 | 0.95, 0.99 | 0.55, 0.52: |-0.15| and |0.95 + 0.99 - 1| and |0.55 + 0.52 - 1|, over five."""
    measured = measure(answered((0.0, 0.15), (1.0, 0.95), (0.0, 0.99), (1.0, 0.55), (0.0, 0.52)))
    assert measured.count == 5
    assert measured.accuracy == pytest.approx(0.4)
    assert measured.confidence == pytest.approx((0.15 + 0.95 + 0.99 + 0.55 + 0.52) / 5)
    assert measured.overconfidence == pytest.approx(measured.confidence - 0.4)
    assert measured.calibration_error == pytest.approx((0.15 + 0.94 + 0.07) / 5)


def test_calibration_error_certain_answers_is_zero_or_one() -> None:
    assert measure(answered((1.0, 1.0), (1.0, 1.0))).calibration_error == 0.0
    assert measure(answered((0.0, 1.0))).calibration_error == 1.0
    assert measure(answered((0.0, 0.0))).calibration_error == 0.0
    assert measure(answered((1.0, 0.5), (0.0, 0.5))).calibration_error == 0.0


def test_measure_ungraded_questions_are_not_counted() -> None:
    assert measure(answered((None, 0.9))) is None
    assert measure([]) is None
    assert measure(answered((None, 0.9), (1.0, 0.2))).count == 1


def test_tabulate_has_every_group_and_all() -> None:
    rows = answered((1.0, 0.9), visibility="visible") + answered((0.0, 0.8), (0.0, 0.7), visibility="privileged")
    table = tabulate(rows)
    assert {key[3]: measured.count for key, measured in table.items()} == {"all": 3, "visible": 1, "privileged": 2}
    flat = summarize(table)
    assert flat["accuracy/student/plain/visible"] == 1.0
    assert flat["confidence/student/plain/privileged"] == pytest.approx(0.75)
    assert (flat["length/student/plain/all"], flat["truncated/student/plain/all"]) == (2.0, 0.0)


def policy() -> LogitTablePolicy:
    """Writes 5 3 END with probabilities that are known."""
    rows = [[0.1, 0.0, 0.0, 0.1, 0.0, 0.8], [0.1, 0.0, 0.0, 0.6, 0.3, 0.0], [0.5, 0.0, 0.0, 0.25, 0.25, 0.0]]
    return LogitTablePolicy("student", {"plain": torch.tensor(rows).clamp(min=1e-9).log()})


def test_confidence_with_marks_is_that_of_the_answer() -> None:
    (row,) = evaluate_policy(
        policy(), [example(marks=(Mark(r"(\d) $", "answer", "privileged"),))], "plain", step=7, max_completion_length=5
    )
    assert (row.text, row.reward, row.visibility, row.step, row.finished, row.length) == (
        "5 3",
        1.0,
        "privileged",
        7,
        True,
        3,
    )
    assert row.confidence == pytest.approx(0.6, abs=1e-5)


def test_confidence_with_marks_covers_privileged_tokens_only() -> None:
    """Writes 5 3 END: 5 is read where all can see, 3 is what the evidence shows; if visible, both are the answer's."""
    position = Mark(r"^(\d)", "location", "visible")
    for visibility, expected in (("privileged", 0.6), ("visible", 0.8 * 0.6)):
        marked = example(marks=(position, Mark(r"(\d) $", "answer", visibility)))
        (row,) = evaluate_policy(policy(), [marked], "plain", step=0, max_completion_length=5)
        assert row.confidence == pytest.approx(expected, abs=1e-5), visibility


def test_entropy_is_mean_over_sampled_tokens() -> None:
    rows = [[0.1, 0.1, 0.8], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25]]
    expected = sum(-p * math.log(p) for row in rows for p in row) / 3
    for size in (1, 64):
        result = evaluate_policy(
            policy(), [example(0), example(1)], "plain", step=0, max_completion_length=5, batch_size=size
        )
        assert [row.entropy for row in result] == pytest.approx([expected] * 2, abs=1e-5)
    (cut,) = evaluate_policy(policy(), [example()], "plain", step=0, max_completion_length=1)
    assert cut.entropy == pytest.approx(sum(-p * math.log(p) for p in rows[0]), abs=1e-5)


def test_measure_entropy_and_length_are_means() -> None:
    rows = answered((1.0, 0.5), (0.0, 0.5))
    measured = measure([replace(rows[0], entropy=0.2, length=4), replace(rows[1], entropy=0.4, length=7)])
    assert (measured.entropy, measured.length) == (pytest.approx(0.3), 5.5)
    assert measure([replace(rows[0], entropy=0.2), rows[1]]).entropy is None, "one was written before entropies were"


def test_confidence_without_marks_is_geometric_mean() -> None:
    (row,) = evaluate_policy(policy(), [example()], "plain", step=0, max_completion_length=5)
    assert row.confidence == pytest.approx(math.prod((0.8, 0.6, 0.5)) ** (1 / 3), abs=1e-5)
    (cut,) = evaluate_policy(policy(), [example()], "plain", step=0, max_completion_length=1)
    assert (cut.finished, cut.reward) == (False, 0.0)


def test_records_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    rows = answered((1.0, 0.5), (None, 0.25), text='é "quoted"\n')
    save_records(tmp_path, 3, rows)
    save_records(tmp_path, 10, answered((0.0, 1.0), step=10))
    assert load_records(tmp_path) == [*rows, *answered((0.0, 1.0), step=10)]
    forget_answers_after(tmp_path, 3)
    assert load_records(tmp_path) == rows
    assert load_records(tmp_path / "nothing") == []
    file = tmp_path / "evals" / "step-000003.jsonl"
    file.write_text(file.read_text()[:-20])
    with raises(RunError, "step-000003.jsonl:2"):
        load_records(tmp_path)
    file.write_text(json.dumps({"unknown": 1}) + "\n")
    with raises(RunError, "step-000003.jsonl:1"):
        load_records(tmp_path)


def test_require_answers_without_any_raises() -> None:
    with raises(DataError, "2 evaluation", "answer"):
        require_answers([example(0, answer=None), example(1, answer=None)])
    require_answers([example(0, answer=None), example(1)])


def test_visibility_of_any_privileged_mark_is_privileged() -> None:
    marks = tuple(Mark("(x)", "answer", visibility) for visibility in ("visible", None, "privileged"))
    assert visibility_of(example(marks=marks)) == "privileged"
    assert visibility_of(example(marks=marks[:2])) == "visible"
    assert visibility_of(example(marks=(Mark("(x)", "tag", "privileged"),))) is None


def test_numeric_grader_tolerance_accepts_near_number() -> None:
    near = example(answer="4")  # and 3 is written
    options = {"step": 0, "max_completion_length": 5, "grader": "numeric"}
    rewards = [
        evaluate_policy(policy(), [near], "plain", **options, **values)[0].reward
        for values in ({}, {"tolerance": 0.25})
    ]
    assert rewards == [0.0, 1.0]
