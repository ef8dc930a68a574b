"""Answers of evaluations: how they are kept beside a run, and what groups of them are worth. No model is asked here.

evals/step-000040.jsonl holds one line per question, policy and context. Confidence (CONFIDENCE) is over the marked tokens
of the answer's own truth, see workbench.evals.evaluate.
"""

import json
import math
import os
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.data.examples import split_by_evidence
from workbench.errors import DataError, RunError, show
from workbench.files.folders import reason, saving
from workbench.files.jsonlines import split_lines
from workbench.files.parsing import Malformed, decode, parse_json
from workbench.types import Example

CONFIDENCE = (
    "probability that the policy gave to the tokens that decide its answer, multiplied: a lower bound of the answer's own, "
    "since other words may give the same answer; where no token is marked, the geometric mean over all tokens"
)
NUM_BINS = 10  # of confidence, for the calibration error


@dataclass(frozen=True)
class EvalRecord:
    """One question answered by one policy under one context."""

    step: int
    policy: str
    context: str
    example_id: str
    domain: str
    truth: str | None
    answer: str | None
    text: str
    reward: float | None  # 1 right, 0 wrong, None: no answer is known
    confidence: float
    length: int
    finished: bool
    entropy: float | None = None  # None: written before entropies were
    question: str = ""  # "": written before questions were


_KINDS = {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(EvalRecord).items()}
_KINDS = {name: (*kinds, int) if float in kinds else kinds for name, kinds in _KINDS.items()}


@dataclass(frozen=True)
class Accuracy:
    """A group of answered questions, with its size; shares from 0 to 1.

    overconfidence     mean confidence minus accuracy
    calibration_error  expected, over NUM_BINS equal bins of confidence
    length             mean, in tokens, the end token included
    entropy            mean over questions, nats per token; None if it was not recorded
    """

    count: int
    accuracy: float
    confidence: float
    overconfidence: float
    calibration_error: float
    truncated: float
    length: float
    entropy: float | None


def measure(answered: Iterable[EvalRecord]) -> Accuracy | None:
    """Accuracy and calibration of a group; None if no right answer is known in it."""
    rows = [row for row in answered if row.reward is not None]
    if not rows:
        return None
    accuracy = math.fsum(row.reward for row in rows) / len(rows)
    confidence = math.fsum(row.confidence for row in rows) / len(rows)
    bins: list[list[EvalRecord]] = [[] for _ in range(NUM_BINS)]
    for row in rows:
        bins[min(NUM_BINS - 1, int(row.confidence * NUM_BINS))].append(row)
    error = math.fsum(abs(math.fsum(row.confidence - row.reward for row in part)) for part in bins) / len(rows)
    truncated = sum(not row.finished for row in rows) / len(rows)
    length = sum(row.length for row in rows) / len(rows)
    entropies = [row.entropy for row in rows if row.entropy is not None]
    entropy = math.fsum(entropies) / len(entropies) if len(entropies) == len(rows) else None
    return Accuracy(len(rows), accuracy, confidence, confidence - accuracy, error, truncated, length, entropy)


def tabulate(answered: list[EvalRecord], by: str = "truth") -> dict[tuple[int, str, str, str], Accuracy]:
    """Groups (step, policy, context, value of `by`), and "all" of each, in order of first appearance."""
    groups: dict[tuple[int, str, str, str], list[EvalRecord]] = {}
    for row in answered:
        for value in ("all", getattr(row, by)):
            if value:
                groups.setdefault((row.step, row.policy, row.context, value), []).append(row)
    measured = {key: measure(rows) for key, rows in groups.items()}
    return {key: accuracy for key, accuracy in measured.items() if accuracy is not None}


def save_records(run_dir: Path, step: int, answered: list[EvalRecord]) -> None:
    """Write evals/step-N.jsonl, whole or not at all."""
    folder = run_dir / "evals"
    temporary, file = folder / f".step-{step:06d}.jsonl", folder / f"step-{step:06d}.jsonl"
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in answered)
    with saving(file):
        folder.mkdir(exist_ok=True)
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, file)


def load_records(run_dir: str | Path) -> list[EvalRecord]:
    """All evaluations of a run, by step. Raises RunError naming a file and line that cannot be read."""
    rows = []
    for _, file in _files(Path(run_dir)):
        line_number = 0
        try:
            for line_number, line in enumerate(split_lines(decode(file.read_bytes())), start=1):  # noqa: B007
                rows.append(_answered(line))
        except (OSError, ValueError, TypeError) as error:
            where = f"{file}:{line_number}" if line_number else str(file)
            raise RunError(f"{where} cannot be read ({reason(error)}). Delete the file and evaluate again.") from None
    return rows


def _answered(line: str) -> EvalRecord:
    """One line of evals/. Raises ValueError or TypeError for what is none."""
    values = parse_json(line)
    row = EvalRecord(**values) if isinstance(values, dict) else None
    if row is None:
        raise Malformed(f"it is {show(values)} and no object")
    for name, kinds in _KINDS.items():
        if not isinstance(getattr(row, name), kinds):
            raise Malformed(f'"{name}" is {show(getattr(row, name))}')
    return row


def evaluated_steps(run_dir: Path) -> set[int]:
    """Steps whose answers are kept."""
    return {step for step, _ in _files(run_dir)}


def _files(run_dir: Path) -> list[tuple[int, Path]]:
    """Step and file of every evaluation. Raises RunError for a file that is named like one and is none."""
    files = []
    for file in (run_dir / "evals").glob("step-*.jsonl"):
        number = file.stem.removeprefix("step-")
        if not (number.isascii() and number.isdigit()):
            raise RunError(f"{file} is no evaluation of a step, as evals/step-000040.jsonl is. Move it elsewhere.")
        files.append((int(number), file))
    return sorted(files)


def forget_answers_after(run_dir: Path, step: int) -> None:
    """Delete evaluations of later steps, before a resumed run does them again."""
    for number, file in _files(run_dir):
        if number > step:
            with saving(file, "It is to be deleted before the run goes on."):
                file.unlink()
    for file in (run_dir / "evals").glob(".step-*.jsonl"):  # of a kill while it was written
        file.unlink()


def summarize(table: dict[tuple[int, str, str, str], Accuracy]) -> dict[str, float]:
    """A table of one step as flat numbers: accuracy/student/plain/visible and so on."""
    flat = {}
    for (_, policy, context, group), measured in table.items():
        for name in ("accuracy", "confidence", "calibration_error", "length", "truncated"):
            flat[f"{name}/{policy}/{context}/{group}"] = getattr(measured, name)
    return flat


def require_answers(examples: list[Example]) -> None:
    """Raises DataError if no example has an answer to compare with."""
    if examples and all(example.answer is None for example in examples):
        raise DataError(
            f'none of the {len(examples)} evaluation examples has an "answer", so nothing can be counted as right. '
            "Add the column, or choose other questions. A run goes without with data.eval=null."
        )


def require_shown(examples: list[Example], data: str, contexts: Iterable[str]) -> None:
    """Raises DataError if one of the contexts can be built for no example of `data`."""
    for context in contexts:
        split = split_by_evidence(examples, [context])
        if not split.usable:
            raise DataError(f'no example of {data} has "{split.skipped[0][1]}", which context "{context}" needs.')
