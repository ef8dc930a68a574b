"""Runs that analysis is tested on: real ones, of tiny models with random weights."""

import shutil
from pathlib import Path

import pytest
from small import add_begun


@pytest.fixture(scope="session")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, dopd and opd, on the same examples, and one that has only begun."""
    folder = tmp_path_factory.mktemp("analysed") / "runs"
    shutil.copytree(trained, folder)
    add_begun(folder)
    return folder


@pytest.fixture(scope="session")
def dopd(runs: Path) -> Path:
    return runs / "dopd"


@pytest.fixture(scope="session")
def opd(runs: Path) -> Path:
    return runs / "opd"
