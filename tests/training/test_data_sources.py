"""Training on several sources: counts in the log, and resume after a stop."""

import json
from pathlib import Path

import pytest
from failures import raises
from small import run_config, without_weights

from workbench.errors import DataError
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.check import check_config
from workbench.training.run import resume, train

SOURCES = [
    {"path": "scenes:train?count=9", "weight": 2, "name": "many"},
    {"path": "scenes:hard?count=2", "name": "few", "domain": "hard"},
]
DRAWN = "SELECT step, example_id FROM rollouts ORDER BY step, rollout_idx"


def interrupt_after(after: int):
    """Raises after a step, later than the newest checkpoint."""

    def on_step(step: int, metrics: dict) -> None:
        if step == after:
            raise InterruptedError

    return on_step


def test_train_draws_from_sources_by_weight_and_resumes(models: dict, tmp_path: Path) -> None:
    whole = run_config(models, tmp_path / "whole", data__train=SOURCES, data__eval=None)
    train(whole)
    rows = open_traces(whole.run_dir).sql(DRAWN).to_pylist()
    for step in range(1, 5):  # three questions a step, each answered twice
        assert sum(row["example_id"].startswith("few/") for row in rows if row["step"] == step) == 2
    sources = RunFolder.open(whole.run_dir).status["sources"]
    assert sources[0] == "many: 9 of 9 examples, 66.7% of the draws, 0.89 passes"
    assert sources[1].startswith("few: 2 of 2 examples, 33.3% of the draws, 2.00 passes, domain hard")
    half = run_config(models, tmp_path / "half", data__train=SOURCES, data__eval=None)
    with pytest.raises(InterruptedError):
        train(half, on_step=interrupt_after(3))
    assert resume(half.run_dir).steps == 4
    assert open_traces(half.run_dir).sql(DRAWN).to_pylist() == rows
    losses = [[line["loss"] for line in RunFolder.open(c.run_dir).metrics("train")] for c in (whole, half)]
    assert losses[0] == losses[1]


def test_check_shows_sources_and_order(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, data__train=SOURCES, data__eval=None, data__shuffle=False)
    findings = [(check.name, check.finding) for check in check_config(config)]
    assert [text.partition(":")[0] for name, text in findings if name == "source of data.train"] == ["many", "few"]
    assert dict(findings)["order of examples"] == "as in the data, in every epoch"


def test_train_source_without_evidence_raises_before_models_are_loaded(models: dict, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_text(json.dumps({"question": "What?"}) + "\n")
    data = ["scenes:train?count=4", str(tmp_path / "bare.jsonl")]
    config = run_config(without_weights(models, tmp_path), tmp_path, data__train=data)
    with raises(DataError, "data.train[1]", "bare.jsonl"):
        train(config)
