"""training.epochs: the steps that it means, in a run, after a stop, and in check."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import run_config

from workbench.config.schema import RunConfig
from workbench.runs.folder import RunFolder
from workbench.runs.jobs import read_job
from workbench.training.check import check_config
from workbench.training.length import describe_steps, with_steps
from workbench.training.run import resume, train


@pytest.fixture
def config(models: dict, tmp_path: Path) -> RunConfig:
    """Twelve examples in batches of five."""
    training = {"epochs": 1.5, "batch_size": 5, "learning_rate": 1e-3, "save_every": 2}
    return run_config(models, tmp_path, training=training, data__eval=None, trace__probes=0)


@pytest.mark.parametrize(("epochs", "count", "steps"), [(1.5, 12, 4), (1.0, 10, 2), (1.0, 11, 3), (0.01, 12, 1)])
def test_with_steps_rounds_up(config: RunConfig, epochs: float, count: int, steps: int) -> None:
    config = replace(config, training=replace(config.training, epochs=epochs))
    assert with_steps(config, count).training.steps == steps
    assert describe_steps(config, count).startswith(f"{steps} steps of 5 prompts: {steps * 5 / count:.2f} passes")


def test_train_by_epochs_takes_its_steps_and_resumes(config: RunConfig) -> None:
    def interrupt(step: int, metrics: dict) -> None:
        assert read_job(config.run_dir).steps == 4
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, on_step=interrupt)
    assert resume(config.run_dir).steps == 4
    folder = RunFolder.open(config.run_dir)
    assert [line["step"] for line in folder.metrics("train")] == [1, 2, 3, 4]
    assert folder.status["status"] == "finished"
    assert (
        "4 steps of 5 prompts: 1.67 passes over 12 examples (training.epochs=1.5)"
        in (config.run_dir / "train.log").read_text()
    )


def test_check_shows_steps_of_epochs(config: RunConfig) -> None:
    assert {check.name: check.finding for check in check_config(config)}["length"].startswith("4 steps of 5 prompts")
