"""Whether privilege can pay in a study: accuracy of its teachers with the evidence and without."""

from collections.abc import Iterable

from workbench.data.contexts import is_privileged
from workbench.evals.findings import MIN_GAIN, shows_wrong
from workbench.studies.measures import Value
from workbench.types import VISIBLE


def payoff(values: Iterable[Value]) -> list[str]:
    """Return a line for each teacher and dataset: its accuracy on visible questions, with and without the evidence.

    Where visibility is unknown, all questions count. If no true evidence gains more than MIN_GAIN, the line says
    that privilege cannot pay. Data that no teacher answered both ways has no line.
    """
    accuracy: dict[tuple[str, str, str], dict[str, float]] = {}
    for value in values:
        if value.policy == "teacher" and value.measure == "accuracy" and value.visibility in (VISIBLE, "all"):
            accuracy.setdefault((value.variant, value.data, value.visibility), {})[value.context] = value.value
    lines = []
    for (teacher, data, visibility), by_context in accuracy.items():
        privileged = {context: mean for context, mean in by_context.items() if is_privileged(context)}
        true = {context: mean for context, mean in privileged.items() if not shows_wrong(context)}
        if "plain" not in by_context or not true or (visibility == "all" and (teacher, data, VISIBLE) in accuracy):
            continue
        plain = by_context["plain"]
        pays = max(true.values()) - plain > MIN_GAIN
        gains = ", ".join(f"{mean:.1%} with {context}" for context, mean in privileged.items())
        lines.append(
            f"- **{data}: privilege {'can' if pays else 'cannot'} pay**: {teacher} has {plain:.1%} of {visibility} "
            f"questions right without evidence, {gains}"
        )
    return lines
