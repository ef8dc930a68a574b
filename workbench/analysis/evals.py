"""A run's evaluations, read again only when their files have changed: every tab asks for them several times."""

import functools
from pathlib import Path

from workbench.evaluate import Answered, load_answers


def answers_of(run_dir: str | Path) -> list[Answered]:
    """What load_answers reads, by step."""
    files = sorted(Path(run_dir, "evals").glob("step-*.jsonl"))
    marks = [(file, file.stat()) for file in files]
    return list(_load(Path(run_dir), tuple((file.name, found.st_mtime_ns, found.st_size) for file, found in marks)))


@functools.lru_cache(maxsize=4)
def _load(run_dir: Path, files: tuple) -> tuple[Answered, ...]:
    return tuple(load_answers(run_dir))
