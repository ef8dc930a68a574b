"""Every question of every run, one row each: asked once, kept beside the run, put together for the study.

A run's questions.parquet says in its metadata what was asked of which step; asked again only if that has changed.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.checkpoints import latest_checkpoint
from workbench.config import RunConfig, build_config
from workbench.datasets import load_examples, split_by_evidence
from workbench.errors import RunError
from workbench.evaluate import Answered, answer_questions, save_answers
from workbench.grading import TOLERANCE
from workbench.policies.loading import load_policies
from workbench.scorer import default_device
from workbench.study.plan import Questions, Reference, settings
from workbench.types import STUDENT

FILE = "questions.parquet"
TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("data", TEXT),
        ("policy", TEXT),
        ("context", TEXT),
        ("example_id", pa.string()),
        ("domain", TEXT),
        ("truth", TEXT),
        ("answer", TEXT),
        ("text", pa.string()),
        ("accuracy", pa.float64()),  # 1 right, 0 wrong, null: no answer is known
        ("confidence", pa.float64()),
        ("entropy", pa.float64()),
        ("length", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)
_METADATA = b"workbench.asked"


def ask_run(config: RunConfig, evaluate: tuple[Questions, ...], *, load: Callable = load_examples) -> Path:
    """The students of a finished run's newest checkpoint are asked everything; does nothing if they have been."""
    checkpoint, torn = latest_checkpoint(config.run_dir)
    if checkpoint is None:
        raise RunError(f"{config.run_dir} has no complete checkpoint to ask. {' '.join(torn)}")
    file = config.run_dir / FILE
    asked = describe(config, evaluate, checkpoint.step)
    if is_asked(file, asked):
        return file
    answered: dict[str, list[Answered]] = {}
    options = {"dtype": config.models.dtype, "device": default_device(config.models.device), "trust_remote_code": config.models.trust_remote_code}  # fmt: skip
    for name in config.models.learners:
        policies = load_policies([], student=checkpoint.weights(name), learner=name, **options)
        for label, rows in _ask(policies[STUDENT], config, evaluate, checkpoint.step, load).items():
            answered.setdefault(label, []).extend(rows)
    save_answers(config.run_dir, checkpoint.step, answered[evaluate[0].label])  # where the app looks for them
    _write(file, answered, asked)
    return file


def ask_reference(
    reference: Reference, evaluate: tuple[Questions, ...], file: Path, *, load: Callable = load_examples
) -> Path:
    """A model as it is, asked everything; does nothing if it has been."""
    config = reference.config
    asked = describe_reference(reference, evaluate)
    if is_asked(file, asked):
        return file
    names = ["teacher"] if reference.role == "teacher" else []
    policies = load_policies(
        names,
        student=config.models.learners[reference.learner],
        learner=reference.learner,
        teacher=reference.model if names else None,
        dtype=config.models.dtype,
        teacher_dtype=config.models.teacher_dtype,
        device=default_device(config.models.device),
        trust_remote_code=config.models.trust_remote_code,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, _ask(policies[reference.role], config, evaluate, 0, load), asked)
    return file


def show_start(run_dir: Path, files: list[Path], evaluate: tuple[Questions, ...]) -> None:
    """The references' answers as the run's evaluation before its first step, where the app looks for it."""
    rows = [row for file in files if file.is_file() for row in read(file).to_pylist() if row["data"] == evaluate[0].label]  # fmt: skip
    answered = [
        Answered(
            0, row["policy"], row["context"], row["example_id"], row["domain"], row["truth"], row["answer"], row["text"],
            row["accuracy"], row["confidence"], row["length"], not row["truncated"], row["entropy"],
        )
        for row in rows
    ]  # fmt: skip
    if answered and not (run_dir / "evals" / "step-000000.jsonl").is_file():
        save_answers(run_dir, 0, answered)


def describe(config: RunConfig, evaluate: tuple[Questions, ...], step: int) -> dict:
    """What is asked of whom, and how: two files with the same description hold the same answers."""
    rule, tolerance = config.evaluation.rule, config.evaluation.tolerance
    return {
        "step": step,
        "rule": rule if tolerance == TOLERANCE else f"{rule} within {tolerance:g}",
        "settings": json.loads(json.dumps(settings(config))),
        "evaluate": [[one.label, one.data, list(one.contexts), one.count] for one in evaluate],
    }


def describe_reference(reference: Reference, evaluate: tuple[Questions, ...]) -> dict:
    """As `describe`, of a model as it is: it does not depend on how others are trained."""
    config = reference.config
    asked = describe(config, evaluate, 0) | {"model": reference.model}
    length = config.sampling.max_completion_length
    return asked | {"settings": {"dtype": config.models.dtype, "max_completion_length": length}}


def asked_of(file: Path) -> dict | None:
    """What a file of questions says was asked; None if there is none that can be read."""
    try:
        return json.loads(pq.read_schema(file).metadata[_METADATA])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def is_asked(file: Path, wanted: dict) -> bool:
    """Whether a file holds the answers to what is `wanted`. A setting that the workbench did not have when it was written
    was then as its default is now.
    """
    found = asked_of(file)
    if found is None or found == wanted:
        return found is not None
    own = found.get("settings", {})
    later = {
        key: value for key, value in wanted["settings"].items() if key not in own and not key.startswith("method.")
    }
    plain = {"models": {"student": "-", "teacher": "-"}, "data": {"train": "-"}, "method": {"name": "opd"}}
    defaults = json.loads(json.dumps(settings(build_config(plain, name="-")))) if later else {}
    return (
        all(value == defaults.get(key) for key, value in later.items()) and found | {"settings": own | later} == wanted
    )


def read(file: Path) -> pa.Table:
    """A file of questions. Raises RunError if it cannot be read."""
    try:
        return pq.read_table(file).cast(SCHEMA)
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{file} cannot be read ({error}). Delete it; the same study asks again.") from None


def _ask(
    policy: object, config: RunConfig, evaluate: tuple[Questions, ...], step: int, load: Callable
) -> dict[str, list[Answered]]:
    answered: dict[str, list[Answered]] = {}
    for questions in evaluate:
        examples = load(questions.data, limit=questions.count)
        for context in questions.contexts:
            answered.setdefault(questions.label, []).extend(
                answer_questions(
                    policy,
                    split_by_evidence(examples, [context]).usable,
                    context,
                    step=step,
                    max_completion_length=config.sampling.max_completion_length,
                    **config.evaluation.grading,
                    batch_size=config.evaluation.batch_size,
                )
            )
    return answered


def _write(file: Path, answered: dict[str, list[Answered]], asked: dict) -> None:
    rows = [
        {
            "data": label,
            "policy": row.policy,
            "context": row.context,
            "example_id": row.example_id,
            "domain": row.domain,
            "truth": row.truth,
            "answer": row.answer,
            "text": row.text,
            "accuracy": row.reward,
            "confidence": row.confidence,
            "entropy": row.entropy,
            "length": row.length,
            "truncated": not row.finished,
        }
        for label, own in answered.items()
        for row in own
    ]
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({_METADATA: json.dumps(asked).encode()}))
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, file)
