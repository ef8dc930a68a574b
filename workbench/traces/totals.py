"""Aggregate the positions of a step: per rollout, and in aggregates of equal domain, token type, visibility and regime.

Both are stored beside the positions, so that a list of answers or a curve over steps need not read every position.
Input are the columns of the tokens table as NumPy arrays.
"""

from typing import Any

import numpy as np

from workbench.traces.schema import GAPS

Columns = dict[str, Any]  # arrays and lists


def sum_rollouts(positions: Columns, num_rollouts: int) -> Columns:
    """Compute each rollout's means, extremes, part of the step's loss, regimes, token types and visibilities."""
    index = np.asarray(positions["rollout_idx"], dtype=np.int64)

    def mean(values: np.ndarray | None) -> list[float | None]:
        if values is None:
            return [None] * num_rollouts
        counts = np.bincount(index, ~np.isnan(values), num_rollouts)
        pairs = zip(_sums(index, values, num_rollouts).tolist(), counts.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]

    regimes: list[dict[str, int]] = [{} for _ in range(num_rollouts)]
    token_types: list[dict[str, None]] = [{} for _ in range(num_rollouts)]
    visibilities: list[dict[str, None]] = [{} for _ in range(num_rollouts)]
    texts = zip(index.tolist(), positions["regime"], positions["token_type"], positions["visibility"], strict=True)
    for rollout_idx, regime, token_type, visibility in texts:
        regimes[rollout_idx][regime] = regimes[rollout_idx].get(regime, 0) + 1
        token_types[rollout_idx][token_type] = None
        if visibility is not None:
            visibilities[rollout_idx][visibility] = None
    return {
        "mean_capability_gap": mean(_gap(positions, *GAPS["capability_gap"])),
        "mean_information_gap": mean(_gap(positions, *GAPS["information_gap"])),
        "mean_loss": mean(np.asarray(positions["loss"], dtype=np.float64)),
        "total_contribution": _sums(index, _contribution(positions), num_rollouts, empty=0.0).tolist(),
        "regime_counts": [list(entries.items()) for entries in regimes],
        "token_types": [list(entries) for entries in token_types],
        "visibilities": [list(entries) for entries in visibilities],
        **_extremes(positions, index, num_rollouts),
    }


def _extremes(positions: Columns, index: np.ndarray, num_rollouts: int) -> Columns:
    """Each rollout's smallest and largest gaps.

    Infinite if no position has the gap: -inf is the largest of none. NaN if a gap is NaN: its tokens must be read. None
    if a view is missing.
    """
    columns: Columns = {}
    for name, views in GAPS.items():
        gap = _gap(positions, *views)
        if gap is None:
            columns |= {f"min_{name}": [None] * num_rollouts, f"max_{name}": [None] * num_rollouts}
            continue
        is_recorded = ~np.isnan([positions[f"logprob_{view}"] for view in views]).any(axis=0)
        smallest, largest = (np.full(num_rollouts, start, dtype=np.float32) for start in (np.inf, -np.inf))
        with np.errstate(invalid="ignore"):  # NaN
            np.minimum.at(smallest, index[is_recorded], gap[is_recorded])
            np.maximum.at(largest, index[is_recorded], gap[is_recorded])
        columns |= {f"min_{name}": smallest, f"max_{name}": largest}
    return columns


def sum_aggregates(positions: Columns, domains: list[str]) -> Columns:
    """Sum one learner's positions of equal domain, token type, visibility and regime. domains: one per rollout."""
    keys: dict[tuple, int] = {}
    position_domains = [domains[rollout_idx] for rollout_idx in np.asarray(positions["rollout_idx"]).tolist()]
    keys_of_positions = zip(
        position_domains, positions["token_type"], positions["visibility"], positions["regime"], strict=True
    )
    group = np.array([keys.setdefault(key, len(keys)) for key in keys_of_positions], dtype=np.int64)

    def total(values: np.ndarray | None) -> np.ndarray | list[None]:
        return [None] * len(keys) if values is None else _sums(group, values, len(keys))

    contribution = _contribution(positions)
    capability, information = _gap(positions, *GAPS["capability_gap"]), _gap(positions, *GAPS["information_gap"])
    is_dominated = None if capability is None or information is None else np.abs(information) > np.abs(capability)
    num_information_dominated: Any = total(is_dominated)
    columns: Columns = {
        name: np.full(len(keys), np.asarray(positions[name])[0] if len(keys) else 0, dtype=np.int32)
        for name in ("step", "process_rank")
    }
    for idx, name in enumerate(("domain", "token_type", "visibility", "regime")):
        columns[name] = [key[idx] for key in keys]
    columns |= {
        "num_positions": np.bincount(group, minlength=len(keys)).astype(np.int32),
        "loss": total(np.asarray(positions["loss"], dtype=np.float64)),
        "contribution": total(contribution),
        "abs_loss": total(np.abs(contribution)),
        "capability_gap": total(capability),
        "information_gap": total(information),
        "abs_capability_gap": total(None if capability is None else np.abs(capability)),
        "abs_information_gap": total(None if information is None else np.abs(information)),
        "num_information_dominated": num_information_dominated
        if is_dominated is None
        else num_information_dominated.astype(np.int32),
        "information_dominated_abs_loss": total(None if is_dominated is None else np.abs(contribution) * is_dominated),
    }
    for name, values in positions.items():
        if name.startswith("entropy_"):
            columns[name] = total(np.asarray(values, dtype=np.float64))
        elif name.startswith("max_logprob_"):
            columns[name.replace("max_logprob_", "confidence_")] = total(np.exp(np.asarray(values, dtype=np.float64)))
    return columns


def _sums(index: np.ndarray, values: np.ndarray, count: int, empty: float = np.nan) -> np.ndarray:
    """Sum the values of each index, skipping NaN (not scored by the view); `empty` if none remains."""
    is_number = ~np.isnan(values)
    totals = np.bincount(index[is_number], values[is_number], count)
    return np.where(np.bincount(index[is_number], minlength=count) > 0, totals, empty)


def _gap(positions: Columns, above: str, below: str) -> np.ndarray | None:
    """Compute the float32 difference of two views, as the reader does; None if a view is missing."""
    names = f"logprob_{above}", f"logprob_{below}"
    with np.errstate(invalid="ignore"):  # -inf - -inf
        return positions[names[0]] - positions[names[1]] if positions.keys() >= set(names) else None


def _contribution(positions: Columns) -> np.ndarray:
    return np.asarray(positions["loss"] * positions["loss_normalizer"], dtype=np.float64)
