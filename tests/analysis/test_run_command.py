"""The command line over the runs of a folder."""

import json
from pathlib import Path

import pytest
from failures import raises
from run_files import write_job, write_run

from workbench.analysis.run_command import run_command
from workbench.app.arguments import parse
from workbench.cli import COMMANDS
from workbench.errors import ConfigError, RunError
from workbench.runs.labels import read_labels


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    write_run(tmp_path, "a", seed=1)
    write_run(tmp_path, "b", seed=2, method="opd")
    write_job(tmp_path, "c", "ValueError: broken\n")
    return tmp_path


def command(runs_dir: Path, *words: str) -> str:
    return run_command(parse(COMMANDS, ["runs", "--runs", str(runs_dir), *words]))


def test_runs_prints_every_run_with_its_reason(runs_dir: Path) -> None:
    lines = command(runs_dir, "--sort=-seed").splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["b", "a", "c"]
    assert "ValueError: broken" in lines[5] and lines[-1].startswith("3 runs")


def test_runs_counts_what_it_leaves_out(runs_dir: Path) -> None:
    command(runs_dir, "archive", "a")
    text = command(runs_dir, "--filter", "opd finished").splitlines()
    assert text[2].split()[0] == "b" and "1 do not match" in text[-1] and "1 are archived" in text[-1]
    assert [row["name"] for row in json.loads(command(runs_dir, "--json", "--archived", "--sort", "name"))] == [*"abc"]
    command(runs_dir, "unarchive", "a")
    assert not read_labels(runs_dir / "a").archived


def test_runs_labels_and_renames_a_run(runs_dir: Path) -> None:
    assert command(runs_dir, "tag", "a", "x", "y") == "x, y"
    assert command(runs_dir, "note", "a", "why") == "why"
    assert command(runs_dir, "rename", "a", "d") == "d"
    assert (read_labels(runs_dir / "d").tags, read_labels(runs_dir / "d").note) == (("x", "y"), "why")


def test_runs_delete_needs_confirmation(runs_dir: Path) -> None:
    with raises(RunError, "--yes"):
        command(runs_dir, "delete", "a")
    assert (runs_dir / "a").is_dir()
    command(runs_dir, "delete", "a", "--yes")
    assert not (runs_dir / "a").exists()
    with raises(RunError, "a"):
        command(runs_dir, "delete", "a", "--yes")


def test_runs_unknown_column_names_the_columns(runs_dir: Path) -> None:
    with raises(ConfigError, "colour", "visible"):
        command(runs_dir, "--sort", "colour")
