"""`workbench geometry` and its tab: comparisons, files and figures, and the messages where nothing can be compared."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from failures import raises

from workbench.analysis.geometry import figures as geometry_figures
from workbench.analysis.geometry import files as geometry_files
from workbench.analysis.geometry.measure import columns
from workbench.app.context import AppContext
from workbench.app.tabs import geometry as tab
from workbench.cli import main
from workbench.errors import ConfigError, PolicyError, RunError
from workbench.training.update_mask import mask_facts


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one measured run, opd, and one that is not."""
    folder = tmp_path_factory.mktemp("measured")
    for name in ("opd", "dopd"):
        shutil.copytree(trained / name, folder / name)
    assert main(["geometry", str(folder / "opd")]) == 0
    return folder


def test_geometry_of_run_compares_with_its_start(folder: Path, models: dict) -> None:
    facts = json.loads((folder / "opd/geometry/geometry.json").read_text())
    assert (facts["name"], facts["method"], facts["step"]) == ("opd", "opd", 4) and facts["learning_rate"] == 1e-3
    assert facts["source"] == str(models["student"]) and "checkpoint-000004" in facts["target"]
    assert facts["columns"].keys() == columns().keys()
    tensors = pd.read_parquet(folder / "opd/geometry/tensors.parquet")
    assert len(tensors) == 4 * tensors["tensor"].nunique() and 0 < tensors["relative_delta"].max() < 1
    page = (folder / "opd/geometry/figure.html").read_text()
    assert "Geometry of opd" in page and "<script src" not in page


def test_format_geometry_shows_precisions_and_control(folder: Path, capsys: pytest.CaptureFixture) -> None:
    text = geometry_files.format_geometry(geometry_files.read(folder / "opd/geometry"))
    for heading in (
        "unchanged, fp32",
        "unchanged, bf16",
        "in top 10%",
        "vision tower",
        "connector",
        "attention q",
        "all",
    ):
        assert heading in text
    assert main(["geometry", str(folder / "opd"), str(folder / "dopd")]) == 0
    assert "attention q" in capsys.readouterr().out and not (folder / "dopd/geometry").exists()


def test_geometry_command_writes_masks(folder: Path, capsys: pytest.CaptureFixture) -> None:
    files = [str(folder / f"{name}.safetensors") for name in ("found", "random")]
    assert (
        main(
            ["geometry", str(folder / "opd"), "--save-mask", files[0], "--random-mask", files[1], "--against", files[1]]
        )
        == 0
    )
    output = capsys.readouterr().out
    assert "changed by more than 0 in bfloat16" in output and "in every tensor" in output
    assert mask_facts(files[0])["dtype"] == "bfloat16" and mask_facts(files[1])["random_like"] == files[0]
    assert main(["geometry", str(folder / "opd"), "--random-mask", files[1]]) == 2
    assert "--save-mask FILE" in capsys.readouterr().err


def test_geometry_incomparable_inputs_raise_with_remedy(folder: Path, models: dict, tmp_path: Path) -> None:
    shutil.copytree(folder / "dopd", tmp_path / "early")
    for checkpoint in (tmp_path / "early").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with raises(RunError, "checkpoint", "workbench resume"):
        geometry_files.pair_of(tmp_path / "early")
    with raises(ConfigError, "two model folders"):
        geometry_files.pair_of(models["student"])
    with raises(PolicyError, "missing"):
        geometry_files.pair_of(models["student"], tmp_path / "missing" / "model")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/geometry.json").write_text("{")
    with raises(RunError, "measure again"):
        geometry_files.read(tmp_path / "torn")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_geometry_tab_draws_measurement_or_remedy(folder: Path, theme: str) -> None:
    context = AppContext(folder, folder)
    words, *drawn, rows = tab.draw(context, "opd", theme)
    figures, asides = drawn[:5], drawn[5:]
    assert (
        "workbench geometry" in words and all("wbu-aside" in aside for aside in asides) and len(asides) == len(figures)
    )
    assert all("opd, step 4, learning rate 0.001" in figure.layout.title.text and figure.data for figure in figures)
    assert "random" in rows and "bfloat16" in rows and "vision tower" in rows
    for created, same in zip(
        figures, geometry_figures.all_figures(geometry_files.read(folder / "opd/geometry"), theme), strict=True
    ):
        assert created == same
    _, *nothing, rows = tab.draw(context, "dopd", theme)
    assert "not measured yet" in rows and not any(nothing)
    assert "workbench geometry RUN" in rows


def test_geometry_tab_read_only_does_not_measure(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dopd", tmp_path / "runs/dopd")
    output, *drawn = tab.measure(AppContext(tmp_path / "runs", tmp_path), "dopd", "light")
    assert "Measured: dopd, step 4" in output and drawn[1].data
    with raises(RunError, "read-only"):
        tab.measure(AppContext(tmp_path / "runs", tmp_path, read_only=True), "dopd", "light")
