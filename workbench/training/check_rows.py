"""Rows that training would skip: the part of `workbench check` that reads all rows instead of the first few."""

import time
from collections import Counter
from collections.abc import Collection, Iterable

from workbench.data import images
from workbench.distill.usable import Problem, Views, encoding_problem, text_problem
from workbench.errors import DataError
from workbench.policies import Policy
from workbench.types import Example

SECONDS = 10.0  # time limit for opening images and encoding prompts; later rows get text checks only
NOTE, OK = "note", "ok"


def split_rows(
    examples: Iterable[Example], views: Views, reference_students: Collection[Policy] = (), *, seconds: float = SECONDS
) -> tuple[list[Example], list[tuple[Example, Problem]], int]:
    """Usable examples, the others with their problem, and the number of examples encoded for every view."""
    usable, skipped, num_shown, end = [], [], 0, time.monotonic() + seconds
    for example in examples:
        in_time = not num_shown or time.monotonic() < end
        problem = (encoding_problem if in_time else text_problem)(example, views, reference_students)
        num_shown += in_time
        if problem is None:
            usable.append(example)
        else:
            skipped.append((example, problem))
    return usable, skipped, num_shown


def describe_rows(usable: list[Example], skipped: list[tuple[Example, Problem]], num_shown: int) -> tuple[str, str]:
    """Status and text of one row of the table."""
    total = len(usable) + len(skipped)
    extent = (
        f"all {total:,}" if num_shown == total else f"the first {num_shown:,} of {total:,}, and the texts of the others"
    )
    if not skipped:
        return OK, f"checked {extent}: every view can encode them"
    reasons = Counter(problem.reason for _, problem in skipped)
    example, problem = skipped[0]
    listed = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    return NOTE, (
        f"{len(skipped):,} of {total:,} are skipped ({listed}; checked {extent}); "
        f"first: {example.origin or example.id}: {problem.message}"
    )


def require_usable(usable: list[Example], skipped: list[tuple[Example, Problem]], data: str) -> None:
    """Raises DataError with all reasons if no example can be used."""
    if not usable:
        raise DataError(f"no usable example in {data}: {describe_rows(usable, skipped, len(skipped))[1]}")


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
