"""Steps to mark on the axis: checkpoints, evaluations, and values that are not finite."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.analysis.charts.recorded import Recorded
from workbench.evals.records import evaluated_steps
from workbench.runs.checkpoints import list_checkpoints

KINDS = ("checkpoint", "evaluation", "not finite")
COLUMNS = ["kind", "step", "x", "metric"]


def marks_of(run: Recorded, names: Sequence[str], axis: str) -> pd.DataFrame:
    """Marks of a run on an axis of recorded.AXES: kind, step, x, metric (of values that are not finite, else "")."""
    checkpoints = [checkpoint.step for checkpoint in list_checkpoints(Path(run.run_dir))]
    chosen = run.frame.iloc[[row for name in names for row in run.rows.get(name, ())]]
    chosen = chosen[~np.isfinite(chosen["value"].to_numpy(float))]
    rows = [("checkpoint", step, "") for step in checkpoints]
    rows += [("evaluation", step, "") for step in sorted(evaluated_steps(Path(run.run_dir)))]
    rows += [("not finite", int(row.step), row.metric) for row in chosen.itertuples()]
    frame = pd.DataFrame(rows, columns=["kind", "step", "metric"])
    frame["x"] = run.x(frame["step"], axis) if len(frame) else []
    return frame.loc[np.isfinite(frame["x"].to_numpy(float)), COLUMNS].reset_index(drop=True)
