"""Checkpoints: the on-disk state that training resumes from.

    checkpoint-000040/
        student/               loads with the Auto classes, with processor and chat template (LoRA: the adapter)
        student_ema/           if the method has a moving average
        optimizer.safetensors  AdamW's two moments and step count of every trained weight; empty for SGD
        next_rollouts.jsonl    with sampling.ahead: the answers of the next step, by weights of the step before this one
        ann/, ann_ema/, optimizer_ann.safetensors      the same for a peer that trains in the same run
        state.json             step, and size and SHA-256 of every file

A checkpoint is written under a temporary name and renamed when it is complete, so a kill leaves all of it or nothing.
No random state is stored, since draws are seeded by step. This file is apart from training/checkpointing.py so that the
page can list checkpoints without transformers.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import RunError
from workbench.files.parsing import Malformed, read_object
from workbench.types import STUDENT

STATE = "state.json"
SAVED = {STUDENT: "", f"{STUDENT}@ema": "_ema"}  # saved policies -> suffixes of their folders


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    @property
    def student(self) -> Path:
        return self.weights(STUDENT)

    def weights(self, learner: str) -> Path:
        return self.path / learner

    def ema(self, learner: str) -> Path | None:
        """Folder of the moving average; None if the method has none."""
        folder = self.path / f"{learner}_ema"
        return folder if folder.is_dir() else None

    @property
    def upcoming(self) -> Path:
        """File of answers sampled ahead; only of runs with sampling.ahead."""
        return self.path / "next_rollouts.jsonl"

    def optimizer(self, learner: str) -> Path:
        return self.path / ("optimizer.safetensors" if learner == STUDENT else f"optimizer_{learner}.safetensors")


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """List the checkpoints of a run, oldest first, complete or not (see `open_checkpoint`)."""
    checkpoints = []
    for path in run_dir.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if path.is_dir() and number.isdigit():
            checkpoints.append(Checkpoint(path, int(number)))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def open_checkpoint(path: Path, *, reads: bool = False) -> Checkpoint:
    """Open a checkpoint after checking that all files exist in full length.

    reads   also compare their checksums
    Raises  RunError naming the file that is missing, truncated or damaged
    """
    try:
        state = read_object(path / STATE)
        files, digests, step = dict(state["files"]), dict(state.get("sha256", {})), int(state["step"])
        if not any(name.startswith(f"{STUDENT}/") for name in files):
            raise Malformed(f"its list of files has none of {STUDENT}/")
        if path.name != f"checkpoint-{step:06d}":
            raise Malformed(f"it is of step {step}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is not a complete checkpoint ({STATE}: {error}). Resume from an earlier one.") from None
    for name, size in files.items():
        file = path / name
        actual_size = file.stat().st_size if file.is_file() else None
        if actual_size != size:
            state_of = "is missing" if actual_size is None else f"has {actual_size} bytes instead of {size}"
            raise RunError(
                f"checkpoint {path} is truncated: {name} {state_of}. Resume from an earlier one or start again."
            )
        if reads and name in digests and digest(file) != digests[name]:
            raise RunError(
                f"checkpoint {path} is damaged: {name} does not match its checksum. Resume from an earlier one or "
                "start again."
            )
    return Checkpoint(path, step)


def latest_checkpoint(run_dir: Path, *, reads: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """Open the newest complete checkpoint, or None. Also returns an error message for each skipped one.

    reads  see open_checkpoint
    """
    torn = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            return open_checkpoint(checkpoint.path, reads=reads), torn
        except RunError as error:
            torn.append(str(error))
    return None, torn


def refuse_other_run(checkpoint: Checkpoint, learner: str, start: str | Path, *, lora: bool, averages: bool) -> None:
    """Raise RunError if a checkpoint does not fit a run's configuration: learners, models, LoRA, moving average."""
    folder = checkpoint.weights(learner)
    adapts, saved, configured = _adapts(folder), _build(folder), _build(Path(start))
    other = [name for name in saved.keys() & configured.keys() if saved[name] != configured[name]]
    if not folder.is_dir():
        fault = f'it has no learner "{learner}"'
    elif adapts != (lora or _adapts(Path(start))):
        weights = "a LoRA adapter" if adapts else "whole weights"
        fault = f"it has {weights}, but models.lora.rank is {'above 0' if lora else '0'}"
    elif averages and checkpoint.ema(learner) is None:
        fault = "it has no moving average, which the method needs"
    elif other:
        fault = f"its {learner} has {min(other)} {saved[min(other)]}, but {start} has {configured[min(other)]}"
    else:
        return
    raise RunError(
        f"{checkpoint.path} belongs to another configuration: {fault}. Resume with the run's original config.yaml, or "
        "start a new run."
    )


def _adapts(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _build(folder: Path) -> dict[str, object]:
    """Read type and sizes of the model in a folder from its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    text = config.get("text_config") or config
    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    description = {"model_type": config.get("model_type")} | {name: text.get(name) for name in sizes}
    return {name: value for name, value in description.items() if value is not None}


def digest(file: Path) -> str:
    """Compute the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
