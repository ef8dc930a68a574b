"""Exponential moving average with bias correction, as in TensorBoard."""

import math

import numpy as np
from jaxtyping import Float

from workbench.errors import ConfigError

MAX_SMOOTHING = 0.99


def parse_smoothing(text: object) -> float:
    """Smoothing from 0 (none) to MAX_SMOOTHING. Raises ConfigError for anything else."""
    try:
        value = float(str(text or 0))
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_SMOOTHING:
        raise ConfigError(
            f'smoothing "{text}" must be a number from 0 to {MAX_SMOOTHING}. 0 draws the values as they are.'
        )
    return value


def smooth(values: Float[np.ndarray, " N"], smoothing: float) -> Float[np.ndarray, " N"]:
    """Weighted mean of each value and all before it, with weights (1 - smoothing) * smoothing ** age, normalized.

    The normalization removes the bias toward zero of the first values. A value that is not finite has no mean and does
    not enter later ones.
    """
    result, weighted, weights = np.full(len(values), np.nan), 0.0, 0.0
    for index, value in enumerate(np.asarray(values, dtype=float)):
        if math.isfinite(value):
            weighted = smoothing * weighted + (1 - smoothing) * value
            weights = smoothing * weights + (1 - smoothing)
            result[index] = weighted / weights
    return result
