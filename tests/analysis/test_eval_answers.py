"""Answers of evaluations: filters and orders against counts by hand, and addresses that do not exist."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from failures import raises

from workbench.analysis.eval_answers import EvaluationAnswers
from workbench.analysis.query import open_answers
from workbench.cli import main
from workbench.errors import TraceError
from workbench.evals.records import EvalRecord
from workbench.traces.reader import NoTraces
from workbench.traces.selection import parse_selection


def record(step: int, example: str, text: str, reward: float | None, confidence: float, **values: object) -> EvalRecord:
    facts = {"policy": "student", "context": "plain", "domain": "d", "visibility": "visible", "answer": "red"}
    facts |= {"length": len(text), "finished": True, "question": f"what is {example}?"}
    return EvalRecord(
        step=step, example_id=example, text=text, reward=reward, confidence=confidence, **{**facts, **values}
    )


RECORDS = [
    record(0, "a", "red", 1.0, 0.9),
    record(0, "b", "Blue cross", 0.0, 0.8, visibility="privileged"),
    record(0, "a", "red", 1.0, 0.95, policy="teacher", context="crop"),
    record(20, "a", "redder", 0.0, 0.7),
    record(20, "b", "blue", None, 0.2, visibility="privileged", domain="e"),
]


@pytest.fixture
def answers(tmp_path: Path) -> EvaluationAnswers:
    (tmp_path / "evals").mkdir()
    for step in (0, 20):
        lines = [json.dumps(asdict(item)) for item in RECORDS if item.step == step]
        (tmp_path / f"evals/step-{step:06d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return EvaluationAnswers(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(20, 0), (20, 1), (0, 0), (0, 1), (0, 2)]),
        ("grade=incorrect", [(20, 0), (0, 1)]),
        ("grade=unknown", [(20, 1)]),
        ("visibility=privileged", [(20, 1), (0, 1)]),
        ("policy=teacher context=crop", [(0, 2)]),
        ("confidence>=0.8 sort:-confidence", [(0, 2), (0, 0), (0, 1)]),
        ("sort:confidence step=0", [(0, 1), (0, 0), (0, 2)]),
        ("blue", [(20, 1), (0, 1)]),
        ("answer:/^red$/", [(0, 0), (0, 2)]),
        ("question:/is b/i tokens>4", [(0, 1)]),
        ("domain!=d", [(20, 1)]),
        ("expected=green", []),
    ],
)
def test_selection_keeps_the_answers_that_match(answers: EvaluationAnswers, text: str, expected: list) -> None:
    selection = parse_selection(text, "evaluation")
    rows = answers.rows(selection, limit=10)
    assert [(row["step"], row["rollout_idx"]) for row in rows] == expected
    assert answers.count(selection) == len(expected)
    keys, total = answers.keys(selection, page_idx=1, size=2)
    assert [(step, index) for step, _, index in keys] == expected[2:4] and total == len(expected)


@pytest.mark.parametrize("text", ["token.regime=HS", "loss>1", "sort:loss", "in:evaluation reference:x"])
def test_field_that_evaluations_lack_raises(text: str) -> None:
    with raises(TraceError, "filter, character"):
        parse_selection(text, "evaluation")


def test_get_returns_the_line_or_names_what_there_is(answers: EvaluationAnswers, tmp_path: Path) -> None:
    assert answers.get(0, 2)["policy"] == "teacher" and answers.get(20, 1)["completion"] == "blue"
    with raises(TraceError, "no answer 2", "0 to 1"):
        answers.get(20, 2)
    with raises(TraceError, "step 3", "0, 20"):
        answers.get(3, 0)
    assert answers.choices() == {"step": [0, 20], "domain": ["d", "e"], "visibility": ["privileged", "visible"]}


def test_evaluation_written_later_is_seen(answers: EvaluationAnswers) -> None:
    later = json.dumps(asdict(record(40, "a", "red", 1.0, 0.5)))
    (answers.run_dir / "evals/step-000040.jsonl").write_text(f"{later}\n")
    assert answers.count(parse_selection("", "evaluation")) == 6 and answers.get(40, 0)["confidence"] == 0.5


def test_page_of_run_without_evaluations_says_why(tmp_path: Path) -> None:
    page = EvaluationAnswers(tmp_path).page(parse_selection("", "evaluation"), page_idx=0, size=5)
    assert page.rows == [] and "evaluation" in page.empty


def test_open_answers_without_traces_has_evaluations_alone(
    answers: EvaluationAnswers, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    opened = open_answers(answers.run_dir, runs_dir=tmp_path.parent)
    assert opened.count("in:evaluation") == 5 and opened.evaluated(20, 0)["answer"] == "redder"
    with raises(NoTraces, "No tokens are recorded"):
        opened.select()
    assert main(["answers", str(tmp_path), "--where", "in:evaluation grade=incorrect", "--json"]) in (0, None)
    assert [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()] == ["redder", "Blue cross"]
    (tmp_path / "bare").mkdir()
    with raises(NoTraces, "holds no traces"):
        open_answers(tmp_path / "bare")
