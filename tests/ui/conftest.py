"""A folder of runs that the tabs are tested on: real ones, of tiny models with random weights."""

import shutil
from pathlib import Path

import pytest
from small import add_begun, run_config

from workbench.train import train
from workbench.ui.context import AppContext

SAMPLES = Path(__file__).parents[2] / "data/samples/samples.jsonl"


@pytest.fixture(scope="session")
def runs(models: dict, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, dopd and opd, on the same examples, one on photos, and one that has only begun.

    Of the photos' tokens it is not known what the image shows, so any of them may be a case of illusion.
    """
    folder = tmp_path_factory.mktemp("shown") / "runs"
    shutil.copytree(trained, folder)
    photos = {"train": str(SAMPLES), "eval": None}
    train(run_config(models, folder, name="photos", data=photos, training__steps=2, trace__probes=0))
    add_begun(folder)
    return folder


@pytest.fixture
def context(runs: Path) -> AppContext:
    return AppContext(runs, runs.parent / "configs")
