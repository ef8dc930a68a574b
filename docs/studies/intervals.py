"""Intervals over the runs of one variant, and where those runs came from, for the pages that scripts here write."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval over runs."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(T_975[len(array) - 2] * array.std(ddof=1) / np.sqrt(len(array)))


def came_from(run_dirs: list[Path]) -> str:
    """Seeds and commit of these runs, as their run.json has them."""
    facts = [json.loads((folder / "run.json").read_text()) for folder in run_dirs]
    commits = dict.fromkeys(
        f"{str(run_facts['commit'])[:10]}{' with changes' if run_facts.get('dirty') else ''}" for run_facts in facts
    )
    return f"seeds {', '.join(str(run_facts['seed']) for run_facts in facts)}; commit {', '.join(commits)}"
