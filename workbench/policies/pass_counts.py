"""Counts of the forward passes that score and learn: their tokens, their padding, and passes above a token budget.

with count_passes() as counts:
    ...                                   # forward passes of any policy add to it
counts.padding_share
"""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class PassCounts:
    """Sums over forward passes.

    tokens     of prompts and completions; a prompt that several rows share counts once
    padding    positions beside them that passed the model too
    oversized  passes of a single row that is larger than training.tokens_per_micro_batch
    """

    tokens: int = 0
    padding: int = 0
    oversized: int = 0

    @property
    def padding_share(self) -> float:
        """Share of all positions, from 0 to 1."""
        return self.padding / max(1, self.tokens + self.padding)


_counts: ContextVar[PassCounts | None] = ContextVar("pass counts", default=None)


@contextlib.contextmanager
def count_passes() -> Iterator[PassCounts]:
    """Count the forward passes inside this context."""
    counts = PassCounts()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def is_counting() -> bool:
    """Return whether a caller counts passes."""
    return _counts.get() is not None


def add_pass(*, tokens: int = 0, padding: int = 0, oversized: int = 0) -> None:
    """Add one pass to the counts, if a caller counts."""
    counts = _counts.get()
    if counts is not None:
        counts.tokens += tokens
        counts.padding += padding
        counts.oversized += oversized


def sum_counts(counts: Iterable[PassCounts]) -> PassCounts:
    """Sum the counts of several ranks."""
    several = list(counts)
    return PassCounts(*(sum(getattr(each, name) for each in several) for name in vars(PassCounts())))
