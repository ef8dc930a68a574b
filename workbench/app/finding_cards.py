"""What a run found, above the figures of Illusion: could privilege pay, what was gained, what is only claimed.

The numbers are those of the summary's closing sentences (workbench.evals.findings); where one was not recorded, its card names
the key that records it.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

from workbench.analysis.evals import answers_of
from workbench.config.schema import read_yaml
from workbench.data.contexts import is_privileged
from workbench.errors import ConfigError
from workbench.evals.findings import (
    Findings,
    Source,
    find,
    privilege_of,
    questions,
    shows_wrong,
    source_of,
    wrong_context,
)
from workbench.evals.records import EvalRecord
from workbench.render.text import signed
from workbench.types import STUDENT

NOT_USED = "The student was not asked without evidence, as it is used: add plain to evaluation.contexts."
NO_EVIDENCE = "Not recorded: nobody was asked with evidence. Add {context} to evaluation.contexts."
NO_TEACHER = "The teacher was not asked: evaluation.teacher=true records it."
NOT_OWN = "The evidence of this run, {context}, was not evaluated: add it to evaluation.contexts."
NO_WRONG = "With wrong evidence it was not asked: add {context} to evaluation.contexts."
ONE_STEP = "Step {step} alone is evaluated. The last step will be; evaluation.every=N also evaluates every N steps."
FEW = "Fewer than two questions were graded both times: a larger evaluation.count asks more."
NO_TRUTH = "Which questions only the evidence answers is not known: marks of the data say it."


class _Bar(NamedTuple):
    """A share from 0 to 1, with its interval if it has one; kind: alone, shown or wrong (evidence), sure or right."""

    label: str
    kind: str
    value: float
    low: float | None = None
    high: float | None = None


def findings_html(run_dir: Path) -> str:
    """Three cards of an evaluated run."""
    answered, privilege = answers_of(run_dir), privilege_of(run_dir)
    findings = find(answered, privilege)
    source = findings.source if findings else source_of(answered, privilege)
    missing = "" if findings else _why_missing(answered)
    asks_teacher = any(row.policy == "teacher" for row in answered)
    cards = (
        _pay(source, privilege, has_teacher=not asks_teacher and _has_teacher(run_dir)),
        _gained(findings) if findings else _card("Gained", "–", missing, []),
        _claimed(findings) if findings else _card("Only claimed", "–", missing, []),
    )
    label = f"findings of {escape(run_dir.name, quote=True)}"
    return f'<div class="wbu-findings" role="group" aria-label="{label}">{"".join(cards)}</div>'


def _why_missing(answered: list[EvalRecord]) -> str:
    """Why there is no gain: of a run that goes on, or of keys that leave it out."""
    steps = {row.step for row in answered if row.policy == STUDENT and not is_privileged(row.context)}
    if not steps:
        return NOT_USED
    return ONE_STEP.format(step=min(steps)) if len(steps) == 1 else FEW


def _pay(source: Source | None, privilege: str | None, *, has_teacher: bool) -> str:
    true = privilege if privilege and not shows_wrong(privilege) and privilege != "plain" else None
    notes = [NO_TEACHER] if has_teacher else []
    title = "Could privilege pay?"
    if source is None:
        return _card(title, "Not known", NO_EVIDENCE.format(context=true or "crop"), [], notes)
    if true and source.context != true:
        notes.append(NOT_OWN.format(context=true))
    control = wrong_context(source.context)
    if control and control not in {wrong.context for wrong in source.wrong}:
        notes.append(NO_WRONG.format(context=control))
    bars = [
        _Bar(label, kind, one.value, one.low, one.high)
        for label, kind, one in (
            ("image alone", "alone", source.without),
            (f"with {source.context}", "shown", source.with_evidence),
            *((f"with {one.context}", "wrong", one) for one in source.wrong),
        )
    ]
    of = f"{source.name}, with and without {source.context}: {source.with_evidence.count:,} {questions(source.group)}"
    change = _change(source.difference) if source.difference else ""
    return _card(title, "Yes" if source.can_pay else "No", of, bars, notes, change)


def _gained(findings: Findings) -> str:
    bars = [
        _Bar(f"step {step}", "right", measured.accuracy)
        for step, measured in zip(findings.steps, (findings.before, findings.after), strict=True)
    ]
    of = f"the student, right on {findings.after.count:,} {questions(findings.group)}"
    return _card("Gained", _points(findings.gain[0]), of, bars, [], _interval(findings.gain))


def _claimed(findings: Findings) -> str:
    before, after = findings.claimed
    bars = [
        _Bar(f"{what}, step {step}", what, value)
        for step, measured in zip(findings.steps, findings.claimed, strict=True)
        for what, value in (("sure", measured.confidence), ("right", measured.accuracy))
    ]
    of = f"the student, over-confident on {after.count:,} {questions(findings.claimed_group)}"
    notes = [NO_TRUTH] if findings.claimed_group == "all" else []
    then = f"{_points(before.overconfidence)} before"
    if findings.more_claimed:
        then += f", change {_change(findings.more_claimed)}"
    return _card("Only claimed", _points(after.overconfidence), of, bars, notes, then)


def _card(title: str, verdict: str, of: str, bars: list[_Bar], notes: list[str] = (), beside: str = "") -> str:
    rows = "".join(_bar(bar) for bar in bars)
    small = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<section><h3>{escape(title)}</h3><p><b>{escape(verdict)}</b> <em>{escape(beside)}</em></p>"
        f"<small>{escape(of)}</small><dl>{rows}</dl>{small}</section>"
    )


def _bar(bar: _Bar) -> str:
    interval, whisker = "", ""
    if bar.low is not None:
        interval = f" <small>[{100 * bar.low:.1f}, {100 * bar.high:.1f}]</small>"
        whisker = f'<u style="left:{100 * bar.low:.1f}%;right:{100 - 100 * bar.high:.1f}%"></u>'
    return (
        f'<div><dt>{escape(bar.label)}</dt><dd class="wbu-{bar.kind}" aria-hidden="true">'
        f'<i style="width:{100 * bar.value:.1f}%"></i>{whisker}</dd><dd>{100 * bar.value:.1f}\u2009%{interval}</dd></div>'
    )


def _change(change: tuple[float, float, float]) -> str:
    return f"{_points(change[0])} {_interval(change)}"


def _points(value: float) -> str:
    return f"{signed(100 * value, 1)} points"


def _interval(change: tuple[float, float, float]) -> str:
    return f"[{signed(100 * change[1], 1)}, {signed(100 * change[2], 1)}]"


def _has_teacher(run_dir: Path) -> bool:
    try:
        models = read_yaml(run_dir / "config.yaml").get("models")
    except ConfigError:
        return False
    return isinstance(models, dict) and bool(models.get("teacher") or models.get("teachers"))
