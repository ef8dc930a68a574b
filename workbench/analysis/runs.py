"""Metric curves of a run, and the difference of two configurations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.analysis.evals import no_evals
from workbench.analysis.table import Table, names_of, table
from workbench.config.schema import read_yaml
from workbench.errors import ConfigError
from workbench.files.parsing import flatten
from workbench.runs.commands import as_yaml
from workbench.runs.folder import RunFolder

METRIC_UNITS = {
    "loss": "nats",
    "entropy": "nats per token",
    "learning_rate": "",
    "grad_norm": "",
    "updated_weight_fraction": "share of weights",
    "completion_length": "tokens",
    "truncated": "share of answers",
    "accuracy": "share of answers",
    "duplicate_rate": "share of pairs",
    "advantage": "",
    "teacher_share": "share of tokens",
    "capability_gap": "nats per token",
    "information_gap": "nats per token",
    "abs_capability_gap": "nats per token",
    "abs_information_gap": "nats per token",
    "total_gap": "nats per token",
    "tokens": "tokens per step",
    "tokens_per_second": "tokens of answers per second",
    "padding_share": "share of positions",
    "oversized_passes": "passes",
}
_PREFIX_UNITS = {
    "share": "share of tokens",
    "loss_share": "share of loss",
    "supervised_by": "share of tokens",
    "seconds": "s",
    "threshold": "nats or 1",
    "accuracy": "share of questions",  # those of evaluations, which name policy, context and group
    "confidence": "share, mean of questions",
    "overconfidence": "confidence minus accuracy, share",
    "calibration_error": "share, mean of |confidence - accuracy|",
    "length": "tokens per answer",
    "truncated": "share of answers",
}
MAX_POINTS = 1500  # of one curve; a longer one keeps the lowest and highest value of each stretch of steps


def metrics(run_dir: str | Path, names: Sequence[str] = (), *, kind: str = "train") -> Table:
    """Metric curves in long form: step, metric, value. kind: train, eval or probe; names: default all."""
    folder = RunFolder(run_dir)
    rows = [
        {"step": line["step"], "metric": name, "value": value}
        for line in sorted(folder.metrics(kind), key=lambda line: line["step"])
        for name, value in line.items()
        if name not in ("kind", "step") and isinstance(value, (int, float)) and (not names or name in names)
    ]
    frame = thin(pd.DataFrame(rows, columns=["step", "metric", "value"]))
    units = {name: unit_of(name) for name in frame["metric"].unique()}
    empty = {
        "train": "No step is done yet. Before step 1 the models are loaded and evaluated, so it takes longest.",
        "eval": no_evals(folder.path),
        "probe": "No probes are recorded here. Train with trace.probes above 0.",
    }[kind]
    return table(frame, ["step", "metric", "value"], run=folder.path.name, empty=empty, units=units)


def unit_of(metric: str) -> str:
    """Unit of a metric in metrics.jsonl; metrics of a peer start with the peer's name."""
    first, _, rest = metric.partition("/")
    return METRIC_UNITS.get(metric) or _PREFIX_UNITS.get(first) or (unit_of(rest) if rest else "")


def thin(frame: pd.DataFrame) -> pd.DataFrame:
    """Thin each metric to MAX_POINTS rows, keeping the lowest and highest value of each stretch of steps."""
    parts = []
    for _, curve in frame.groupby("metric", sort=False):
        if len(curve) > MAX_POINTS:
            stretch = pd.Series(range(len(curve)), index=curve.index) * (MAX_POINTS // 2) // len(curve)
            numbers = curve["value"].astype(float)
            not_finite = numbers.index[~np.isfinite(numbers)]  # keep the first and the last of them
            numbers = numbers.drop(not_finite)
            values = numbers.groupby(stretch.loc[numbers.index])
            kept = sorted(
                {curve.index[0], curve.index[-1], *not_finite[:1], *not_finite[-1:], *values.idxmin(), *values.idxmax()}
            )
            curve = curve.loc[kept]
        parts.append(curve)
    return pd.concat(parts) if parts else frame


def config_difference(first: str | Path, second: str | Path) -> Table:
    """Configuration keys with different values in two runs, without name and output_dir."""
    first, second = Path(first), Path(second)
    values = [flatten(_config(run_dir)) for run_dir in (first, second)]
    keys = [key for key in {**values[0], **values[1]} if key not in ("name", "output_dir")]
    names = names_of(first, second)
    rows = [
        {"key": key, names[0]: _show(values[0], key), names[1]: _show(values[1], key)}
        for key in keys
        if values[0].get(key) != values[1].get(key)
    ]
    return table(
        rows, list(dict.fromkeys(["key", *names])), run=", ".join(names), empty="Both runs have the same configuration."
    )


def _config(run_dir: Path) -> dict:
    try:
        return read_yaml(run_dir / "config.yaml")
    except ConfigError:
        return {}


def _show(values: dict, key: str) -> str:
    return as_yaml(values[key]) if key in values else "not set"
