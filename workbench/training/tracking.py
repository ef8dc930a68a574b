"""Accelerator of a run, with its experiment trackers."""

from collections.abc import Iterable
from pathlib import Path

from accelerate import Accelerator

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError
from workbench.evals.records import EvalRecord
from workbench.files.packages import importing
from workbench.files.parsing import flatten

ANSWERS = 8  # per policy and context in a table of answers
COLUMNS = ("policy", "context", "question", "expected", "answer", "right", "confidence")


def build_accelerator(config: RunConfig, run_dir: Path) -> Accelerator:
    """Build the Accelerator. Raises ConfigError for a tracker that is missing or cannot be imported."""
    training = config.training
    try:
        accelerator = Accelerator(log_with=training.report_to or None, project_dir=str(run_dir))
    except ValueError as error:
        raise ConfigError(f"training.report_to={training.report_to} is not valid: {error}") from None
    missing = set(training.report_to) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ConfigError(
            f"training.report_to: {', '.join(sorted(missing))} is not installed. Install it with pip, or leave it out."
        )
    if training.report_to:
        with importing(f"training.report_to={training.report_to} needs", None, ", or leave the tracker out"):
            accelerator.init_trackers("workbench", config=_scalars(config.to_dict()))
    return accelerator


def log_answers(accelerator: Accelerator, records: Iterable[EvalRecord], step: int) -> None:
    """Log the first answers of an evaluation as a table: in wandb and ClearML, and as text in TensorBoard."""
    trackers = accelerator.trackers
    groups: dict[tuple[str, str], list[list[object]]] = {}
    for record in records if trackers else ():
        values = [record.policy, record.context, record.question, record.answer, record.text, record.reward]
        groups.setdefault((record.policy, record.context), []).append([*values, round(record.confidence, 3)])
    rows = [row for group in groups.values() for row in group[:ANSWERS]]
    for tracker in trackers if rows else ():
        if hasattr(tracker, "log_table"):
            tracker.log_table("evaluation/answers", columns=list(COLUMNS), data=rows, step=step)
        elif tracker.name == "tensorboard" and accelerator.is_main_process:
            lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
            text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
            tracker.writer.add_text("evaluation/answers", text, step)


def _cell(value: object) -> str:
    """Text of a cell of a Markdown table."""
    return " ".join(str("" if value is None else value).split()).replace("|", "\\|")


def _scalars(values: dict) -> dict[str, object]:
    """Flatten nested values to dotted keys, other values than scalars as text, as trackers expect."""
    flat = flatten(values)
    return {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in flat.items()}
