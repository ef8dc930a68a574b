"""Whether privilege could pay in a study at all: what its teachers do with the evidence, beside what they do without."""

from collections.abc import Iterable

from workbench.data.contexts import is_privileged
from workbench.evals.findings import CANNOT_PAY
from workbench.studies.measures import Value
from workbench.types import VISIBLE


def payoff(values: Iterable[Value]) -> list[str]:
    """A line for each teacher and data: its accuracy on visible questions (all, where truth is not known), plain and privileged.

    If no more than CANNOT_PAY is gained under any context, the line says that privilege cannot pay there. Nothing is said of
    data that no teacher was asked about with and without evidence.
    """
    accuracy: dict[tuple[str, str, str], dict[str, float]] = {}
    for value in values:
        if value.policy == "teacher" and value.measure == "accuracy" and value.truth in (VISIBLE, "all"):
            accuracy.setdefault((value.variant, value.data, value.truth), {})[value.context] = value.value
    lines = []
    for (teacher, data, truth), by_context in accuracy.items():
        privileged = {context: share for context, share in by_context.items() if is_privileged(context)}
        if "plain" not in by_context or not privileged or (truth == "all" and (teacher, data, VISIBLE) in accuracy):
            continue
        plain = by_context["plain"]
        pays = max(privileged.values()) - plain > CANNOT_PAY
        gains = ", ".join(f"{share:.1%} with {context}" for context, share in privileged.items())
        lines.append(
            f"- **{data}: privilege {'can' if pays else 'cannot'} pay**: {teacher} has {plain:.1%} of {truth} questions right "
            f"without evidence, {gains}"
        )
    return lines
