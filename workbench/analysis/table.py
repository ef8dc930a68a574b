"""The result of an analysis: a table with its run, its units, and a message if it has no rows."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.traces.reader import NoTraces, Traces, open_traces

NO_TRACES = (
    "No tokens are recorded. Wait for the run's first step, or train with trace.every above 0. If steps were recorded, "
    "the traces folder was deleted."
)
NO_PROBES = (
    "No probes are recorded. Train with trace.probes above 0 and wait for the first probe. If probes were recorded, "
    "the traces folder was deleted."
)
NO_EVALS = "No evaluation yet. The first one runs before step 1, after the models are loaded."
NO_SELF = "This method has no privileged student, so its gap cannot be split. For the split, train with dopd."


@dataclass(frozen=True)
class Table:
    """Rows for a figure or a page.

    run    name of the run, for titles
    units  unit by column, where a column has one
    empty  message if there are no rows: why, and what to do
    """

    frame: pd.DataFrame
    run: str = ""
    units: dict[str, str] = field(default_factory=dict)
    empty: str = ""

    def __post_init__(self) -> None:
        assert bool(self.empty) == self.frame.empty, (self.empty, len(self.frame))

    @cached_property
    def rows(self) -> list[dict]:
        """The rows as plain values, None for missing ones."""
        columns = {str(name): _plain(values) for name, values in self.frame.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(values: pd.Series) -> list:
    """A column as plain values, None for missing ones."""
    return [None if is_missing else value for value, is_missing in zip(values.tolist(), values.isna(), strict=True)]


def table(
    rows: list[dict] | pd.DataFrame, columns: list[str], *, run: str, empty: str, units: dict | None = None
) -> Table:
    """Make a Table with these columns in this order; `empty` is kept only if it has no rows."""
    frame = pd.DataFrame(rows, columns=columns)
    return Table(frame, run, units or {}, empty if frame.empty else "")


def traces_of(run_dir: Any) -> Traces | None:
    """The traces of a run, or None if none are recorded. Open Traces are returned as they are."""
    if isinstance(run_dir, Traces):
        return run_dir
    try:
        return open_traces(run_dir)
    except NoTraces:
        return None


def has_gaps(traces: Traces) -> bool:
    """Whether the total gap can be split in two."""
    return {"student", "self", "teacher"} <= traces.views.keys()


def names_of(*runs: str | Path) -> list[str]:
    """Names of runs shown side by side, with the study's name if two runs have the same name."""
    paths = [Path(run) for run in runs]
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


def run_name(traces: Traces | None) -> str:
    """Name of the run that traces belong to."""
    if traces is None:
        return ""
    return traces.folder.parent.name if traces.folder.name == "traces" else traces.folder.name
