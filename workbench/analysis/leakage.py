"""Capability or leak? Four numbers of a run, each with its interval and one sentence that claims no more than that.

1. evidence: does it make the privileged policy more accurate? Only then can it teach something.
2. gain: did the student's accuracy change?
3. over-confidence: did confidence minus accuracy change where only the evidence answers?
4. loss: how much of it pulls toward what only the evidence explains?

An interval that includes zero (of the loss: one half) shows no direction, and the sentence says so. Intervals are 95%:
of 1 to 3 over questions (workbench.evals.findings), of 4 over recorded steps (a ratio of sums, linearized).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.analysis.evals import answers_of, indices_of, no_evals
from workbench.analysis.table import NO_SELF, NO_TRACES, Table, has_gaps, table, traces_of
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
    wilson,
    wrong_context,
)
from workbench.evals.records import EvalRecord
from workbench.traces.reader import Traces
from workbench.types import STUDENT

Interval = tuple[float, float, float]  # value, low, high
MIN_STEPS = 4  # recorded steps of an interval over steps
SURE = 0.8  # confidence from which a wrong answer is a confident error
GOOD, BAD, OPEN, NEUTRAL, UNKNOWN = "good", "bad", "open", "neutral", "unknown"

EVIDENCE = "Does the evidence help?"
NO_PLAIN = "The student was not evaluated without evidence. Add plain to evaluation.contexts."
NO_EVIDENCE = "No policy was evaluated with evidence. Add {context} to evaluation.contexts."
USED_WRONG = "This run used {context}, evidence of other examples. This number is about the true evidence."
NO_TEACHER = "The teacher was not evaluated. Set evaluation.teacher=true."
NO_OWN_EVIDENCE = "The evidence of this run, {context}, was not evaluated. Add it to evaluation.contexts."
NO_WRONG_EVIDENCE = "Not evaluated with wrong evidence. Add {context} to evaluation.contexts."
ONE_STEP = "Only step {step} is evaluated. A run evaluates its last step, too; for more steps, set evaluation.every=N."
TOO_FEW = "Fewer than two questions were graded at both steps. Increase evaluation.max_examples."
NO_MARKS = "The data has no marks, so questions that only the evidence answers cannot be separated."
FEW_STEPS = f"An interval needs {MIN_STEPS} recorded steps on each side."


@dataclass(frozen=True)
class Share:
    """A share from 0 to 1 that a verdict compares. kind: alone, shown, wrong, sure or right, as in assets/rows.css."""

    label: str
    kind: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """One of the four numbers.

    number    the number as text, with its unit; "–" if it is not known
    interval  its interval as text; empty without one
    state     good, bad, open (the interval shows no direction), neutral or unknown
    sentence  what the interval allows to say, or why the number is not known and what records it
    over      what the number is computed over
    shares    the shares behind it
    notes     what was not recorded, and the key that records it
    """

    name: str
    title: str
    number: str
    interval: str
    state: str
    sentence: str
    over: str = ""
    shares: tuple[Share, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossShare:
    """Share of the loss, and of tokens, whose information gap is larger than the capability gap, over some steps.

    interval  share of the loss with its interval over steps; low = high = share below MIN_STEPS steps
    """

    first_step: int
    last_step: int
    num_steps: int
    num_tokens: int
    interval: Interval
    token_share: float

    @property
    def steps(self) -> str:
        return f"step {self.last_step}" if self.num_steps == 1 else f"steps {self.first_step} to {self.last_step}"


def verdicts(run_dir: str | Path, traces: Traces | None = None) -> tuple[Verdict, Verdict, Verdict, Verdict]:
    """The four verdicts of a run: evidence, gain, over-confidence, loss.

    traces  the run's open traces; None = open them

    Raises: RunError if an evaluation, TraceError if a trace file cannot be read.
    """
    run_dir = Path(run_dir)
    records, privilege = answers_of(run_dir), privilege_of(run_dir)
    findings = find(records, privilege)
    source = findings.source if findings else source_of(records, privilege)
    missing = "" if findings else _why_missing(records, run_dir)
    teacher_lacks = _has_teacher(run_dir) and not any(row.policy == "teacher" for row in records)
    if findings is None:
        gain, over = _unknown("gain", "Accuracy gain", missing), _unknown("over-confidence", "Over-confidence", missing)
    else:
        gain, over = _gain(findings), _overconfidence(findings)
    opened = traces if traces is not None else traces_of(run_dir)
    evidence = _evidence(source, privilege, teacher_lacks) if records else _unknown("evidence", EVIDENCE, missing)
    return evidence, gain, over, _loss(opened)


def _evidence(source: Source | None, privilege: str | None, teacher_lacks: bool) -> Verdict:
    true = privilege if privilege and not shows_wrong(privilege) and privilege != "plain" else None
    notes = [NO_TEACHER] if teacher_lacks else []
    if source is None or source.difference is None:
        why = NO_EVIDENCE.format(context=true or "crop") if source is None else TOO_FEW
        return _unknown("evidence", EVIDENCE, why, notes)
    if privilege and shows_wrong(privilege):
        notes.append(USED_WRONG.format(context=privilege))
    if true and source.context != true:
        notes.append(NO_OWN_EVIDENCE.format(context=true))
    control = wrong_context(source.context)
    if control and control not in {wrong.context for wrong in source.wrong}:
        notes.append(NO_WRONG_EVIDENCE.format(context=control))
    shares = (
        Share("image alone", "alone", source.without.value, source.without.low, source.without.high),
        Share(
            f"with {source.context}",
            "shown",
            source.with_evidence.value,
            source.with_evidence.low,
            source.with_evidence.high,
        ),
        *(Share(f"with {wrong.context}", "wrong", wrong.value, wrong.low, wrong.high) for wrong in source.wrong),
    )
    change, who = _with_interval(source.difference), f"{source.name} with {source.context}"
    state, sentence = _worded(
        source.difference,
        (GOOD, f"Yes: {who} has {change} of accuracy over the image alone."),
        (BAD, f"No: {who} loses accuracy, {change} against the image alone."),
        f"Not shown: {who} differs by {change} from the image alone.",
    )
    over = f"{source.name}, {source.with_evidence.count:,} {questions(source.group)}"
    return Verdict("evidence", EVIDENCE, *_texts(source.difference), state, sentence, over, shares, tuple(notes))


def _gain(findings: Findings) -> Verdict:
    change = _with_interval(findings.gain)
    state, sentence = _worded(
        findings.gain,
        (GOOD, f"The student gained {change} of accuracy."),
        (BAD, f"The student lost accuracy: {change}."),
        f"No change of accuracy is shown: {change}.",
    )
    shares = tuple(
        Share(f"step {step}", "right", measured.accuracy)
        for step, measured in zip(findings.steps, (findings.before, findings.after), strict=True)
    )
    over = f"student, {findings.after.count:,} {questions(findings.group)}"
    return Verdict("gain", "Accuracy gain", *_texts(findings.gain), state, sentence, over, shares)


def _overconfidence(findings: Findings) -> Verdict:
    title, interval = "Change of over-confidence", findings.overconfidence_change
    if interval is None:
        return _unknown("over-confidence", title, TOO_FEW)
    before, after = (100 * measured.overconfidence for measured in findings.overconfidence)
    change = _with_interval(interval)
    from_to = f"from {signed_points(before)} to {signed_points(after)} points"
    state, sentence = _worded(
        interval,
        (BAD, f"The student became more over-confident: {change}, {from_to}."),
        (GOOD, f"The student became less over-confident: {change}, {from_to}."),
        f"No change of over-confidence is shown: {change}, {from_to}.",
    )
    shares = tuple(
        Share(f"{label}, step {step}", kind, value)
        for step, measured in zip(findings.steps, findings.overconfidence, strict=True)
        for label, kind, value in (
            ("confidence", "sure", measured.confidence),
            ("accuracy", "right", measured.accuracy),
        )
    )
    count, group = findings.overconfidence[1].count, findings.overconfidence_group
    over = f"confidence minus accuracy of the student, {count:,} {questions(group)}"
    notes = (NO_MARKS,) if group == "all" else ()
    return Verdict("over-confidence", title, *_texts(interval), state, sentence, over, shares, notes)


def _loss(traces: Traces | None) -> Verdict:
    title = "Loss that only the evidence explains"
    if traces is None or not has_gaps(traces):
        return _unknown("loss", title, NO_TRACES if traces is None else NO_SELF)
    parts = loss_shares(traces)
    if not parts:
        return _unknown("loss", title, "No recorded step has a loss.")
    end, (value, low, high) = parts[-1], parts[-1].interval
    interval = f"[{low:.0%}, {high:.0%}]" if end.num_steps >= MIN_STEPS else ""
    range_text = f"{value:.0%} {interval}".strip()
    if not interval:
        sentence = f"{range_text} of the loss at {end.steps} pulls toward what only the evidence explains."
    elif low > 0.5 or high < 0.5:
        half = "More" if low > 0.5 else "Less"
        sentence = f"{half} than half of the loss, {range_text}, pulls toward what only the evidence explains."
    else:
        sentence = f"{range_text} of the loss pulls toward what only the evidence explains"
        sentence += "; whether that is more than half is not shown."
    shares = tuple(Share(part.steps, "alone", part.interval[0], *_ends(part)) for part in parts)
    notes = () if interval else (FEW_STEPS,)
    over = f"{end.steps}, {end.num_tokens:,} tokens: |information gap| > |capability gap|"
    return Verdict("loss", title, f"{value:.0%}", interval, NEUTRAL, sentence, over, shares, notes)


def _ends(part: LossShare) -> tuple[float | None, float | None]:
    return part.interval[1:] if part.num_steps >= MIN_STEPS else (None, None)


def loss_shares(traces: Traces) -> list[LossShare]:
    """Loss that only the evidence explains in the first and in the last quarter of the recorded steps.

    A quarter has at least MIN_STEPS steps; runs with fewer than two quarters give all their steps as one part.
    """
    query = """SELECT step, CAST(sum(num_positions) AS BIGINT) AS tokens, sum(abs_loss) AS loss,
                      CAST(sum(num_information_dominated) AS BIGINT) AS dominated,
                      sum(information_dominated_abs_loss) AS explained
               FROM aggregates WHERE num_information_dominated IS NOT NULL GROUP BY step ORDER BY step"""
    rows = [row for row in traces.sql(query).to_pylist() if row["loss"]]
    size = max(MIN_STEPS, len(rows) // 4)
    parts = [rows[:size], rows[-size:]] if len(rows) >= 2 * size else [rows] if rows else []
    return [_loss_share(part) for part in parts]


def _loss_share(rows: Sequence[dict]) -> LossShare:
    tokens, loss = sum(row["tokens"] for row in rows), math.fsum(row["loss"] for row in rows)
    share = math.fsum(row["explained"] for row in rows) / loss
    interval = (share, *ratio_interval([(row["explained"], row["loss"]) for row in rows]))
    dominated = sum(row["dominated"] for row in rows) / tokens
    return LossShare(rows[0]["step"], rows[-1]["step"], len(rows), tokens, interval, dominated)


def ratio_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95% interval of the ratio of sums of (part, whole) pairs, linearized (Cochran 1977, 6.4), within 0 and 1.

    Below MIN_STEPS pairs both ends are the ratio.
    """
    count, whole = len(pairs), math.fsum(total for _, total in pairs)
    ratio = math.fsum(part for part, _ in pairs) / whole
    if count < MIN_STEPS:
        return ratio, ratio
    squares = math.fsum((part - ratio * total) ** 2 for part, total in pairs)
    margin = 1.96 * math.sqrt(count / (count - 1) * squares) / whole
    return max(0.0, ratio - margin), min(1.0, ratio + margin)


def confident_errors(run_dir: str | Path, *, limit: int = 50) -> Table:
    """The student's most confident wrong answers of the last evaluation, with its answers before training.

    `rollout` is the answer's index among those of its step.
    `before`, `confidence_before` and `right_before` are None where the first evaluation lacks the question.
    """
    columns = ["step", "rollout", "example", "context", "question", "visibility", "confidence", "text", "expected"]
    columns += ["confidence_before", "before", "right_before"]
    answers = answers_of(run_dir)
    index = dict(zip(map(id, answers), indices_of(answers), strict=True))
    records = [row for row in answers if row.policy == STUDENT and row.reward is not None]
    first, last = (choose((row.step for row in records), default=0) for choose in (min, max))
    was = {(row.example_id, row.context): row for row in records if row.step == first and first < last}
    wrong = sorted((row for row in records if row.step == last and row.reward == 0), key=lambda row: -row.confidence)
    rows = []
    for row in wrong[:limit]:
        before = was.get((row.example_id, row.context))
        earlier = {
            "confidence_before": before and before.confidence,
            "before": before and before.text,
            "right_before": before and before.reward == 1.0,
        }
        rows.append(
            {**vars(row), "rollout": index[id(row)], "example": row.example_id, "expected": row.answer, **earlier}
        )
    empty = "The last evaluation has no wrong answer." if records else no_evals(run_dir)
    units = dict.fromkeys(("confidence", "confidence_before"), "probability")
    return table(rows, columns, run=Path(run_dir).name, empty=empty, units=units)


def confident_error_rates(run_dir: str | Path) -> Table:
    """Share of questions that the student, without evidence, answers wrong with at least SURE confidence.

    One row per visibility at the first and the last evaluation; `low` and `high` are Wilson's 95% interval.
    """
    columns = ["step", "visibility", "errors", "count", "share", "low", "high"]
    records = [row for row in answers_of(run_dir) if row.policy == STUDENT and not is_privileged(row.context)]
    records = [row for row in records if row.reward is not None and row.context == records[0].context]
    rows = []
    for step in sorted({choose(row.step for row in records) for choose in (min, max)}) if records else ():
        at_step = [row for row in records if row.step == step]
        for visibility in sorted({row.visibility or "unmarked" for row in at_step}):
            group = [row for row in at_step if (row.visibility or "unmarked") == visibility]
            errors = sum(row.reward == 0 and row.confidence >= SURE for row in group)
            low, high = wilson(errors, len(group))
            rows.append([step, visibility, errors, len(group), errors / len(group), low, high])
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    return table(named, columns, run=Path(run_dir).name, empty=no_evals(run_dir), units={"share": "share of questions"})


def _why_missing(records: Sequence[EvalRecord], run_dir: Path) -> str:
    """Why no gain is known, and which key records it."""
    if not records:
        return no_evals(run_dir)
    steps = {row.step for row in records if row.policy == STUDENT and not is_privileged(row.context)}
    if not steps:
        return NO_PLAIN
    return ONE_STEP.format(step=min(steps)) if len(steps) == 1 else TOO_FEW


def _unknown(name: str, title: str, why: str, notes: Sequence[str] = ()) -> Verdict:
    return Verdict(name, title, "–", "", UNKNOWN, why, notes=tuple(notes))


def _worded(interval: Interval, up: tuple[str, str], down: tuple[str, str], neither: str) -> tuple[str, str]:
    """State and sentence by where the interval lies; one that includes zero shows no direction."""
    _, low, high = interval
    return up if low > 0 else down if high < 0 else (OPEN, neither)


def _texts(interval: Interval) -> tuple[str, str]:
    value, low, high = (signed_points(100 * number) for number in interval)
    return f"{value} points", f"[{low}, {high}]"


def _with_interval(interval: Interval) -> str:
    return " ".join(_texts(interval))


def signed_points(value: float) -> str:
    """A number of points with its sign and one decimal."""
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def _has_teacher(run_dir: Path) -> bool:
    try:
        models = read_yaml(run_dir / "config.yaml").get("models")
    except ConfigError:
        return False
    return isinstance(models, dict) and bool(models.get("teacher") or models.get("teachers"))
