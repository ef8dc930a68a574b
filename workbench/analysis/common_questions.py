"""Accuracy of several runs on the questions that all of them answered, and the questions that two answer differently.

Answers are the student's under the context "plain" at the newest evaluation of each run. Two runs have a question in
common if both its example and, where every run recorded it, its text are the same. Ungraded answers do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.analysis.evals import answers_of, no_evals
from workbench.analysis.table import Table, names_of, table
from workbench.evals.findings import mean_interval
from workbench.evals.records import EvalRecord
from workbench.types import PRIVILEGED, STUDENT, VISIBLE

CONTEXT = "plain"
GROUPS = (VISIBLE, PRIVILEGED, "all")
NO_COMMON = (
    "These runs have no evaluation question in common. Evaluate them on the same data.eval, or tick others at the left."
)
FLIPS = ("wrong to right", "right to wrong")
_Key = tuple[str, str]  # example and question


@dataclass(frozen=True)
class CommonAccuracy:
    """Accuracies on common questions.

    accuracies  per group of questions and run: run, step, visibility, count, accuracy, difference to the first run with
                its 95 % interval (`low`, `high`; paired over questions, normal), and the numbers of questions that turn
                from wrong to right (`gained`) and from right to wrong (`lost`). None for the first run, and without
                an interval for fewer than two questions
    common      number of common questions
    left_out    by run: its graded questions that are not common
    unanswered  runs without a graded answer, which do not restrict the common questions
    """

    accuracies: Table
    common: int
    left_out: dict[str, int]
    unanswered: tuple[str, ...]


def common_accuracy(*runs: str | Path) -> CommonAccuracy:
    """Compare runs with the first of them that has graded answers, on common questions. See CommonAccuracy.

    Raises: RunError for files that cannot be read.
    """
    answers, names = _newest(runs), names_of(*runs)
    answered = {name: by_key for name, by_key in zip(names, answers, strict=True) if by_key}
    common = _common(list(answered.values()))
    rows = []
    for group in GROUPS:
        keys = [key for key in common if group in ("all", next(iter(answered.values()))[key].visibility)]
        if keys:
            rows += _compared(group, keys, answered)
    columns = ["run", "step", "visibility", "count", "accuracy", "difference", "low", "high", "gained", "lost"]
    units = {"accuracy": "share of questions", "difference": "points", "count": "questions"}
    empty = NO_COMMON if answered else no_evals(runs[0])
    left_out = {name: len(by_key) - len(common) for name, by_key in answered.items()}
    unanswered = tuple(name for name in names if name not in answered)
    accuracies = table(rows, columns, run=", ".join(names), empty=empty, units=units)
    return CommonAccuracy(accuracies, len(common), left_out, unanswered)


def flips(first: str | Path, second: str | Path) -> Table:
    """Common questions that one run answers right and the other wrong: those turned from wrong to right first.

    Columns: flip (of FLIPS, from the first run to the second), example, visibility, question, expected, answer_a and
    answer_b. Raises: RunError for files that cannot be read.
    """
    columns = ["flip", "example", "visibility", "question", "expected", "answer_a", "answer_b"]
    before, after = _newest((first, second))
    rows = []
    common = _common([before, after])
    for key in common:
        was, now = before[key], after[key]
        if (was.reward == 1) != (now.reward == 1):
            flip = FLIPS[0] if now.reward == 1 else FLIPS[1]
            values = (flip, was.example_id, was.visibility, was.question, was.answer, was.text, now.text)
            rows.append(dict(zip(columns, values, strict=True)))
    rows.sort(key=lambda row: FLIPS.index(row["flip"]))
    names = names_of(first, second)
    no_flip = f"Of {len(common):,} common questions none is right in one run and wrong in the other."
    units = {"answer_a": names[0], "answer_b": names[1]}
    return table(rows, columns, run=", ".join(names), empty=no_flip if common else NO_COMMON, units=units)


def both_answers(first: str | Path, second: str | Path, example: str) -> tuple[EvalRecord, EvalRecord] | None:
    """Both runs' newest answers to a common question; None if it is not common."""
    before, after = _newest((first, second))
    return next(((before[key], after[key]) for key in _common([before, after]) if key[0] == example), None)


def _newest(runs: Sequence[str | Path]) -> list[dict[_Key, EvalRecord]]:
    """Graded plain answers of each run's student at its newest evaluation, by question."""
    newest = []
    for run in runs:
        answers = [row for row in answers_of(run) if row.policy == STUDENT and row.context == CONTEXT]
        last = max((row.step for row in answers), default=0)
        newest.append([row for row in answers if row.step == last and row.reward is not None])
    by_text = all(row.question for rows in newest for row in rows)  # older runs recorded examples only
    return [{(row.example_id, row.question if by_text else ""): row for row in rows} for rows in newest]


def _common(answers: Sequence[dict[_Key, EvalRecord]]) -> list[_Key]:
    """Questions of all runs, in the order of the first."""
    return [key for key in answers[0] if all(key in by_key for by_key in answers)] if answers else []


def _compared(group: str, keys: Sequence[_Key], answered: dict[str, dict[_Key, EvalRecord]]) -> list[dict]:
    """A row per run on these questions."""
    first = next(iter(answered.values()))
    rows = []
    for name, by_key in answered.items():
        accuracy = sum(by_key[key].reward or 0.0 for key in keys) / len(keys)
        row = {"run": name, "step": by_key[keys[0]].step, "visibility": group, "count": len(keys), "accuracy": accuracy}
        if by_key is not first:
            changes = [(by_key[key].reward or 0.0) - (first[key].reward or 0.0) for key in keys]
            interval = mean_interval(changes) or (sum(changes) / len(changes), None, None)
            row |= dict(zip(("difference", "low", "high"), interval, strict=True))
            turned = [(first[key].reward == 1, by_key[key].reward == 1) for key in keys]
            row |= {"gained": turned.count((False, True)), "lost": turned.count((True, False))}
        rows.append(row)
    return rows
