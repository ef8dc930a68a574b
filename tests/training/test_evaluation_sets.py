"""Named evaluation sets and held-out rows, in a run: metrics, records, summary, check and `workbench eval`."""

from pathlib import Path

import pytest
from failures import raises
from small import run_config, without_weights

from workbench.analysis.summary import dataset_table, summarize_run
from workbench.config.schema import RunConfig
from workbench.errors import DataError
from workbench.evals.records import load_records
from workbench.runs.folder import RunFolder
from workbench.training.check import check_config
from workbench.training.run import train
from workbench.training.scorer import evaluate_run

SETS = {
    "near": "scenes:eval?count=3",
    "far": {"path": "scenes:hard?count=2", "contexts": ["plain"], "grader": "contains", "max_examples": 0},
}


@pytest.fixture(scope="module")
def config(models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of one step with two evaluation sets."""
    values = {"training__steps": 1, "evaluation__max_examples": 2, "data__eval": SETS}
    config = run_config(models, tmp_path_factory.mktemp("runs"), **values)
    train(config)
    return config


def test_train_evaluates_every_set_in_its_contexts(config: RunConfig) -> None:
    records = [row for row in load_records(config.run_dir) if row.policy == "student" and row.step == 1]
    assert {(row.dataset, row.context, row.example_id.partition("/")[0]) for row in records} == {
        ("near", "plain", "near"),
        ("near", "crop", "near"),
        ("far", "plain", "far"),
    }
    assert sum(row.context == "plain" for row in records) == 4
    metrics = RunFolder.open(config.run_dir).metrics("eval")[-1]
    parts = [metrics[f"length/student/plain/{name}"] for name in ("near", "far")]
    assert metrics["length/student/plain/all"] == pytest.approx(sum(parts) / 2)  # two questions each
    assert "accuracy/student/crop/far" not in metrics


def test_summary_has_a_row_for_each_set(config: RunConfig) -> None:
    (text,) = dataset_table(load_records(config.run_dir))
    rows = [line.split()[:4] for line in text.splitlines()[2:]]
    assert ["near", "student", "crop", "2"] in rows and ["far", "teacher", "plain", "2"] in rows
    assert text in summarize_run(config.run_dir)


def test_check_counts_rows_of_every_set(config: RunConfig) -> None:
    assert {"rows of data.eval.near", "rows of data.eval.far"} <= {check.name for check in check_config(config)}


def test_evaluate_run_repeats_its_sets_or_another_file(config: RunConfig) -> None:
    again = evaluate_run(config.run_dir)
    stored = [row for row in load_records(config.run_dir) if row.step == 1]
    students = [row for row in again if row.policy == "student"]
    assert sorted((row.example_id, row.context, row.text) for row in students) == sorted(
        (row.example_id, row.context, row.text) for row in stored
    )
    other = evaluate_run(config.run_dir, data="scenes:eval?count=1", contexts=["plain"])
    assert {(row.dataset, row.example_id) for row in other} == {("", "scenes:eval:0:0")}


def test_train_holds_rows_out_and_counts_them(models: dict, tmp_path: Path) -> None:
    values = {"training__steps": 1, "data__eval": None, "data__held_out": 0.3, "evaluation__max_examples": 2}
    config = run_config(models, tmp_path, **values)
    train(config)
    log = (config.run_dir / "train.log").read_text()
    lines = (config.run_dir / "examples.jsonl").read_text().splitlines()
    num_train, num_evaluated = (sum(f'"{key}"' in line for line in lines) for key in ("data.train", "data.eval"))
    assert num_evaluated == 2 and num_train < 11
    assert f"data.held_out=0.3: {12 - num_train} of 12 examples are set aside, 2 of them are evaluated" in log
    evaluated = {row.example_id for row in load_records(config.run_dir)}
    assert {row.example_id for row in evaluate_run(config.run_dir, contexts=["plain"])} == evaluated


def test_train_holds_out_nothing_raises_before_models_are_loaded(models: dict, tmp_path: Path) -> None:
    config = run_config(without_weights(models, tmp_path), tmp_path, data__eval=None, data__held_out=1e-9)
    with raises(DataError, "data.held_out=1e-09", "12 examples"):
        train(config)
