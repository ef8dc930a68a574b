"""Headline numbers of a run: accuracy first to last with a paired interval, over-confidence, loss and speed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.analysis.charts.recorded import recorded
from workbench.analysis.evals import answers_of
from workbench.evals.findings import Change, changes, questions
from workbench.render.text import signed
from workbench.types import PRIVILEGED, VISIBLE

NEWEST = 20  # steps of which the median speed is taken


@dataclass(frozen=True)
class Headline:
    """One number of a run.

    value   as text, with its unit
    change  from the first evaluation or step, as text with its interval; "" without
    note    what it is of: "192 questions, steps 0 to 60"
    """

    title: str
    value: str
    change: str
    note: str


def headlines(run_dir: str | Path) -> list[Headline]:
    """Accuracy by visibility, over-confidence, loss and speed; without what the run has not recorded.

    Raises: RunError for files that cannot be read.
    """
    result = []
    for change in changes(answers_of(run_dir)):
        title = {VISIBLE: "Accuracy, visible", PRIVILEGED: "Accuracy, privileged"}.get(change.group, "Accuracy")
        result.append(_of_change(title if change.measure == "accuracy" else "Over-confidence", change))
    frame = recorded(run_dir).frame
    loss = frame.loc[frame["metric"] == "loss", ["step", "value"]]
    if len(loss):
        first, last = loss["value"].iloc[0], loss["value"].iloc[-1]
        result.append(
            Headline("Loss", f"{last:.3g}", f"from {first:.3g}", f"nats, step {int(loss['step'].iloc[-1]):,}")
        )
    speed = frame.loc[frame["metric"] == "tokens_per_second", "value"].to_numpy(float)[-NEWEST:]
    if np.isfinite(speed).any():
        note = f"median of the newest {len(speed)} steps"
        result.append(Headline("Answer tokens per second", f"{np.nanmedian(speed):,.0f}", "", note))
    return result


def _of_change(title: str, change: Change) -> Headline:
    where = f"{change.count:,} {questions(change.group)}"
    value = f"{change.last:.1%}" if change.measure == "accuracy" else f"{signed(100 * change.last, 1)} pp"
    if change.first is None:
        return Headline(title, value, "", f"{where}, step {change.steps[1]}")
    interval = ""
    if change.difference is not None:
        mean, low, high = (signed(100 * number, 1) for number in change.difference)
        interval = f"{mean} pp [{low}, {high}]"
    return Headline(title, value, interval, f"{where}, steps {change.steps[0]} to {change.steps[1]}")
