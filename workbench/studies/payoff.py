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
    for one in values:
        if one.policy == "teacher" and one.measure == "accuracy" and one.truth in (VISIBLE, "all"):
            accuracy.setdefault((one.variant, one.data, one.truth), {})[one.context] = one.value
    lines = []
    for (teacher, data, truth), by_context in accuracy.items():
        privileged = {context: value for context, value in by_context.items() if is_privileged(context)}
        if "plain" not in by_context or not privileged or (truth == "all" and (teacher, data, VISIBLE) in accuracy):
            continue
        plain = by_context["plain"]
        pays = max(privileged.values()) - plain > CANNOT_PAY
        shown = ", ".join(f"{value:.1%} with {context}" for context, value in privileged.items())
        lines.append(
            f"- **{data}: privilege {'can' if pays else 'cannot'} pay**: {teacher} has {plain:.1%} of {truth} questions right "
            f"without evidence, {shown}"
        )
    return lines
