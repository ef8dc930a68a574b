"""A folder of runs that the tabs are tested on: real ones, of tiny models with random weights."""

from pathlib import Path

import pytest
from small import run_config

from workbench.train import train
from workbench.ui.context import AppContext

SAMPLES = Path(__file__).parents[2] / "data/samples/samples.jsonl"


@pytest.fixture(scope="session")
def runs(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, dopd and opd, on the same examples, one on photos, and one that has only begun.

    Of the photos' tokens it is not known what the image shows, so any of them may be a case of illusion.
    """
    folder = tmp_path_factory.mktemp("runs")
    values = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}
    train(run_config(models, folder, name="dopd", **values))
    train(run_config(models, folder, name="opd", method={"name": "opd"}, **values))
    photos = {"train": str(SAMPLES), "eval": None}
    train(run_config(models, folder, name="photos", data=photos, training__steps=2, trace__probes=0))
    begun = folder / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("name: begun\nmethod: {name: dopd}\ntraining: {steps: 4}\n")
    (begun / "run.json").write_text('{"status": "stopped", "method": "dopd"}')
    return folder


@pytest.fixture
def context(runs: Path) -> AppContext:
    return AppContext(runs, runs.parent / "configs")
