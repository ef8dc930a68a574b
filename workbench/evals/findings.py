"""Findings of a run from its evaluations: gain, over-confidence, and whether privilege can pay."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.config.schema import read_yaml
from workbench.data.contexts import is_privileged, parse_context
from workbench.data.counterparts import WRONG
from workbench.errors import ConfigError
from workbench.evals.records import Accuracy, EvalRecord, measure
from workbench.types import PRIVILEGED, STUDENT, VISIBLE

MIN_GAIN = 0.02  # smallest gain in accuracy from evidence that can be passed on
INTERVALS = "[low, high]: 95% confidence interval over questions; one seed"
_WRONG_OF = {part: wrong for wrong, part in WRONG.items()}


@dataclass(frozen=True)
class Share:
    """Accuracy under one context, from 0 to 1, with the 95% interval of Wilson (1927) over `count` questions."""

    context: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Source:
    """Accuracy of the privileged policy with and without the evidence, on the questions of `group`.

    name           "the teacher"; in a run without one, "the student before training"
    without        accuracy under the context in which the student is used
    with_evidence  accuracy under the privileged context of the run; if unknown, under the first one evaluated
    wrong          accuracies under evidence of other examples, if evaluated
    difference     of `with_evidence` and `without`, with its 95% interval (paired, normal)
    """

    name: str
    group: str
    without: Share
    with_evidence: Share
    wrong: tuple[Share, ...]
    difference: tuple[float, float, float] | None

    @property
    def context(self) -> str:
        return self.with_evidence.context

    @property
    def plain(self) -> float:
        return self.without.value

    @property
    def privileged(self) -> float:
        return self.with_evidence.value

    @property
    def can_pay(self) -> bool:
        return self.privileged - self.plain > MIN_GAIN


@dataclass(frozen=True)
class Findings:
    """Findings of one run. Shares are from 0 to 1; intervals are 95% over questions (paired, normal), not over seeds.

    group                  visible: questions that the image answers; "all" if unknown
    gain                   change of accuracy on `group` from the first to the last evaluation, with its interval
    overconfidence_group   privileged: questions that only the evidence answers; "all" if unknown
    overconfidence         confidence and accuracy there, at the first and the last evaluation
    overconfidence_change  change of over-confidence there, with its interval; None for fewer than two questions
    source                 None if no policy was evaluated with and without evidence
    steps                  steps of the first and the last evaluation
    """

    group: str
    before: Accuracy
    after: Accuracy
    gain: tuple[float, float, float]
    overconfidence_group: str
    overconfidence: tuple[Accuracy, Accuracy]
    overconfidence_change: tuple[float, float, float] | None
    source: Source | None
    steps: tuple[int, int]


@dataclass(frozen=True)
class Change:
    """A measure of the student as it is used, at the first and the last evaluation.

    measure     accuracy, or overconfidence (confidence minus accuracy)
    group       visible, privileged, or "all" for data without marks
    first       None with a single evaluation
    difference  mean change over common questions with its 95% interval (paired, normal); None for fewer than two
    count       questions of the last evaluation
    """

    measure: str
    group: str
    first: float | None
    last: float
    difference: tuple[float, float, float] | None
    count: int
    steps: tuple[int, int]


def changes(records: list[EvalRecord]) -> list[Change]:
    """Accuracy on visible and on privileged questions, and over-confidence on privileged ones; without marks on all."""
    used = _as_used(records)
    if not used:
        return []
    steps = min(record.step for record in used), max(record.step for record in used)
    before, after = ([record for record in used if record.step == step] for step in steps)
    groups = [group for group in (VISIBLE, PRIVILEGED) if _group(used, group) == group] or ["all"]
    result = []
    for measure_name, group in [*(("accuracy", group) for group in groups), ("overconfidence", groups[-1])]:
        then, now = measure(_of(before, group)), measure(_of(after, group))
        if then is None or now is None:
            continue
        first, last = getattr(then, measure_name), getattr(now, measure_name)
        value = (lambda record: record.reward) if measure_name == "accuracy" else _excess
        difference = None if steps[0] == steps[1] else _paired(_of(before, group), _of(after, group), value)
        is_single = steps[0] == steps[1]
        result.append(Change(measure_name, group, None if is_single else first, last, difference, now.count, steps))
    return result


def find(records: list[EvalRecord], privilege: str | None = None) -> Findings | None:
    """Compute the findings of a run; None without two evaluations of its student.

    privilege  privileged context of the run; None = the first one evaluated
    """
    used = _as_used(records)
    steps = sorted({record.step for record in used})
    if len(steps) < 2:
        return None
    group, overconfidence_group = _group(used, VISIBLE), _group(used, PRIVILEGED)
    before, after = ([record for record in used if record.step == step] for step in (steps[0], steps[-1]))
    measured = [measure(_of(records, group)) for records in (before, after)]
    gain = _paired(_of(before, group), _of(after, group))
    overconfidence = measure(_of(before, overconfidence_group)), measure(_of(after, overconfidence_group))
    if gain is None or None in measured or None in overconfidence:
        return None
    more = _paired(
        _of(before, overconfidence_group),
        _of(after, overconfidence_group),
        _excess,
    )
    source, ends = source_of(records, privilege), (steps[0], steps[-1])
    return Findings(group, measured[0], measured[1], gain, overconfidence_group, overconfidence, more, source, ends)


def source_of(records: list[EvalRecord], privilege: str | None = None) -> Source | None:
    """Compare the privileged policy with and without evidence at the first evaluation; None if not evaluated both ways.

    privilege  as in `find`
    """
    as_used = _as_used(records)
    if not as_used:
        return None
    used, group, first = as_used[0].context, _group(as_used, VISIBLE), min(record.step for record in records)
    records = [record for record in records if record.step == first and record.reward is not None]
    name = "teacher" if any(record.policy == "teacher" for record in records) else STUDENT
    by_context: dict[str, list[EvalRecord]] = {}
    for record in _of(records, group):
        if record.policy == name:
            by_context.setdefault(record.context, []).append(record)
    evidence = [context for context in by_context if is_privileged(context)]
    true = [context for context in evidence if not shows_wrong(context)]
    context = privilege if privilege in true else next(iter(true), None)
    if used not in by_context or context is None:
        return None
    return Source(
        "the teacher" if name == "teacher" else "the student before training",
        group,
        _share(used, by_context[used]),
        _share(context, by_context[context]),
        tuple(_share(wrong, by_context[wrong]) for wrong in evidence if shows_wrong(wrong)),
        _paired(by_context[used], by_context[context]),
    )


def privilege_of(run_dir: Path) -> str | None:
    """Read the privileged context from a run's config.yaml; None if missing or unreadable."""
    try:
        method = read_yaml(run_dir / "config.yaml").get("method")
    except ConfigError:
        return None
    return method.get("privilege") if isinstance(method, dict) else None


def sentences(findings: Findings, *, run: str, config: str, privilege: str | None) -> list[str]:
    """Write the findings as sentences: gain, over-confidence, and the command of a control run, if any.

    run     name of the run, from which the control's name is derived
    config  path of the run's configuration for `workbench train`
    """
    change, low, high = (100 * value for value in findings.gain)
    first = (
        f"Accuracy gain: {findings.before.accuracy:.1%} to {findings.after.accuracy:.1%} on {findings.after.count} "
        f"{questions(findings.group)}, {change:+.1f} points [{low:+.1f}, {high:+.1f}]"
    )
    source = findings.source
    if source is not None:
        can = "so the evidence can help here" if source.can_pay else "so the evidence cannot help here"
        first += (
            f"; {source.name} has {source.plain:.1%} without and {source.privileged:.1%} with {source.context}, "
            + ("which this run did not use" if privilege and shows_wrong(privilege) else can)
        )
    before, after = findings.overconfidence
    was = f"{100 * before.overconfidence:+.0f} before training{_change(findings.overconfidence_change)}"
    second = (
        f"Over-confidence: {100 * after.overconfidence:+.0f} points ({was}): confidence {after.confidence:.0%}, "
        f"accuracy {after.accuracy:.0%} on {after.count} {questions(findings.overconfidence_group)}"
    )
    lines = [f"{first}.", f"{second}."]
    if control := wrong_context(privilege):
        lines.append(
            "To test whether the evidence caused the gain, train the control with another example's evidence: "
            f"workbench train {config} method.privilege={control} name={run}-{control.replace('+', '-')}"
        )
    elif privilege and shows_wrong(privilege):
        lines.append(
            "This run used wrong evidence, of other examples: its gain does not come from the evidence's content."
        )
    return lines


def compare(
    records: list[EvalRecord], other: list[EvalRecord]
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """Differences of two runs at their last evaluations, this one minus the other, with 95% intervals over questions.

    Returns accuracy on the questions that the image answers, and over-confidence on those that only the evidence does;
    None where fewer than two questions are common.
    """
    ends = []
    for used in (_as_used(other), _as_used(records)):
        last = max((record.step for record in used), default=0)
        ends.append([record for record in used if record.step == last])
    (then, now), group = ends, _group(ends[1], VISIBLE)
    overconfidence = _group(ends[1], PRIVILEGED)
    return _paired(_of(then, group), _of(now, group)), _paired(
        _of(then, overconfidence), _of(now, overconfidence), _excess
    )


def compared(name: str, differences: tuple) -> str | None:
    """Write how a run with wrong evidence differs from its original, with the true evidence; None if not comparable."""
    accuracy, overconfidence = differences
    parts = [
        "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*_points(difference)) + f" of {what}"
        for difference, what in ((accuracy, "accuracy"), (overconfidence, "over-confidence"))
        if difference is not None
    ]
    if not parts:
        return None
    return (
        f"Against {name}, which used the true evidence: {', '.join(parts)}. One seed tells little: take five or more."
    )


def _change(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return ""
    return ", a change of {:+.1f} [{:+.1f}, {:+.1f}]".format(*_points(difference))


def _points(difference: tuple[float, float, float]) -> tuple[float, ...]:
    """Shares as points of one decimal, without a negative zero."""
    return tuple(round(100 * value, 1) + 0.0 for value in difference)


def wrong_context(privilege: str | None) -> str | None:
    """Replace every part of the context by its wrong form; None if a part has none."""
    parts = parse_context(privilege) if privilege else ()
    return "+".join(_WRONG_OF[part] for part in parts) if parts and all(part in _WRONG_OF for part in parts) else None


def shows_wrong(context: str) -> bool:
    """Whether a part of the context is evidence of another example."""
    return any(part in WRONG for part in parse_context(context))


def _as_used(records: Iterable[EvalRecord]) -> list[EvalRecord]:
    """Select the student's graded answers under the first context without evidence, at every step."""
    records = [record for record in records if record.policy == STUDENT and not is_privileged(record.context)]
    return [record for record in records if record.context == records[0].context and record.reward is not None]


def _group(records: Iterable[EvalRecord], visibility: str) -> str:
    return visibility if any(record.visibility == visibility for record in records) else "all"


def _share(context: str, records: list[EvalRecord]) -> Share:
    count, total = len(records), math.fsum(record.reward for record in records)
    return Share(context, total / count, *wilson(total, count), count)


def wilson(right: float, count: int) -> tuple[float, float]:
    """95% interval of a share of `count` questions (Wilson 1927)."""
    value, scale = right / count, 1 + 1.96**2 / count
    middle = (value + 1.96**2 / (2 * count)) / scale
    margin = 1.96 * math.sqrt(value * (1 - value) / count + (1.96 / (2 * count)) ** 2) / scale
    return max(0.0, middle - margin), min(1.0, middle + margin)


def _of(records: Iterable[EvalRecord], group: str) -> list[EvalRecord]:
    return [record for record in records if group in ("all", record.visibility)]


def questions(group: str) -> str:
    """Describe the questions of a group."""
    return {
        VISIBLE: "questions that the image answers",
        PRIVILEGED: "questions that only the evidence answers",
    }.get(group, "questions")


def _excess(record: EvalRecord) -> float:
    """Confidence minus reward of a graded answer."""
    return record.confidence - record.reward


def _paired(
    before: list[EvalRecord],
    after: list[EvalRecord],
    value: Callable[[EvalRecord], float] = lambda record: record.reward,
) -> tuple[float, float, float] | None:
    """Return the mean change of `value` over questions in both lists, with 1.96 standard errors to each side."""
    then = {record.example_id: value(record) for record in before}
    return mean_interval([value(record) - then[record.example_id] for record in after if record.example_id in then])


def mean_interval(changes: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the mean of paired differences with 1.96 standard errors to each side; None for fewer than two."""
    if len(changes) < 2:
        return None
    mean = math.fsum(changes) / len(changes)
    variance = math.fsum((change - mean) ** 2 for change in changes) / (len(changes) - 1)
    margin = 1.96 * math.sqrt(variance / len(changes))
    return mean, mean - margin, mean + margin
