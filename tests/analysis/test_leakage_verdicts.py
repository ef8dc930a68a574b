"""The four verdicts of a run: numbers by hand, and sentences that claim no more than their intervals."""

import math
from pathlib import Path

import pytest
from known_answers import STUDENT, TEACHER, rows

from workbench.analysis import illusion, leakage
from workbench.analysis.leakage import BAD, GOOD, NEUTRAL, OPEN, UNKNOWN, Verdict, verdicts
from workbench.evals.records import EvalRecord, save_records
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces

CONFIG = "models: {teacher: t}\nmethod: {name: dopd, privilege: crop}\n"
WRONG = rows(0, "teacher", "wrong_crop", "11100001", "visible")


def stored(tmp_path: Path, answered: list[EvalRecord], config: str = CONFIG) -> Path:
    folder = RunFolder.create(tmp_path / "demo", config, seed=0, method="dopd")
    for step in {row.step for row in answered}:
        save_records(folder.path, step, [row for row in answered if row.step == step])
    return folder.path


def many(step: int, rights: int, of: int, visibility: str, confidence: float) -> list[EvalRecord]:
    return rows(step, "student", "plain", "1" * rights + "0" * (of - rights), visibility, confidence)


def test_verdicts_known_records_give_numbers_by_hand(tmp_path: Path) -> None:
    """The numbers are derived in tests/evals/test_findings.py."""
    evidence, gain, over, loss = verdicts(stored(tmp_path, STUDENT + TEACHER + WRONG))
    assert (evidence.number, evidence.interval, evidence.state) == ("+50.0 points", "[+13.0, +87.0]", GOOD)
    assert [share.label for share in evidence.shares] == ["image alone", "with crop", "with wrong_crop"]
    assert (gain.number, gain.interval, gain.state) == ("+37.5 points", "[−14.1, +89.1]", OPEN)
    assert gain.sentence == "No change of accuracy is shown: +37.5 points [−14.1, +89.1]."
    assert over.number == "+60.0 points" and "from +5.0 to +65.0 points" in over.sentence
    assert (loss.number, loss.state) == ("–", UNKNOWN) and loss.sentence.startswith("No tokens are recorded")


@pytest.mark.parametrize(
    ("first", "last", "state", "begins"),
    [(10, 40, GOOD, "The student gained"), (40, 10, BAD, "The student lost"), (20, 20, OPEN, "No change of accuracy")],
)
def test_gain_sentence_follows_interval(tmp_path: Path, first: int, last: int, state: str, begins: str) -> None:
    answered = many(0, first, 50, "visible", 0.5) + many(9, last, 50, "visible", 0.5)
    gain = verdicts(stored(tmp_path, answered))[1]
    assert gain.state == state and gain.sentence.startswith(begins)


@pytest.mark.parametrize(
    ("confidence", "state", "begins"),
    [(0.9, BAD, "The student became more"), (0.1, GOOD, "The student became less"), (0.5, OPEN, "No change of over")],
)
def test_overconfidence_sentence_follows_interval(tmp_path: Path, confidence: float, state: str, begins: str) -> None:
    answered = many(0, 10, 50, "privileged", 0.5) + many(9, 10, 50, "privileged", confidence)
    over = verdicts(stored(tmp_path, answered))[2]
    assert over.state == state and over.sentence.startswith(begins)


def test_evidence_that_hurts_or_may_not_help_is_worded_so(tmp_path: Path) -> None:
    plain = rows(0, "teacher", "plain", "1" * 30 + "0" * 20, "visible")
    for name, rights, state in (("worse", 5, BAD), ("same", 30, OPEN)):
        crop = rows(0, "teacher", "crop", "1" * rights + "0" * (50 - rights), "visible")
        (tmp_path / name).mkdir()
        evidence: Verdict = verdicts(stored(tmp_path / name, STUDENT + plain + crop))[0]
        assert evidence.state == state and not evidence.sentence.startswith("Yes")


@pytest.mark.parametrize(
    ("answered", "config", "which", "remedy"),
    [
        (STUDENT, CONFIG, 0, "Add crop to evaluation.contexts"),
        (STUDENT, CONFIG.replace("crop", "hint"), 0, "Add hint to evaluation.contexts"),
        (STUDENT[:12] + TEACHER, CONFIG, 1, "Only step 0 is evaluated"),
        (TEACHER, CONFIG, 1, "Add plain to evaluation.contexts"),
        ([], CONFIG + "data: {eval: null}\n", 1, "data.eval=SOURCE"),
        ([], CONFIG + "data: {eval: null}\n", 0, "data.eval=SOURCE"),
        ([], CONFIG + "data: {eval: some.jsonl}\n", 0, "The first one runs before step 1"),
        (rows(0, "student", "plain", "1", None) + rows(9, "student", "plain", "1", None), CONFIG, 2, "max_examples"),
    ],
)
def test_verdict_not_known_names_config_key(
    tmp_path: Path, answered: list[EvalRecord], config: str, which: int, remedy: str
) -> None:
    verdict = verdicts(stored(tmp_path, answered, config))[which]
    assert verdict.state == UNKNOWN and verdict.number == "–" and remedy in verdict.sentence


@pytest.mark.parametrize(
    ("answered", "config", "which", "note"),
    [
        (STUDENT + TEACHER, CONFIG, 0, "Add wrong_crop to evaluation.contexts"),
        (STUDENT, CONFIG, 0, "evaluation.teacher=true"),
        (STUDENT + TEACHER, CONFIG.replace("crop", "hint"), 0, "The evidence of this run, hint, was not evaluated"),
        (rows(0, "student", "plain", "10", None) + rows(9, "student", "plain", "11", None), CONFIG, 2, "no marks"),
    ],
)
def test_verdict_notes_name_what_was_not_recorded(
    tmp_path: Path, answered: list[EvalRecord], config: str, which: int, note: str
) -> None:
    assert note in " ".join(verdicts(stored(tmp_path, answered, config))[which].notes)


def test_ratio_interval_equals_hand_computed() -> None:
    # ratio 10/20; residuals -1, 1, 0, 0; squares sum to 2; 4/3 of it, root over 20
    margin = 1.96 * math.sqrt(4 / 3 * 2) / 20
    assert leakage.ratio_interval([(1, 4), (3, 4), (2, 4), (4, 8)]) == pytest.approx((0.5 - margin, 0.5 + margin))
    assert leakage.ratio_interval([(1, 4), (3, 4)]) == (0.5, 0.5)


def test_loss_verdict_equals_traces(trained: Path) -> None:
    loss = verdicts(trained / "dopd")[3]
    explained = "FILTER (abs(information_gap) > abs(capability_gap))"
    query = f"SELECT sum(abs(contribution)) {explained} / sum(abs(contribution)) AS share FROM tokens"
    (row,) = open_traces(trained / "dopd").sql(query).to_pylist()
    assert loss.state == NEUTRAL and loss.shares[0].value == pytest.approx(row["share"], rel=1e-3)
    assert "steps 1 to 4" in loss.over and loss.number in loss.sentence
    assert verdicts(trained / "opd")[3].state == UNKNOWN


def test_confident_errors_have_answers_before_training(tmp_path: Path) -> None:
    run_dir = stored(tmp_path, STUDENT)
    result = leakage.confident_errors(run_dir).rows
    assert [row["confidence"] for row in result] == [0.9] * 3 + [0.5] * 3 and result[0]["step"] == 9
    first = next(row for row in result if row["example"] == "privileged0")
    assert (first["confidence_before"], first["right_before"]) == (0.3, True)
    rates = {(row["step"], row["visibility"]): row for row in leakage.confident_error_rates(run_dir).rows}
    assert (rates[0, "privileged"]["errors"], rates[9, "privileged"]["errors"]) == (0, 3)
    assert rates[9, "privileged"]["share"] == 0.75 and rates[9, "visible"]["errors"] == 0


def test_worst_cases_between_steps_are_of_those_steps(trained: Path) -> None:
    whole = illusion.worst_cases(trained / "dopd", limit=500).frame
    early = illusion.worst_cases(trained / "dopd", limit=500, between=(1, 2)).frame
    assert len(early) == (whole["step"] <= 2).sum() and set(early["step"]) <= {1, 2}
