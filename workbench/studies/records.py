"""Store the answers of every run, one row each, beside the run and together for the study.

The metadata of a run's questions.parquet describes the evaluation and its step. A run is evaluated again only if the
description has changed. This file is apart from evaluate.py so that the page can read records without transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.config.schema import ModelsConfig, RunConfig, build_config
from workbench.data.grading import TOLERANCE
from workbench.errors import RunError
from workbench.evals.records import EvalRecord, save_records
from workbench.files.atomic import replacing
from workbench.studies.plan import EvalSet, ReferenceModel, settings

FILE = "questions.parquet"
TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("data", TEXT),
        ("policy", TEXT),
        ("context", TEXT),
        ("example_id", pa.string()),
        ("domain", TEXT),
        ("visibility", TEXT),
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
_LEFT_OUT = b"left_out"


def show_start(run_dir: Path, files: list[Path], evaluate: tuple[EvalSet, ...]) -> None:
    """Save the references' answers as the run's evaluation before its first step, where the app looks for it."""
    rows = [
        row for file in files if file.is_file() for row in read(file).to_pylist() if row["data"] == evaluate[0].label
    ]
    records = [
        EvalRecord(
            0,
            row["policy"],
            row["context"],
            row["example_id"],
            row["domain"],
            row["visibility"],
            row["answer"],
            row["text"],
            row["accuracy"],
            row["confidence"],
            row["length"],
            not row["truncated"],
            row["entropy"],
        )
        for row in rows
    ]
    if records and not (run_dir / "evals" / "step-000000.jsonl").is_file():
        save_records(run_dir, 0, records)


def describe(config: RunConfig, evaluate: tuple[EvalSet, ...], step: int) -> dict:
    """Describe an evaluation: model, settings, questions. Files with the same description hold the same answers."""
    grader, tolerance = config.evaluation.grader, config.evaluation.tolerance
    return {
        "step": step,
        "rule": grader if tolerance == TOLERANCE else f"{grader} within {tolerance:g}",
        "settings": json.loads(json.dumps(settings(config))),
        "evaluate": [
            [questions.label, questions.data, list(questions.contexts), questions.max_examples]
            for questions in evaluate
        ],
    }


def describe_reference(reference: ReferenceModel, evaluate: tuple[EvalSet, ...]) -> dict:
    """Describe the evaluation of a reference model, which does not depend on training options."""
    config = reference.config
    questions = tuple(entry.for_references() for entry in evaluate)
    description = describe(config, questions, 0) | {"model": reference.model}
    models, length = config.models, config.sampling.max_completion_length
    loaded = models.student_options | (models.teacher_options if reference.role == "teacher" else {})
    defaults = ModelsConfig().student_options
    changed = {name: loaded[name] for name in defaults if name != "dtype" and loaded[name] != defaults[name]}
    return description | {"settings": {"dtype": models.dtype, "max_completion_length": length, **changed}}


def evaluated_on(file: Path) -> dict | None:
    """Read the description stored in a file of answers; None if there is none."""
    try:
        return json.loads(pq.read_schema(file).metadata[_METADATA])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def is_evaluated(file: Path, description: dict) -> bool:
    """Whether a file holds the answers described by `description`.

    A setting that did not exist when the file was written counts as its default.
    """
    stored = evaluated_on(file)
    if stored is None or stored == description:
        return stored is not None
    stored_settings = stored.get("settings", {})
    later = {
        key: value
        for key, value in description["settings"].items()
        if key not in stored_settings and not key.startswith("method.")
    }
    plain = {"models": {"student": "-", "teacher": "-"}, "data": {"train": "-"}, "method": {"name": "opd"}}
    defaults = json.loads(json.dumps(settings(build_config(plain, name="-")))) if later else {}
    return (
        all(value == defaults.get(key) for key, value in later.items())
        and stored | {"settings": stored_settings | later} == description
    )


def read(file: Path) -> pa.Table:
    """Read a file of answers. Raises RunError if it cannot be read."""
    try:
        return pq.read_table(file).cast(SCHEMA)
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}). Delete it; the same study evaluates again.") from None


def left_out_of(file: Path) -> list[str]:
    """Read the sentences about skipped questions stored in a file of answers."""
    try:
        return json.loads(pq.read_schema(file).metadata[_LEFT_OUT])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return []


def write(file: Path, records: dict[str, list[EvalRecord]], description: dict, left_out: Sequence[str] = ()) -> None:
    """Write answers with the description of the evaluation and the sentences about skipped questions."""
    rows = [
        {
            "data": label,
            "policy": row.policy,
            "context": row.context,
            "example_id": row.example_id,
            "domain": row.domain,
            "visibility": row.visibility,
            "answer": row.answer,
            "text": row.text,
            "accuracy": row.reward,
            "confidence": row.confidence,
            "entropy": row.entropy,
            "length": row.length,
            "truncated": not row.finished,
        }
        for label, rows_of_label in records.items()
        for row in rows_of_label
    ]
    metadata = {_METADATA: json.dumps(description).encode(), _LEFT_OUT: json.dumps([*left_out]).encode()}
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata))
    with replacing(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
