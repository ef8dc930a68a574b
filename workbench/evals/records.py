"""Store and aggregate the records of evaluations.

evals/step-000040.jsonl has one line per question, policy and context. For confidence see CONFIDENCE and
workbench.evals.evaluate. This file is apart from evaluate.py so that the page can read records without transformers.
"""

import json
import math
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.data.examples import split_by_evidence
from workbench.errors import DataError, RunError, show
from workbench.files.atomic import clear_temporaries, write_text
from workbench.files.folders import reason, saving
from workbench.files.jsonlines import split_lines
from workbench.files.parsing import Malformed, decode, parse_json
from workbench.types import Example

CONFIDENCE = (
    "product of the policy's probabilities of the tokens that decide its answer. It is a lower bound of the answer's "
    "probability, since other words may give the same answer. Without marked tokens: geometric mean over all tokens"
)
NUM_BINS = 10  # of confidence, for the calibration error


@dataclass(frozen=True)
class EvalRecord:
    """Answer of one policy to one question under one context."""

    step: int
    policy: str
    context: str
    example_id: str
    domain: str
    visibility: str | None
    answer: str | None
    text: str
    reward: float | None  # 1 right, 0 wrong, None unknown
    confidence: float
    length: int
    finished: bool
    entropy: float | None = None  # None in files of older versions
    question: str = ""  # "" in files of older versions
    dataset: str = ""  # name of the evaluation set, or of the source of held-out rows, if there are several


_KINDS = {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(EvalRecord).items()}
_KINDS = {name: (*kinds, int) if float in kinds else kinds for name, kinds in _KINDS.items()}


@dataclass(frozen=True)
class Accuracy:
    """Metrics of a group of answers; fractions from 0 to 1.

    overconfidence     mean confidence minus accuracy
    calibration_error  expected calibration error over NUM_BINS equal bins of confidence
    length             mean number of tokens, including the end token
    entropy            mean over questions, in nats per token; None if not recorded
    """

    count: int
    accuracy: float
    confidence: float
    overconfidence: float
    calibration_error: float
    truncated: float
    length: float
    entropy: float | None


def measure(records: Iterable[EvalRecord]) -> Accuracy | None:
    """Compute accuracy and calibration of a group; None if no answer has a reward."""
    records = [record for record in records if record.reward is not None]
    if not records:
        return None
    accuracy = math.fsum(record.reward for record in records) / len(records)
    confidence = math.fsum(record.confidence for record in records) / len(records)
    bins: list[list[EvalRecord]] = [[] for _ in range(NUM_BINS)]
    for record in records:
        bins[min(NUM_BINS - 1, int(record.confidence * NUM_BINS))].append(record)
    excess = [math.fsum(record.confidence - record.reward for record in part) for part in bins]
    error = math.fsum(map(abs, excess)) / len(records)
    truncated = sum(not record.finished for record in records) / len(records)
    length = sum(record.length for record in records) / len(records)
    entropies = [record.entropy for record in records if record.entropy is not None]
    entropy = math.fsum(entropies) / len(entropies) if len(entropies) == len(records) else None
    return Accuracy(len(records), accuracy, confidence, confidence - accuracy, error, truncated, length, entropy)


def tabulate(records: list[EvalRecord]) -> dict[tuple[int, str, str, str], Accuracy]:
    """Measure groups (step, policy, context, visibility), "all" and each dataset, in order of first appearance."""
    groups: dict[tuple[int, str, str, str], list[EvalRecord]] = {}
    for record in records:
        for value in ("all", record.visibility, record.dataset):
            if value:
                groups.setdefault((record.step, record.policy, record.context, value), []).append(record)
    measured = {key: measure(group) for key, group in groups.items()}
    return {key: accuracy for key, accuracy in measured.items() if accuracy is not None}


def save_records(run_dir: Path, step: int, records: list[EvalRecord]) -> None:
    """Write evals/step-N.jsonl atomically."""
    folder = run_dir / "evals"
    file = folder / f"step-{step:06d}.jsonl"
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    with saving(file):
        folder.mkdir(exist_ok=True)
        write_text(file, "".join(lines))


def load_records(run_dir: str | Path) -> list[EvalRecord]:
    """Load all evaluations of a run by step. Raises RunError naming a file and line that cannot be read."""
    records = []
    for _, file in _files(Path(run_dir)):
        line_number = 0
        try:
            for line_number, line in enumerate(split_lines(decode(file.read_bytes())), start=1):  # noqa: B007
                records.append(_parse_record(line))
        except (OSError, ValueError, TypeError) as error:
            where = f"{file}:{line_number}" if line_number else str(file)
            raise RunError(
                f"{where} cannot be read ({reason(error)}). If an earlier version wrote it, run: "
                f"workbench upgrade {run_dir}. Otherwise delete the file and evaluate again."
            ) from None
    return records


def _parse_record(line: str) -> EvalRecord:
    """Parse one line of a record file. Raises ValueError or TypeError if it is not a record."""
    values = parse_json(line)
    record = EvalRecord(**values) if isinstance(values, dict) else None
    if record is None:
        raise Malformed(f"it is {show(values)}, not an object")
    for name, kinds in _KINDS.items():
        if not isinstance(getattr(record, name), kinds):
            raise Malformed(f'"{name}" is {show(getattr(record, name))}')
    return record


def evaluated_steps(run_dir: Path) -> set[int]:
    """Return the steps with stored evaluations."""
    return {step for step, _ in _files(run_dir)}


def _files(run_dir: Path) -> list[tuple[int, Path]]:
    """List step and file of every evaluation. Raises RunError for a file with an invalid name."""
    files = []
    for file in (run_dir / "evals").glob("step-*.jsonl"):
        number = file.stem.removeprefix("step-")
        if not (number.isascii() and number.isdigit()):
            raise RunError(f"{file} must be named like evals/step-000040.jsonl. Move it elsewhere.")
        files.append((int(number), file))
    return sorted(files)


def forget_answers_after(run_dir: Path, step: int) -> None:
    """Delete evaluations of later steps, before a resumed run repeats them."""
    for number, file in _files(run_dir):
        if number > step:
            with saving(file, "Delete it to resume the run."):
                file.unlink()
    clear_temporaries(run_dir / "evals")


def summarize(table: dict[tuple[int, str, str, str], Accuracy]) -> dict[str, float]:
    """Flatten the table of one step to metrics: accuracy/student/plain/visible and so on."""
    flat = {}
    for (_, policy, context, group), measured in table.items():
        for name in ("accuracy", "confidence", "calibration_error", "length", "truncated"):
            flat[f"{name}/{policy}/{context}/{group}"] = getattr(measured, name)
    return flat


def require_answers(examples: list[Example]) -> None:
    """Raise DataError if no example has an answer to compare with."""
    if examples and all(example.answer is None for example in examples):
        raise DataError(
            f'none of the {len(examples)} evaluation examples has an "answer", so they cannot be graded. '
            "Add the column, choose other questions, or set data.eval=null."
        )


def require_shown(examples: list[Example], data: str, contexts: Iterable[str]) -> None:
    """Raise DataError if no example of `data` has the evidence of one of the contexts."""
    for context in contexts:
        split = split_by_evidence(examples, [context])
        if not split.usable:
            raise DataError(
                f'no example of {data} has "{split.skipped[0][1]}", which context "{context}" needs. Add the column, '
                "or choose another context."
            )
