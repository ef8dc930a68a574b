"""The Studies tab: a study as its folder tells it, while it runs, killed, finished, and where there is none."""

import json
import os
from pathlib import Path

import pytest
from failures import raises

from workbench.app.context import AppContext
from workbench.app.tabs import studies
from workbench.errors import RunError
from workbench.runs.processes import identify
from workbench.studies.measures import Comparison
from workbench.studies.report import _write_parquet
from workbench.studies.status import compared, find_studies, read_study

PLAN = {
    "source": "configs/studies/<b>small.yaml",
    "baseline": "opd",
    "seeds": [0, 1],
    "faults": {"none": "no <models>"},
    "runs": ["opd-s0", "dopd-s0", "opd-s1", "dopd-s1"],
    "notes": {"dopd": "shown <i>the crop</i>"},
}


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    return AppContext(tmp_path / "runs", tmp_path)


def write(
    context: AppContext, *, session: dict | None = None, outcomes: dict | None = None, compared: bool = False
) -> Path:
    """The folder of a study of two variants and two seeds."""
    folder = context.runs_dir / "small"
    folder.mkdir(parents=True)
    outcomes = {"opd-s0": {"status": "finished", "error": None, "seconds": 9.5}, **(outcomes or {})}
    (folder / "study.json").write_text(json.dumps({"sessions": [session or {}], "runs": outcomes, "plan": PLAN}))
    if compared:
        shared = ("eval", "plain", "student", "visible", "accuracy")
        rows = [
            Comparison("opd", None, *shared, 0.612, 0.60, 0.63, 2, 96, ""),
            Comparison("dopd", None, *shared, 0.642, 0.62, 0.66, 2, 96, ""),
            Comparison("dopd", "opd", *shared, 0.03, 0.011, 0.049, 2, 96, "better"),
            Comparison("dopd", "untrained", *shared, -0.01, -0.03, 0.01, 2, 96, "not distinguishable"),
        ]
        _write_parquet(folder / "comparisons.parquet", rows, "small")
    return folder


def test_studies_empty_folder_shows_command(context: AppContext) -> None:
    drawn = studies.draw(context, "light", {})
    assert "workbench study configs/studies/main.yaml" in drawn[1] and find_studies(context.runs_dir) == []


def test_studies_compared_study_shows_report_numbers(context: AppContext) -> None:
    write(context, compared=True)
    chooser, _, group, measure, plot, table, _, notes = studies.draw(context, "dark", {"study": "small"})
    assert chooser.value == "small" and group.choices == [("eval, context plain", "0")]
    assert measure.choices == [("accuracy, visible", "0")] and plot.visible
    for text in (
        "64.2 %",
        "+3.0",
        "[+1.1, +4.9]",
        "better",
        "−1.0",
        "not distinguishable",
        "minus opd",
    ):
        assert text in table, text
    assert "&lt;i&gt;the crop" in notes and "clear of zero" in notes
    row = compared(read_study(context.runs_dir, "small"), "eval", "plain", "accuracy", "visible").rows[0]
    assert (row["variant"], row["difference"]) == ("opd", None), "the baseline is not compared with itself"


def test_studies_killed_study_shows_how_to_continue(context: AppContext) -> None:
    write(
        context,
        session={"pid": os.getpid(), "identity": "another process"},
        outcomes={"dopd-s0": {"status": "failed", "error": "the loss is <nan>"}},
    )
    _, head, _, _, plot, table, runs, _ = studies.draw(context, "light", {})
    assert "unfinished" in head and "2 not started, 1 finished, 1 failed" in head.replace(
        "1 failed, 1 finished", "1 finished, 1 failed"
    )
    assert "To continue: <code>workbench study configs/studies/&lt;b&gt;small.yaml</code>" in head
    assert "none cannot be run: no &lt;models&gt;" in head and not plot.visible and "--report" in table
    assert runs.index("the loss is &lt;nan&gt;") < runs.index(">opd-s0<"), "what needs a look comes first"


def test_read_study_living_process_is_running(context: AppContext) -> None:
    write(context, session={"pid": os.getpid(), "identity": identify(os.getpid())})
    assert read_study(context.runs_dir, "small").state == "running"


def test_run_address_row_clicked_opens_training(context: AppContext) -> None:
    opened = studies.run_address({"study": "small", "list_page": "2"}, "small", {"run": "dopd-s1"})
    assert opened == ("small/dopd-s1", {"list_page": "2"}, "training")


def test_read_study_invalid_folder_raises(context: AppContext) -> None:
    folder = write(context)
    assert "does not exist" in studies.draw(context, "light", {"study": "../small"})[1]
    with raises(RunError, "folder name"):
        read_study(context.runs_dir, "../small")
    (folder / "study.json").write_text('{"runs": ')
    with raises(RunError, "cannot be read"):
        read_study(context.runs_dir, "small")
    (folder / "study.json").write_text("[]")
    with raises(RunError, "cannot be read"):
        read_study(context.runs_dir, "small")
    (context.runs_dir / "out").symlink_to("/tmp")
    assert find_studies(context.runs_dir) == ["small"]
