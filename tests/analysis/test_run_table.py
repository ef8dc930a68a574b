"""The table of all runs: values by hand, and rows for runs of every state."""

import json
import os
from pathlib import Path

import pytest
from failures import raises
from run_files import write_job, write_run

from workbench.analysis.run_columns import csv_lines, filter_rows, row_values, shown_columns, sort_rows, table_texts
from workbench.analysis.run_table import RunRow, list_run_rows
from workbench.errors import ConfigError
from workbench.runs.labels import label_run


def evaluation(step: int, visible: float, privileged: float, confidence: float) -> dict:
    student = {f"accuracy/student/crop/{group}": 0.9 for group in ("all", "visible", "privileged")}
    student |= {"accuracy/student/plain/all": 0.5, "confidence/student/plain/all": 0.6}
    student |= {"accuracy/student/plain/visible": visible, "confidence/student/plain/visible": 0.7}
    student |= {"accuracy/student/plain/privileged": privileged, "confidence/student/plain/privileged": confidence}
    return {"kind": "eval", "step": step, "accuracy/teacher/plain/all": 0.1, **student}


METRICS = [
    evaluation(0, 0.25, 0.5, 0.75),
    {"kind": "train", "step": 1, "tokens_per_second": 100.0},
    {"kind": "train", "step": 2, "tokens_per_second": 300.0},
    evaluation(2, 0.4, 0.45, 0.8),
    {"kind": "train", "step": 3, "tokens_per_second": 110.0},
    evaluation(3, 0.75, 0.5, 0.875),
]


def only_row(runs_dir: Path) -> RunRow:
    (row,) = list_run_rows(runs_dir)
    return row


def test_row_of_finished_run_has_values_computed_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path, "a", METRICS)
    row = only_row(tmp_path)
    assert (row.name, row.status, row.method, row.seed, row.step, row.steps) == ("a", "finished", "dopd", 3, 9, 9)
    assert row.duration == 123.0
    assert row.measures.accuracy == {"all": (0.5, 0.5), "visible": (0.25, 0.75), "privileged": (0.5, 0.5)}
    assert row.measures.overconfidence == (0.25, 0.375)
    assert row.measures.tokens_per_second == 110.0
    assert row.reason == ""


def test_over_confidence_without_privileged_questions_is_that_of_all(tmp_path: Path) -> None:
    line = {"kind": "eval", "step": 0, "accuracy/student/plain/all": 0.5, "confidence/student/plain/all": 0.75}
    write_run(tmp_path, "a", [line])
    row = only_row(tmp_path)
    assert row.measures.accuracy == {"all": (0.5, 0.5)} and row.measures.overconfidence == (0.25, 0.25)
    columns = [column.key for column in shown_columns([row])]
    assert "accuracy" in columns and "visible" not in columns


def test_changed_metrics_are_read_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", METRICS[:3])
    assert only_row(tmp_path).measures.accuracy["visible"] == (0.25, 0.25)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(METRICS[3]) + "\n")
    assert only_row(tmp_path).measures.accuracy["visible"] == (0.25, 0.4)


def test_incomplete_last_line_is_not_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", METRICS[:2])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(METRICS[3])[:40])
    row = only_row(tmp_path)
    assert row.measures.accuracy["visible"] == (0.25, 0.25) and not row.measures.fault


def test_damaged_evaluation_is_named_with_its_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", METRICS[:3])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "eval", "step": 3, \n')
    row = only_row(tmp_path)
    assert row.status == "finished" and "metrics.jsonl:4" in row.reason


def test_run_that_failed_before_its_folder_is_a_row_with_its_error(tmp_path: Path) -> None:
    output = "workbench.errors.DataError: nofile.jsonl does not exist\n"
    write_job(tmp_path, "a", output, method="opd", seed=5, steps=7)
    row = only_row(tmp_path)
    assert (row.status, row.method, row.seed, row.steps, row.step) == ("failed", "opd", 5, 7, 0)
    assert "nofile.jsonl" in row.reason and row.duration is None


def test_run_whose_process_was_killed_is_a_row_that_died(tmp_path: Path) -> None:
    write_run(tmp_path, "a", status="running", pid=4_190_000)
    assert only_row(tmp_path).status == "died" and only_row(tmp_path).reason


def test_run_without_status_is_an_unreadable_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", METRICS)
    (folder / "run.json").unlink()
    row = only_row(tmp_path)
    assert row.status == "unreadable" and "run.json" in row.reason
    assert row.measures.accuracy["visible"] == (0.25, 0.75)


def test_run_with_half_a_status_is_an_unreadable_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    (folder / "run.json").write_text('{"status": "fini')
    assert only_row(tmp_path).status == "unreadable" and "run.json" in only_row(tmp_path).reason


def test_run_of_earlier_version_is_a_row_with_the_command_that_converts_it(tmp_path: Path) -> None:
    config = {"method": {"name": "opd"}, "evaluation": {"count": 4}}
    folder = write_run(tmp_path, "a", config=config)
    assert f"workbench upgrade {folder}" in only_row(tmp_path).reason


def test_link_out_of_the_folder_is_an_unreadable_row(tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", "a", METRICS)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "b").symlink_to(tmp_path / "elsewhere" / "a")
    row = only_row(tmp_path / "runs")
    assert row.status == "unreadable" and row.measures.accuracy == {} and "link" in row.reason


def test_folder_without_files_of_a_run_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("a: 1\n")
    assert list_run_rows(tmp_path) == [] and list_run_rows(tmp_path / "missing") == []


def test_runs_of_a_study_are_rows_with_its_name(tmp_path: Path) -> None:
    write_run(tmp_path / "study", "a-0", METRICS)
    assert only_row(tmp_path).name == "study/a-0"


def test_labels_are_in_the_row_and_damaged_ones_in_its_reason(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    label_run(tmp_path, "a", tags=["x"], note="why")
    assert only_row(tmp_path).labels.tags == ("x",) and only_row(tmp_path).labels.note == "why"
    (tmp_path / ".jobs/a/labels.json").write_text("{")
    assert "labels.json" in only_row(tmp_path).reason and only_row(tmp_path).labels.tags == ()


@pytest.fixture
def three(tmp_path: Path) -> list[RunRow]:
    write_run(tmp_path, "a", METRICS, seed=2)
    write_run(tmp_path, "b", method="opd", seed=1)
    write_job(tmp_path, "c", "ValueError: broken\n")
    label_run(tmp_path, "b", tags=["Ablation"])
    label_run(tmp_path, "c", archived=True)
    return list_run_rows(tmp_path)


def names(rows: list[RunRow]) -> list[str]:
    return [row.name for row in rows]


def test_sorting_puts_rows_without_a_value_last(three: list[RunRow]) -> None:
    assert names(sort_rows(three, "seed")) == ["b", "a", "c"]
    assert names(sort_rows(three, "-seed")) == ["a", "b", "c"]
    assert names(sort_rows(three, "-visible"))[0] == "a"
    with raises(ConfigError, "speed", "nothing"):
        sort_rows(three, "nothing")


def test_filter_finds_every_word_in_name_state_method_tags_and_reason(three: list[RunRow]) -> None:
    assert names(filter_rows(three, "opd ablation")) == ["b"]
    assert names(filter_rows(three, "broken")) == []
    assert names(filter_rows(three, "broken", archived=True)) == ["c"]
    assert sorted(names(filter_rows(three, ""))) == ["a", "b"]


def test_texts_show_first_and_last_value(three: list[RunRow]) -> None:
    header, cells = table_texts(sort_rows(three, "name"))
    row = dict(zip(header, cells[0], strict=True))
    assert row["visible"] == "25.0% → 75.0%" and row["over-confidence"] == "+25.0 → +37.5"
    assert row["privileged"] == "50.0%" and row["duration"] == "2 min" and row["tokens/s"] == "110"
    assert dict(zip(header, cells[2], strict=True))["visible"] == "–"


def test_csv_has_first_and_last_values_and_no_formulas(three: list[RunRow], tmp_path: Path) -> None:
    label_run(tmp_path, "a", note="=1+1")
    lines = "".join(csv_lines(sort_rows(list_run_rows(tmp_path), "name"))).splitlines()
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (row["accuracy_visible_first"], row["accuracy_visible_last"]) == ("0.25", "0.75")
    assert (row["overconfidence_first"], row["overconfidence_last"]) == ("0.25", "0.375")
    assert row["note"] == "'=1+1" and len(lines) == 4


def test_values_are_plain_for_json(three: list[RunRow]) -> None:
    values = {row["name"]: row for row in json.loads(json.dumps([row_values(row) for row in three]))}
    assert values["a"]["accuracy"]["visible"] == [0.25, 0.75] and values["c"]["archived"] is True
    assert values["c"]["state"] == "failed" and "broken" in values["c"]["reason"]


def test_states_of_runs_at_rest_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path, "a")
    assert only_row(tmp_path).step == 9
    monkeypatch.setattr("workbench.runs.jobs.read_job", lambda run_dir: pytest.fail("read again"))
    assert only_row(tmp_path).step == 9
    monkeypatch.undo()
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"steps_done": 8}))
    os.utime(folder / "run.json")
    assert only_row(tmp_path).step == 8
