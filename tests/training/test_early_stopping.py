"""Early stopping: by hand on values, then in a run with its resume and its best checkpoint."""

from pathlib import Path

import pytest
from failures import raises
from small import run_config

from workbench.analysis.summary import summarize_run
from workbench.errors import ConfigError
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.training.early_stopping import EarlyStopping
from workbench.training.run import resume, train

METRIC = "accuracy/student/plain/all"


def stopping(models: dict, values: list[float], metric: str = METRIC, **keys: object) -> EarlyStopping:
    keys = {f"evaluation__early_stopping_{key}": value for key, value in keys.items()}
    config = run_config(models, "runs", evaluation__every=1, evaluation__metric_for_best_model=metric, **keys)
    return EarlyStopping(config, [{"step": step, metric: value} for step, value in enumerate(values)])


@pytest.mark.parametrize(
    ("values", "threshold", "best", "exhausted"),
    [
        ([0.1, 0.2, 0.2, 0.19], 0.0, 1, True),
        ([0.1, 0.2, 0.2, 0.21], 0.0, 3, False),
        ([0.1, 0.2, 0.2], 0.0, 1, False),
        ([0.1, 0.15, 0.2, 0.24], 0.1, 3, False),  # 0.2 - 0.1 is not more than 0.1 in floating point either
        ([0.1, 0.15, 0.19], 0.1, 0, True),
        ([], 0.0, 0, False),
    ],
)
def test_early_stopping_counts_evaluations_without_improvement(
    values: list[float], threshold: float, best: int, exhausted: bool
) -> None:
    state = stopping({"student": "s", "teacher": "t"}, values, patience=2, threshold=threshold)
    assert (state.best_step, state.exhausted) == (best, exhausted)


def test_early_stopping_calibration_error_improves_downward() -> None:
    metric = "calibration_error/student/plain/all"
    state = stopping({"student": "s", "teacher": "t"}, [0.3, 0.2, 0.25], metric, patience=1)
    assert (state.best_step, state.best, state.exhausted) == (1, 0.2, True)


def test_early_stopping_missing_group_raises_with_groups() -> None:
    state = stopping({"student": "s", "teacher": "t"}, [], "accuracy/student/plain/privileged", patience=1)
    with raises(ConfigError, "evaluation.metric_for_best_model", "accuracy/student/plain/visible"):
        state.update(0, {"accuracy/student/plain/visible": 1.0, "length/student/plain/all": 2.0})


def test_train_stops_early_keeps_best_checkpoint_and_resume_says_so(models: dict, tmp_path: Path) -> None:
    """Models of random weights answer nothing right, so the accuracy before training stays the best."""
    values = {"evaluation__every": 1, "evaluation__contexts": ["plain"], "evaluation__max_examples": 2}
    values |= {"evaluation__early_stopping_patience": 2, "training__save_every": 0, "training__save_total_limit": 1}
    config = run_config(models, tmp_path, **values)
    result = train(config)
    assert (result.steps, result.stopped) == (2, False)
    status = RunFolder.open(config.run_dir).status
    assert status["status"] == "finished" and status["stopped_early"].startswith("stopped early at step 2")
    assert "at step 0 (the student before training)" in status["best_evaluation"]
    assert [checkpoint.step for checkpoint in list_checkpoints(config.run_dir)] == [2]
    assert status["stopped_early"] in summarize_run(config.run_dir)
    again = resume(config.run_dir)
    assert (again.steps, again.stopped) == (2, False)
    log = (config.run_dir / "train.log").read_text()
    assert log.count("stopped early at step 2") == 2 and "nothing is left to train" in log
    assert RunFolder.open(config.run_dir).status["status"] == "finished"
