"""Rows that training would skip: the part of `workbench check` that reads all rows instead of the first few."""

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from workbench.data import images
from workbench.distill.usable import Problem, Views, encoding_problem, text_problem
from workbench.errors import DataError
from workbench.policies import Policy
from workbench.types import Example

SECONDS = 10.0  # time limit for opening images and encoding prompts; later rows get text checks only
PATIENCE = 6
NOTE, OK = "note", "ok"


@dataclass(frozen=True)
class Rows:
    """Rows that training would use, and those that it would skip with their problem.

    num_tried    number of rows, from the first, that were encoded for every view; the texts of all were checked
    num_encoded  number of `usable` rows among them, which are its first
    """

    usable: list[Example]
    skipped: list[tuple[Example, Problem]]
    num_tried: int
    num_encoded: int

    def describe(self) -> tuple[str, str]:
        """Status and text of one row of the table."""
        total = len(self.usable) + len(self.skipped)
        extent = f"all {total:,}"
        if self.num_tried < total:
            extent = f"the first {self.num_tried:,} of {total:,}, and the texts of the others"
        if not self.skipped:
            return OK, f"checked {extent}: every view can encode them"
        reasons = Counter(problem.reason for _, problem in self.skipped)
        example, problem = self.skipped[0]
        listed = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        return NOTE, (
            f"{len(self.skipped):,} of {total:,} are skipped ({listed}; checked {extent}); "
            f"first: {example.origin or example.id}: {problem.message}"
        )

    def require_usable(self, data: str) -> None:
        """Raise DataError with all reasons if no row that was encoded can be used."""
        if not self.num_encoded:
            raise DataError(f"no usable example in {data}: {self.describe()[1]}")


def split_rows(
    examples: Iterable[Example],
    views: Views,
    reference_students: Collection[Policy] = (),
    *,
    seconds: float = SECONDS,
    at_least: int = 0,
) -> Rows:
    """Split rows by whether training would use them.

    at_least  number of usable rows to encode before the time limit counts, for at most PATIENCE times as long
    """
    usable, skipped, num_tried, num_encoded, start = [], [], 0, 0, time.monotonic()
    for example in examples:
        passed = time.monotonic() - start
        in_time = not num_tried or passed < seconds or (len(usable) < at_least and passed < PATIENCE * seconds)
        problem = (encoding_problem if in_time else text_problem)(example, views, reference_students)
        num_tried += in_time
        num_encoded += in_time and problem is None
        if problem is None:
            usable.append(example)
        else:
            skipped.append((example, problem))
    return Rows(usable, skipped, num_tried, num_encoded)


def describe_pictures(before: dict[str, int]) -> list[tuple[str, str]]:
    """Status and text of one row for each kind of image that opens with changes.

    before  counts by kind to subtract, from count_pictures
    """
    lines = []
    for what, names in images.CHANGED.items():
        count = len(names) - before.get(what, 0)
        if count > 0:
            lines.append((NOTE, f"{count:,} opened with {what}, for example image {sorted(names)[0].rstrip(',')}"))
    return lines


def count_pictures() -> dict[str, int]:
    """Number of images that opened with changes so far, by kind."""
    return {what: len(names) for what, names in images.CHANGED.items()}
