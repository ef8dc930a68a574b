"""All metrics that a run recorded, in one tidy table, with the tokens and the seconds until every step."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.analysis.charts.domains import metrics_by
from workbench.analysis.charts.groups import EVAL, PROBE
from workbench.errors import ConfigError, unknown
from workbench.runs.folder import RunFolder

AXES = {"step": "step", "tokens": "answer tokens trained on", "time": "hours of steps, evaluations and checkpoints"}
COLUMNS = ["step", "metric", "value"]
_PREFIXES = {"train": "", "eval": EVAL, "probe": PROBE}
_BETWEEN = ("seconds/probe", "seconds/evaluate", "seconds/save")  # of the time before the step


@dataclass(frozen=True)
class Recorded:
    """Metrics of one run.

    frame   step, metric, value: a row per recorded number, by metric and step
    clock   by step: tokens and hours from the start until the step's end; NaN from the first step that lacks them
    """

    run_dir: Path
    frame: pd.DataFrame
    clock: pd.DataFrame = field(repr=False)

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Indices of the rows of each metric, metrics in the order of the file."""
        order = dict.fromkeys(self.frame["metric"])
        indices = self.frame.groupby("metric", sort=False).indices
        return {name: indices[name] for name in order}

    @property
    def names(self) -> list[str]:
        return list(self.rows)

    def x(self, steps: pd.Series, axis: str) -> np.ndarray:
        """Position of steps on an axis of AXES; NaN where it is not recorded. Raises ConfigError for another axis."""
        if axis not in AXES:
            raise ConfigError(unknown("x axis", axis, AXES))
        return steps.to_numpy(dtype=float) if axis == "step" else self.clock[axis].reindex(steps).to_numpy(dtype=float)


def recorded(run_dir: str | Path, *, splits: Sequence[str] = ()) -> Recorded:
    """All metrics of a run: training, `eval/` and `probe/`. Files are read again only if they have changed.

    splits  also the metrics by domain, token_type or visibility (domains.py), each of which takes a query of the traces

    Raises: RunError for a line of metrics.jsonl that cannot be read; TraceError for damaged traces.
    """
    folder = Path(run_dir)
    file = folder / "metrics.jsonl"
    stat = file.stat() if file.is_file() else None
    result = _read(folder, None if stat is None else (stat.st_ino, stat.st_mtime_ns, stat.st_size))
    if not splits:
        return result
    further = [frame for split in splits if len(frame := metrics_by(folder, split))]
    return Recorded(folder, pd.concat([result.frame, *further], ignore_index=True), result.clock)


@functools.lru_cache(maxsize=16)
def _read(run_dir: Path, mark: tuple | None) -> Recorded:
    lines = sorted(RunFolder(run_dir).metrics(), key=lambda line: line["step"])
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for line in lines:
        prefix = _PREFIXES.get(line["kind"], f"{line['kind']}/")
        for name, value in line.items():
            if name in ("kind", "step") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            steps.setdefault(prefix + name, []).append(line["step"])
            values.setdefault(prefix + name, []).append(float(value))
    _add_overconfidence(steps, values)
    names = [name for name, column in values.items() for _ in column]
    columns = [[item for column in table.values() for item in column] for table in (steps, values)]
    frame = pd.DataFrame({"step": np.array(columns[0], int), "metric": names, "value": np.array(columns[1], float)})
    return Recorded(run_dir, frame, _clock([line for line in lines if line["kind"] == "train"]))


def _add_overconfidence(steps: dict[str, list[int]], values: dict[str, list[float]]) -> None:
    """Add confidence minus accuracy of each evaluated group."""
    for name in [name for name in values if name.startswith(f"{EVAL}confidence/")]:
        accuracy, group = f"{EVAL}accuracy/{name.split('/', 2)[2]}", name.split("/", 2)[2]
        if steps.get(accuracy) == steps[name]:
            pairs = zip(values[name], values[accuracy], strict=True)
            steps[f"{EVAL}overconfidence/{group}"] = steps[name]
            values[f"{EVAL}overconfidence/{group}"] = [confidence - right for confidence, right in pairs]


def _clock(lines: list[dict]) -> pd.DataFrame:
    """Sums over steps of tokens and of hours. The time of evaluations and checkpoints is that before the step."""
    rows, tokens, seconds = [(0, 0.0, 0.0)], 0.0, 0.0
    for line in lines:
        tokens += _number(line.get("tokens"))
        seconds += _number(line.get("seconds/step")) + sum(_number(line.get(name, 0.0)) for name in _BETWEEN)
        rows.append((line["step"], tokens, seconds / 3600))
    frame = pd.DataFrame(rows, columns=["step", "tokens", "time"])
    return frame.drop_duplicates("step", keep="last").set_index("step")


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
