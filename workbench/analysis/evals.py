"""Cached evaluation records of runs: files are read again only if they have changed."""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from workbench.analysis.table import NO_EVALS
from workbench.config.schema import read_yaml
from workbench.errors import ConfigError
from workbench.evals.records import EvalRecord, load_records
from workbench.runs.commands import value_at

EVALUATES_NOTHING = (
    "This run has no evaluation: its data.eval is null. For accuracy, start a run with data.eval=SOURCE: questions "
    "with answers, such as scenes:eval?count=256 or a file."
)


def answers_of(run_dir: str | Path) -> list[EvalRecord]:
    """All evaluation records of a run, by step; see load_records."""
    return list(_load(*marks_of(run_dir)))


def indices_of(records: Sequence[EvalRecord]) -> list[int]:
    """Index of each record among those of its step, which is `rollout` in its address."""
    counts: Counter[int] = Counter()
    indices = []
    for record in records:
        indices.append(counts[record.step])
        counts[record.step] += 1
    return indices


def marks_of(run_dir: str | Path) -> tuple[Path, tuple]:
    """Key of a cache of a run's evaluation records: the folder, and what changes with its files."""
    files = [(file, file.stat()) for file in sorted(Path(run_dir, "evals").glob("step-*.jsonl"))]
    return Path(run_dir), tuple((file.name, stat.st_mtime_ns, stat.st_size) for file, stat in files)


@functools.lru_cache(maxsize=16)  # a page compares several runs
def _load(run_dir: Path, files: tuple) -> tuple[EvalRecord, ...]:
    return tuple(load_records(run_dir))


def no_evals(run_dir: str | Path) -> str:
    """Message for a run without evaluations: why, and what to do."""
    try:
        config = read_yaml(Path(run_dir) / "config.yaml")
    except ConfigError:
        return NO_EVALS
    evaluates = value_at(config, "data.eval") or value_at(config, "data.held_out")
    return NO_EVALS if evaluates else EVALUATES_NOTHING
