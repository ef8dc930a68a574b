"""Runs that differ only in their seed, as one curve: their mean and a band."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.analysis.table import names_of
from workbench.config.schema import read_yaml
from workbench.errors import ConfigError
from workbench.files.parsing import flatten

BANDS = {"range": "lowest to highest of the seeds", "interval": "95% t-interval of the mean over seeds"}
# Student's t at 0.975 for 1 to 10 degrees of freedom; beyond, the expansion of Abramowitz and Stegun, 26.7.5
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_SEED_KEYS = ("seed", "name", "output_dir")


@dataclass(frozen=True)
class Series:
    """Runs that are drawn as one curve: one run, or several that differ only in their seed."""

    name: str
    runs: tuple[Path, ...]


def group_by_seed(runs: Sequence[Path]) -> list[Series]:
    """The runs as series, in their order. A run without a readable configuration is a series of its own."""
    groups: dict[object, list[int]] = {}
    for run_idx, run_dir in enumerate(runs):
        settings = _settings_without_seed(run_dir, _mark(run_dir / "config.yaml"))
        groups.setdefault(run_idx if settings is None else settings, []).append(run_idx)
    names = names_of(*runs)
    return [
        Series(_common_name([names[idx] for idx in indices]), tuple(runs[idx] for idx in indices))
        for indices in groups.values()
    ]


def each_alone(runs: Sequence[Path]) -> list[Series]:
    """Every run as a series of its own."""
    return [Series(name, (run_dir,)) for name, run_dir in zip(names_of(*runs), runs, strict=True)]


def mean_and_band(curves: Sequence[pd.DataFrame], band: str) -> pd.DataFrame:
    """Mean of several curves at the steps that all of them have, with the band of BANDS.

    curves  frames with step, x, value, smoothed

    Returns step, x, value, smoothed (means), low, high (of `smoothed`), count (curves with a finite value there).
    """
    steps = sorted(set.intersection(*(set(curve["step"]) for curve in curves)))
    aligned = [curve.drop_duplicates("step").set_index("step").loc[steps] for curve in curves]
    means = {name: _mean(np.stack([curve[name].to_numpy(float) for curve in aligned])) for name in ("x", "value")}
    smoothed = np.stack([curve["smoothed"].to_numpy(float) for curve in aligned])
    count = np.isfinite(smoothed).sum(axis=0)
    mean = _mean(smoothed)
    if band == "range":
        low, high = _extremes(smoothed)
    else:
        spread = np.sqrt(_mean((smoothed - mean) ** 2) * count / np.maximum(count - 1, 1))
        margin = np.array([t_quantile(n - 1) for n in count.tolist()]) * spread / np.sqrt(np.maximum(count, 1))
        low, high = mean - margin, mean + margin
    return pd.DataFrame(
        {"step": np.array(steps, int), **means, "smoothed": mean, "low": low, "high": high, "count": count}
    )


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t; NaN without a degree of freedom."""
    if freedom < 1:
        return math.nan
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2) + third


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of the finite values; NaN where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    finite = np.isfinite(values)
    has_any = finite.any(axis=0)
    low = np.where(has_any, np.where(finite, values, np.inf).min(axis=0), np.nan)
    high = np.where(has_any, np.where(finite, values, -np.inf).max(axis=0), np.nan)
    return low, high


def _common_name(names: Sequence[str]) -> str:
    """The beginning that the names share, with their number: "demo (3 seeds)"."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    start = "".join(letters[0] for letters in alike).rstrip("0123456789").rstrip("-_. /")
    for word in ("seed", "s"):
        start = start.removesuffix(f"-{word}").removesuffix(f"_{word}")
    return f"{start or names[0]} ({len(names)} seeds)"


def _mark(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=256)
def _settings_without_seed(run_dir: Path, mark: tuple | None) -> tuple | None:
    if mark is None:
        return None
    try:
        values = flatten(read_yaml(run_dir / "config.yaml"))
    except ConfigError:
        return None
    return tuple(sorted((key, repr(value)) for key, value in values.items() if key not in _SEED_KEYS))
