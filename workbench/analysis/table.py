"""The result of every analysis: a table that knows its run, its units, and what to do if it has no rows."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench.traces.reader import NoTraces, Traces, open_traces

NO_TRACES = "No tokens are recorded here. Wait for the run's first step, or train with trace.every above 0; if it has done steps with that, its traces folder is gone."
NO_PROBES = "No probes are recorded here. Train with trace.probes above 0, and wait for the first of them; if it has done so, its traces folder is gone."
NO_EVALS = "Nothing was evaluated yet. The first evaluation is before step 1, when the models are loaded."
NO_SELF = "This method has no privileged student, so its gap cannot be split. Compare with a method that has one: dopd."


@dataclass(frozen=True)
class Table:
    """Rows for a figure or a page.

    run    name of the run, for titles
    units  unit of each column that has one
    empty  if there are no rows: why, and what to do
    """

    frame: pd.DataFrame
    run: str = ""
    units: dict[str, str] = field(default_factory=dict)
    empty: str = ""

    def __post_init__(self) -> None:
        assert bool(self.empty) == self.frame.empty, (self.empty, len(self.frame))

    @cached_property
    def rows(self) -> list[dict]:
        """The rows as plain values, None where nothing is known."""
        return self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")


def table(
    rows: list[dict] | pd.DataFrame, columns: list[str], *, run: str, empty: str, units: dict | None = None
) -> Table:
    """A Table with these columns, in this order, whether it has rows or not."""
    frame = pd.DataFrame(rows, columns=columns)
    return Table(frame, run, units or {}, empty if frame.empty else "")


def traces_of(run_dir: str | Path | Traces) -> Traces | None:
    """The traces of a run, or None where none are recorded yet. Takes Traces too, to keep them open."""
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
    """The names of runs that stand side by side: with their study where two have the same."""
    paths = [Path(run) for run in runs]
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


def run_name(traces: Traces | None) -> str:
    """Name of the run that traces belong to."""
    if traces is None:
        return ""
    return traces.folder.parent.name if traces.folder.name == "traces" else traces.folder.name
