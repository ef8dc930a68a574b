"""Checkpoints: all that training needs to go on as if it had never stopped.

    checkpoint-000040/
        student/               loads with the Auto classes, processor and chat template included (LoRA: the adapter)
        student_ema/           if the method has a moving average
        optimizer.safetensors  AdamW's two moments and step count of every trained weight; nothing of SGD
        ann/, ann_ema/, optimizer_ann.safetensors      the same of a peer that learns in the same run
        state.json             step, and what was saved: size and SHA-256 of every file

A checkpoint is written under a temporary name and renamed when it is complete, so a kill leaves either all of it or
nothing. Nothing random is stored: draws are seeded by step. What analysis of the weights reads is `student/`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor

from workbench.errors import RunError
from workbench.policies import Policy
from workbench.sharding import part_like, whole, whole_weights
from workbench.types import STUDENT

_STATE = "state.json"
_SAVED = {STUDENT: "", f"{STUDENT}@ema": "_ema"}  # policies that are saved: endings of their folders


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
        """None if the method had no moving average."""
        folder = self.path / f"{learner}_ema"
        return folder if folder.is_dir() else None

    def optimizer(self, learner: str) -> Path:
        return self.path / ("optimizer.safetensors" if learner == STUDENT else f"optimizer_{learner}.safetensors")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is, once it is complete."""
    return run_dir / f"checkpoint-{step:06d}"


@runtime_checkable
class Trained(Protocol):
    """What a checkpoint holds of a learner (workbench.learner)."""

    name: str
    policies: dict[str, Policy]
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Gathered:
    """What processes hold of a learner in parts, put together in host memory. weights: by policy, then by name."""

    weights: dict[str, dict[str, torch.Tensor]]
    moments: dict[str, torch.Tensor]


def gather(learner: Trained, keep: bool) -> Gathered | None:
    """Every process gives its parts of a learner, and who is to `keep` them has it whole; None if it is not in parts."""
    model = learner.policies[STUDENT].model
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    found = Gathered({}, {})
    for name in _SAVED:
        own = found.weights.setdefault(name, {})
        for key, value in whole_weights(learner.policies[name].model) if name in learner.policies else ():
            own |= {key: value} if keep else {}
    for key, value in _moments(learner.optimizer, _names(model)):
        found.moments.update({key: value} if keep else {})
    return found


def save_checkpoint(
    run_dir: Path, step: int, learners: Sequence[Trained], *, keep: int = 0, gathered: Sequence[Gathered | None] = ()
) -> Checkpoint:
    """Write checkpoint `step`, then delete the oldest ones beyond `keep` (0 = keep all).

    gathered  the learners as `gather` gives them; () = none is in parts
    """
    final = checkpoint_path(run_dir, step)
    temporary = run_dir / f".checkpoint-{step:06d}"
    for leftover in run_dir.glob(".checkpoint-*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    for learner, parts in zip(learners, gathered or [None] * len(learners), strict=True):
        for name, ending in _SAVED.items():
            if name in learner.policies:
                folder = temporary / f"{learner.name}{ending}"
                weights = None if parts is None else parts.weights[name]
                learner.policies[name].model.save_pretrained(folder, state_dict=weights)
                learner.policies[name].processor.save_pretrained(folder)
        own = _moments(learner.optimizer, _names(learner.policies[STUDENT].model)) if parts is None else parts.moments
        safetensors.torch.save_file(dict(own), Checkpoint(temporary, step).optimizer(learner.name))
    written = {str(path.relative_to(temporary)): path for path in temporary.rglob("*") if path.is_file()}
    files = {name: path.stat().st_size for name, path in written.items()}
    digests = {name: _digest(path) for name, path in written.items()}
    (temporary / _STATE).write_text(json.dumps({"step": step, "files": files, "sha256": digests}, indent=1))
    _sync(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    done = [one for one in list_checkpoints(run_dir) if one.step <= step]  # a later one is torn: it was passed over
    for old in done[: max(0, len(done) - keep)] if keep else []:
        shutil.rmtree(old.path)
    return Checkpoint(final, step)


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Checkpoints of a run, oldest first, complete or not; `open_checkpoint` tells."""
    found = []
    for path in run_dir.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if path.is_dir() and number.isdigit():
            found.append(Checkpoint(path, int(number)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def open_checkpoint(path: Path, *, reads: bool = False) -> Checkpoint:
    """A checkpoint whose files are all there in full length.

    reads   read them too: each must hold what was written
    Raises  RunError naming the file that is missing, torn or damaged
    """
    try:
        state = json.loads((path / _STATE).read_text())
        files, digests, step = dict(state["files"]), dict(state.get("sha256", {})), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is no complete checkpoint ({_STATE}: {error}). Resume from an earlier one.") from None
    for name, size in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state_of = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise RunError(f"checkpoint {path} is torn: {name} {state_of}. Resume from an earlier one or start again.")
        if reads and name in digests and _digest(file) != digests[name]:
            raise RunError(
                f"checkpoint {path} is damaged: {name} does not hold what was written. Resume from an earlier one or "
                "start again."
            )
    return Checkpoint(path, step)


def latest_checkpoint(run_dir: Path, *, reads: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint, or None, and a sentence for each that was passed over. reads: see open_checkpoint."""
    torn = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            return open_checkpoint(checkpoint.path, reads=reads), torn
        except RunError as error:
            torn.append(str(error))
    return None, torn


def refuse_other_run(checkpoint: Checkpoint, learner: str, start: str | Path, *, lora: bool, averages: bool) -> None:
    """Raises RunError if a checkpoint was not made of what a run says: other learners or models, LoRA, a moving average."""
    folder = checkpoint.weights(learner)
    adapts, found, told = _adapts(folder), _build(folder), _build(Path(start))
    other = [name for name in found.keys() & told.keys() if found[name] != told[name]]
    if not folder.is_dir():
        fault = f'it holds no learner "{learner}"'
    elif adapts != (lora or _adapts(Path(start))):
        fault = f"it holds {'a LoRA adapter' if adapts else 'whole weights'}, and models.lora.rank is {'above 0' if lora else '0'}"
    elif averages and checkpoint.ema(learner) is None:
        fault = "it holds no moving average, which the method reads"
    elif other:
        fault = f"its {learner} has {min(other)} {found[min(other)]}, and {start} has {told[min(other)]}"
    else:
        return
    raise RunError(
        f"{checkpoint.path} belongs to another configuration: {fault}. Resume with the config.yaml that the run was started "
        "with, or start a new run."
    )


def _adapts(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _build(folder: Path) -> dict[str, object]:
    """What kind of model a folder holds and how large it is, as far as it says."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    text = config.get("text_config") or config
    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    said = {"model_type": config.get("model_type")} | {name: text.get(name) for name in sizes}
    return {name: value for name, value in said.items() if value is not None}


def load_optimizer(
    checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, model: nn.Module, learner: str = STUDENT
) -> None:
    """Put the saved moments into a fresh optimiser. Raises RunError if they are not those of this model's weights."""
    file = checkpoint.optimizer(learner)
    try:
        saved = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} cannot be read ({error}).") from None
    names = _names(model)
    trained = {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
    foreign = {key.partition("/")[2] for key in saved} - trained
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            state = {key: saved.get(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq", "step")}
            if not foreign and all(value is None for value in state.values()):
                continue  # it never had a gradient: the vision tower of a run without pictures
            if any(value is None for value in state.values()):
                raise RunError(
                    f"{checkpoint.path} has no optimizer state of the weight {name}: it was saved with other "
                    "trained weights (LoRA?). Resume with the run's own configuration."
                )
            moments = {key: part_like(value, parameter) for key, value in state.items() if key != "step"}
            count = state["step"].to(parameter.device)  # where fused AdamW wants it
            optimizer.state[parameter] = {"step": count, **moments}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _moments(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            yield f"{key}/{names[id(parameter)]}", whole(value.detach()).cpu().contiguous()


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _sync(folder: Path) -> None:
    """Have the files on disk before the rename makes them count."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
