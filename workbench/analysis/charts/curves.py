"""Curves of one chart: chosen metrics of several runs over one axis, smoothed, seeds as mean and band."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.analysis.charts.marks import COLUMNS as MARK_COLUMNS
from workbench.analysis.charts.marks import marks_of
from workbench.analysis.charts.recorded import AXES, Recorded, recorded
from workbench.analysis.charts.seeds import BANDS, Series, each_alone, group_by_seed, mean_and_band
from workbench.analysis.charts.smoothing import smooth
from workbench.analysis.regimes import SPLITS
from workbench.analysis.runs import MAX_POINTS
from workbench.errors import ConfigError, require_one_of

COLUMNS = ["series", "metric", "step", "x", "value", "smoothed", "low", "high", "count"]
SEEDS = ("separate", *BANDS)


@dataclass(frozen=True)
class Curves:
    """What one or several charts draw.

    parts   by series and metric, a row per step: x on the axis, raw and smoothed value; of several seeds their means,
            the band of the smoothed values (low, high), and the number of seeds
    marks   by series: kind, step, x, metric
    series  in the order of their colors
    notes   what is left out, and why
    """

    parts: dict[tuple[str, str], pd.DataFrame]
    marks: dict[str, pd.DataFrame]
    series: tuple[Series, ...]
    axis: str
    smoothing: float
    seeds: str
    notes: tuple[str, ...] = field(default=())

    @property
    def frame(self) -> pd.DataFrame:
        """All curves as one tidy table of COLUMNS."""
        frames = [part.assign(series=series, metric=name)[COLUMNS] for (series, name), part in self.parts.items()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def read_series(runs: Sequence[Path], seeds: str = "separate") -> list[Series]:
    """The runs as they are drawn. seeds: separate, or a band of BANDS. Raises ConfigError for anything else."""
    require_one_of("seeds", seeds, SEEDS, ConfigError)
    return each_alone(runs) if seeds == "separate" else group_by_seed(runs)


def curves(
    runs: Sequence[Path], names: Sequence[str], *, axis: str = "step", smoothing: float = 0.0, seeds: str = "separate"
) -> Curves:
    """The curves of some metrics of runs.

    names      metrics as in recorded.py
    axis       step, tokens or time
    smoothing  from 0 (none) to smoothing.MAX_SMOOTHING, over the recorded values of a curve
    seeds      "separate", or the band around the mean of runs that differ only in their seed

    Raises: ConfigError for an unknown axis or band; RunError, TraceError as recorded.recorded.
    """
    series = read_series(runs, seeds)
    splits = [split for split in SPLITS if any(f"/{split}=" in name for name in names)]
    parts: dict[tuple[str, str], pd.DataFrame] = {}
    notes: list[str] = []
    marks = {}
    for item in series:
        records = [recorded(run_dir, splits=splits) for run_dir in item.runs]
        for name in names:
            frames = [frame for run in records if len(frame := _curve(run, name, axis, smoothing, notes))]
            if frames:
                joined = _alone(frames[0]) if len(frames) == 1 else mean_and_band(frames, seeds)
                parts[item.name, name] = joined
                notes += _short_note(item.name, frames, joined)
        marks[item.name] = pd.concat([marks_of(run, names, axis) for run in records] or [_no_marks()])
    return Curves(parts, marks, tuple(series), axis, smoothing, seeds, tuple(dict.fromkeys(notes)))


def thin(curve: pd.DataFrame, most: int = MAX_POINTS) -> pd.DataFrame:
    """Thin one curve to about `most` rows, keeping the lowest and highest raw value of each stretch of steps."""
    if len(curve) <= most:
        return curve
    values = curve["value"].to_numpy(float)
    kept = {0, len(curve) - 1}
    for part in np.array_split(np.arange(len(curve)), max(1, most // 2)):
        finite = part[np.isfinite(values[part])]
        kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])} if len(finite) else set()
    broken = np.flatnonzero(~np.isfinite(values))
    kept |= {int(broken[0]), int(broken[-1])} if len(broken) else set()
    return curve.iloc[sorted(kept)]


def _curve(run: Recorded, name: str, axis: str, smoothing: float, notes: list[str]) -> pd.DataFrame:
    """step, x, value, smoothed of one metric of one run; notes on steps that the axis lacks."""
    chosen = run.frame.iloc[run.rows.get(name, [])]
    values = chosen["value"].to_numpy(float)
    frame = pd.DataFrame(
        {
            "step": chosen["step"].to_numpy(),
            "x": run.x(chosen["step"], axis),
            "value": values,
            "smoothed": smooth(values, smoothing) if smoothing else values,
        }
    )
    has_x = np.isfinite(frame["x"].to_numpy(float))
    if not has_x.all():
        notes.append(
            f"{run.run_dir.name} has no record of {AXES[axis]} at {(~has_x).sum():,} of {len(frame):,} steps. They are "
            "left out; the axis step draws all."
        )
    return frame[has_x].reset_index(drop=True)


def _alone(curve: pd.DataFrame) -> pd.DataFrame:
    return curve.assign(low=np.nan, high=np.nan, count=1)


def _short_note(name: str, frames: Sequence[pd.DataFrame], joined: pd.DataFrame) -> list[str]:
    """A note if some seeds have steps that others lack."""
    longest = max(len(frame) for frame in frames)
    if len(joined) == longest:
        return []
    return [f"{name}: means of the {len(joined):,} steps that all seeds have; the longest has {longest:,}."]


def _no_marks() -> pd.DataFrame:
    return pd.DataFrame(columns=MARK_COLUMNS)
