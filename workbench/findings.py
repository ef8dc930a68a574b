"""What a run gained, what it only claims, and whether privilege could pay in it: read from its evaluations."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from workbench.answers import Accuracy, Answered, measure
from workbench.contexts import is_privileged, parse_context
from workbench.counterparts import WRONG
from workbench.types import PRIVILEGED, STUDENT, VISIBLE

CANNOT_PAY = 0.02  # evidence that adds less than this to its reader's accuracy has nothing to pass on
_WRONG_OF = {part: wrong for wrong, part in WRONG.items()}


@dataclass(frozen=True)
class Source:
    """Accuracy of the policy that is shown more, without and with the evidence, on the questions of `group`.

    name  "teacher"; of a run without one, the student before training
    """

    name: str
    context: str
    plain: float
    privileged: float

    @property
    def can_pay(self) -> bool:
        return self.privileged - self.plain > CANNOT_PAY


@dataclass(frozen=True)
class Findings:
    """Shares are from 0 to 1; the interval holds 95 % over questions (paired, normal), not over seeds.

    group          visible: questions that the image answers; "all" where that is not known
    gain           change of accuracy on `group` from the first to the last evaluation, with its interval
    claimed_group  privileged: questions that only the evidence answers; "all" where that is not known
    claimed        confidence and accuracy there, at the first and the last evaluation
    source         None if no policy was evaluated with and without evidence
    """

    group: str
    before: Accuracy
    after: Accuracy
    gain: tuple[float, float, float]
    claimed_group: str
    claimed: tuple[Accuracy, Accuracy]
    source: Source | None


def find(answered: list[Answered], privilege: str | None = None) -> Findings | None:
    """The findings of a run with a first and a later evaluation of its student; None without.

    privilege  the context that its sources are shown, if that is known; otherwise the first privileged one evaluated
    """
    used = next((row.context for row in answered if row.policy == STUDENT and not is_privileged(row.context)), None)
    own = [row for row in answered if (row.policy, row.context) == (STUDENT, used) and row.reward is not None]
    steps = sorted({row.step for row in own})
    if len(steps) < 2:
        return None
    truths = {row.truth for row in own}
    group, claimed_group = (truth if truth in truths else "all" for truth in (VISIBLE, PRIVILEGED))
    before, after = ([row for row in own if row.step == step] for step in (steps[0], steps[-1]))
    measured = [measure(_of(rows, group)) for rows in (before, after)]
    gain = _paired(_of(before, group), _of(after, group))
    claimed = tuple(measure(_of(rows, claimed_group)) for rows in (before, after))
    if gain is None or None in measured or None in claimed:
        return None
    return Findings(group, *measured, gain, claimed_group, claimed, _source(answered, used, group, privilege))


def sentences(findings: Findings, *, run: str, config: str, privilege: str | None) -> list[str]:
    """Three sentences: gained, only claimed, and the command that tells whether the evidence did it (where there is one).

    run     name of the run; the control's is made from it
    config  path of the run's configuration, as `workbench train` takes it
    """
    change, low, high = (100 * value for value in findings.gain)
    first = (
        f"Gained: of {findings.after.count} {_questions(findings.group)} the student has {findings.after.accuracy:.1%} right, "
        f"{findings.before.accuracy:.1%} before training: {change:+.1f} points [{low:+.1f}, {high:+.1f}]"
    )
    source = findings.source
    if source is not None:
        can = "could pay" if source.can_pay else "could not pay"
        first += (
            f"; {source.name} has {source.plain:.1%} without and {source.privileged:.1%} with {source.context}, so privilege "
            f"{can} here"
        )
    before, after = findings.claimed
    second = (
        f"Only claimed: of {after.count} {_questions(findings.claimed_group)} the student is {after.confidence:.0%} sure and has "
        f"{after.accuracy:.0%} right, over-confident by {100 * after.overconfidence:+.0f} points, before training by "
        f"{100 * before.overconfidence:+.0f}"
    )
    lines = [f"{first}.", f"{second}."]
    if control := wrong_context(privilege):
        lines.append(
            "Whether the evidence did it, the same run tells that is shown another example's: "
            f"workbench train {config} method.privilege={control} name={run}-{control.replace('+', '-')}"
        )
    elif privilege and any(part in WRONG for part in parse_context(privilege)):
        lines.append(
            "It was shown wrong evidence, of other examples: what it gained, the evidence's content did not buy."
        )
    return lines


def wrong_context(privilege: str | None) -> str | None:
    """The context with every part replaced by its wrong form; None if a part has none."""
    parts = parse_context(privilege) if privilege else ()
    return "+".join(_WRONG_OF[part] for part in parts) if parts and all(part in _WRONG_OF for part in parts) else None


def _source(answered: list[Answered], used: str, group: str, privilege: str | None) -> Source | None:
    first = min(row.step for row in answered)
    own = [row for row in answered if row.step == first]
    shown = dict.fromkeys(row.context for row in own if is_privileged(row.context))
    context = privilege if privilege in shown else next(iter(shown), None)
    policies = dict.fromkeys(row.policy for row in own)
    name = "teacher" if "teacher" in policies else STUDENT
    plain, privileged = (
        measure(_of([row for row in own if (row.policy, row.context) == (name, one)], group)) for one in (used, context)
    )
    if plain is None or privileged is None:
        return None
    called = "the teacher" if name == "teacher" else "the student before training"
    return Source(called, context, plain.accuracy, privileged.accuracy)


def _of(rows: Iterable[Answered], group: str) -> list[Answered]:
    return [row for row in rows if group in ("all", row.truth)]


def _questions(group: str) -> str:
    return {
        VISIBLE: "questions that the image answers",
        PRIVILEGED: "questions that only the evidence answers",
    }.get(group, "questions")


def _paired(before: list[Answered], after: list[Answered]) -> tuple[float, float, float] | None:
    """Mean change over the questions asked both times, and 1.96 standard errors to each side."""
    then = {row.example_id: row.reward for row in before}
    changes = [row.reward - then[row.example_id] for row in after if row.example_id in then]
    if len(changes) < 2:
        return None
    mean = math.fsum(changes) / len(changes)
    variance = math.fsum((change - mean) ** 2 for change in changes) / (len(changes) - 1)
    margin = 1.96 * math.sqrt(variance / len(changes))
    return mean, mean - margin, mean + margin
