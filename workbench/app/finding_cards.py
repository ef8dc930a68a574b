"""Three cards above the figures of Leakage: does the evidence help, accuracy gain, over-confidence.

The numbers are those at the end of `workbench summary` (workbench.evals.findings). A card without a number names the
key that records it.
"""

from collections.abc import Sequence
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

NO_PLAIN = "The student was not evaluated without evidence. Add plain to evaluation.contexts."
NO_EVIDENCE = "Not recorded: no policy was evaluated with evidence. Add {context} to evaluation.contexts."
USED_WRONG = "This run used {context}, evidence of other examples. This card uses the true evidence."
NO_TEACHER = "The teacher was not evaluated. Set evaluation.teacher=true."
NO_OWN_EVIDENCE = "The evidence of this run, {context}, was not evaluated. Add it to evaluation.contexts."
NO_WRONG_EVIDENCE = "Not evaluated with wrong evidence. Add {context} to evaluation.contexts."
ONE_STEP = "Only step {step} is evaluated. A run evaluates its last step, too; for more steps, set evaluation.every=N."
TOO_FEW = "Fewer than two questions were graded at both steps. Increase evaluation.max_examples."
NO_MARKS = "The data has no marks, so questions that only the evidence answers cannot be separated."


GAIN, OVERCONFIDENCE = "Accuracy gain", "Over-confidence"


class _Bar(NamedTuple):
    """A share from 0 to 1, with its interval if known. kind: its CSS class, see assets/rows.css."""

    label: str
    kind: str
    value: float
    low: float | None = None
    high: float | None = None


def findings_html(run_dir: Path) -> str:
    """The three cards of an evaluated run as HTML."""
    records, privilege = answers_of(run_dir), privilege_of(run_dir)
    findings = find(records, privilege)
    source = findings.source if findings else source_of(records, privilege)
    missing = "" if findings else _why_missing(records)
    has_answers = any(row.policy == "teacher" for row in records)
    cards = (
        _pay(source, privilege, has_teacher=not has_answers and _has_teacher(run_dir)),
        _gained(findings) if findings else _card(GAIN, "–", missing, []),
        _overconfidence(findings) if findings else _card(OVERCONFIDENCE, "–", missing, []),
    )
    label = f"findings of {escape(run_dir.name, quote=True)}"
    return f'<div class="wbu-findings" role="group" aria-label="{label}">{"".join(cards)}</div>'


def _why_missing(records: list[EvalRecord]) -> str:
    """Why no gain is known, and which key records it."""
    steps = {row.step for row in records if row.policy == STUDENT and not is_privileged(row.context)}
    if not steps:
        return NO_PLAIN
    return ONE_STEP.format(step=min(steps)) if len(steps) == 1 else TOO_FEW


def _pay(source: Source | None, privilege: str | None, *, has_teacher: bool) -> str:
    true = privilege if privilege and not shows_wrong(privilege) and privilege != "plain" else None
    notes = [NO_TEACHER] if has_teacher else []
    title = "Does the evidence help?"
    if source is None:
        return _card(title, "Not known", NO_EVIDENCE.format(context=true or "crop"), [], notes)
    if privilege and shows_wrong(privilege):
        notes.append(USED_WRONG.format(context=privilege))
    if true and source.context != true:
        notes.append(NO_OWN_EVIDENCE.format(context=true))
    control = wrong_context(source.context)
    if control and control not in {wrong.context for wrong in source.wrong}:
        notes.append(NO_WRONG_EVIDENCE.format(context=control))
    bars = [
        _Bar(label, kind, share.value, share.low, share.high)
        for label, kind, share in (
            ("image alone", "alone", source.without),
            (f"with {source.context}", "shown", source.with_evidence),
            *((f"with {share.context}", "wrong", share) for share in source.wrong),
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
    of = f"accuracy of the student on {findings.after.count:,} {questions(findings.group)}"
    return _card(GAIN, _points(findings.gain[0]), of, bars, [], _interval(findings.gain))


def _overconfidence(findings: Findings) -> str:
    before, after = findings.overconfidence
    bars = [
        _Bar(f"{label}, step {step}", kind, value)
        for step, measured in zip(findings.steps, findings.overconfidence, strict=True)
        for label, kind, value in (
            ("confidence", "sure", measured.confidence),
            ("accuracy", "right", measured.accuracy),
        )
    ]
    of = f"confidence minus accuracy of the student on {after.count:,} {questions(findings.overconfidence_group)}"
    notes = [NO_MARKS] if findings.overconfidence_group == "all" else []
    beside = f"{_points(before.overconfidence)} before"
    if findings.overconfidence_change:
        beside += f", change {_change(findings.overconfidence_change)}"
    return _card(OVERCONFIDENCE, _points(after.overconfidence), of, bars, notes, beside)


def _card(title: str, verdict: str, of: str, bars: list[_Bar], notes: Sequence[str] = (), beside: str = "") -> str:
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
        f'<div><dt>{escape(bar.label)}</dt><dd class="wbu-{bar.kind}" aria-hidden="true"><i '
        f'style="width:{100 * bar.value:.1f}%"></i>{whisker}</dd><dd>{100 * bar.value:.1f}%{interval}</dd></div>'
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
