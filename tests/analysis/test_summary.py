import subprocess
from dataclasses import replace
from pathlib import Path

from failures import raises

from workbench.analysis.summary import accuracy_table, evaluation_table, format_table, peer_table, summarize_run
from workbench.errors import RunError
from workbench.evals.records import EvalRecord, save_records
from workbench.runs.folder import RunFolder


def row(step: int, policy: str, context: str, reward: float | None, visibility: str | None = None) -> EvalRecord:
    return EvalRecord(step, policy, context, "e", "", visibility, "3", "3", reward, 0.5, 2, True)


def test_format_table_aligns_text_left_and_numbers_right() -> None:
    table = format_table(("name", "count"), [("a", "1"), ("longer", "1,234"), ("b", "-")])
    assert table.splitlines() == [
        "  name    count",
        "  ──────  ─────",
        "  a           1",
        "  longer  1,234",
        "  b           -",
    ]


def test_accuracy_table_shows_first_and_last_evaluation() -> None:
    rows = [row(0, "student", "plain", 0.0, "visible"), row(0, "student", "plain", 1.0, "privileged")]
    rows += [row(5, "student", "plain", 0.0, "visible"), row(5, "student", "plain", 0.0, "privileged")]
    rows += [row(9, "student", "plain", 1.0, "visible"), row(9, "student", "plain", 1.0, "privileged")]
    rows[-1] = replace(rows[-1], length=9, finished=False)
    rows += [row(0, "teacher", "crop", None, "visible")]
    header, _, student, teacher, legend = accuracy_table(rows).splitlines()
    assert header.split() == [
        "accuracy",
        "context",
        "questions",
        "all",
        "@0",
        "@9",
        "visible",
        "@0",
        "@9",
        "privileged",
        "@0",
        "@9",
        "tokens",
        "@0",
        "@9",
        "truncated",
        "@0",
        "@9",
    ]
    assert student.split() == [
        "student",
        "plain",
        "2",
        "50.0%",
        "100.0%",
        "0.0%",
        "100.0%",
        "100.0%",
        "100.0%",
        "2.0",
        "5.5",
        "0.0%",
        "50.0%",
    ]
    assert teacher.split() == ["teacher", "crop", "1", *["-"] * 10]
    assert "truncated: share of answers that reached" in legend


def test_peer_table_counts_repaired_and_broken_by_domain() -> None:
    outcomes = {("student", "tag"): ("0110", "1110"), ("ann", "tag"): ("11", "01"), ("ann", "count"): ("0", "1")}
    rows = []
    for (policy, kind), by_step in outcomes.items():
        for step, outcome in zip((0, 9), by_step, strict=True):
            for number, right in enumerate(outcome):
                item = replace(row(step, policy, "plain", float(right)), domain=kind, example_id=f"{kind}{number}")
                rows.append(item)
    assert peer_table([entry for entry in rows if entry.policy == "ann"]) == []
    header, _, *lines = peer_table([*rows, row(0, "teacher", "plain", 1.0)])[0].splitlines()
    assert header.split()[-4:] == ["@0", "@9", "repaired", "broken"]
    assert [line.split() for line in lines] == [
        ["count", "ann", "plain", "1", "0.0%", "100.0%", "100.0%", "0.0%"],
        ["tag", "ann", "plain", "2", "100.0%", "50.0%", "0.0%", "50.0%"],
        ["tag", "student", "plain", "4", "50.0%", "75.0%", "25.0%", "0.0%"],
    ]


def test_accuracy_table_without_answers_says_so() -> None:
    assert "no evaluation" in accuracy_table([])


def test_summary_of_failed_run_has_its_error(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "", seed=0, method="dopd")
    folder.update(status="failed", error="step 3: no number", skipped={"no hint": 2}, warnings=["step 2: collapsing."])
    save_records(folder.path, 0, [row(0, "student", "plain", 1.0)])
    text = summarize_run(folder.path)
    for part in ("dopd · 0 steps · failed", "100.0%", "no hint: 2", "warning: step 2: collapsing.", "error: step 3"):
        assert part in text


def test_summary_of_dead_run_names_resume(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "", seed=0, method="dopd")
    assert "· running ·" in summarize_run(folder.path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder.update(pid=gone.pid)
    text = summarize_run(folder.path)
    assert "· died ·" in text and f"workbench resume {folder.path}" in text


def test_summary_of_other_folder_raises(tmp_path: Path) -> None:
    with raises(RunError, "run folder"):
        summarize_run(tmp_path)


def test_evaluation_table_notes_missing_evidence() -> None:
    both = [replace(row(0, "student", "plain", 1.0), example_id=name) for name in "ab"]
    table = evaluation_table([*both, replace(both[0], context="crop")])
    assert table.endswith("student, crop: only 1 of 2 questions, those that have its evidence")
    assert "only the" not in evaluation_table(both)
