"""Save checkpoints and restore optimizer state. The format on disk is documented in runs/checkpoints.py."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor

from workbench.distributed import ALONE, ProcessGroup
from workbench.errors import RunError
from workbench.files.folders import saving
from workbench.policies.fsdp import full_tensor, full_weights, in_lockstep, scatter_like
from workbench.policies.scattering import mapped_files, release_pages
from workbench.runs.checkpoints import SAVED, STATE, Checkpoint, digest, list_checkpoints
from workbench.runs.folder import checkpoint_path
from workbench.types import STUDENT


@runtime_checkable
class Trained(Protocol):
    """Parts of a Learner that a checkpoint stores."""

    name: str
    policies: dict[str, Any]
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Gathered:
    """Full tensors of a sharded learner in host memory. weights: by policy, then by name."""

    weights: dict[str, dict[str, torch.Tensor]]
    moments: dict[str, torch.Tensor]


def gather(learner: Trained, keep: bool) -> Gathered | None:
    """All-gather the shards of a learner. The ranks with `keep` get full tensors; None if the learner is not
    sharded.
    """
    model = learner.policies[STUDENT].model
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    gathered = Gathered({}, {})
    for name in SAVED:
        policy_weights = gathered.weights.setdefault(name, {})
        for key, value in full_weights(learner.policies[name].model) if name in learner.policies else ():
            policy_weights |= {key: value} if keep else {}
    for key, value in _moments(learner.optimizer, _names(model)):
        gathered.moments.update({key: value} if keep else {})
    return gathered


def save_checkpoint(
    run_dir: Path,
    step: int,
    learners: Sequence[Trained],
    *,
    save_total_limit: int = 0,
    gathered: Sequence[Gathered | None] = (),
    best_step: int = 0,
    upcoming: Sequence[dict] = (),
) -> Checkpoint:
    """Write checkpoint `step`, then delete the oldest ones beyond `save_total_limit` (0 = keep all).

    best_step  step whose checkpoint is kept beside them; 0 = none
    upcoming  rows of the answers of the next step, if they were sampled ahead
    gathered  results of `gather`, one per learner; () = no learner is sharded
    """
    final = checkpoint_path(run_dir, step)
    temporary = run_dir / f".checkpoint-{step:06d}"
    remedy = f"Free some space or check the permissions, then continue with `workbench resume {run_dir}`."
    try:
        with saving(final, remedy):
            _write_checkpoint(run_dir, temporary, step, learners, gathered or [None] * len(learners), upcoming)
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
    except RunError:
        shutil.rmtree(temporary, ignore_errors=True)  # frees its disk space
        raise
    # a later checkpoint is incomplete, and resume skipped it
    done = [checkpoint for checkpoint in list_checkpoints(run_dir) if checkpoint.step <= step]
    done = [checkpoint for checkpoint in done if checkpoint.step != best_step]
    for old in done[: max(0, len(done) - save_total_limit)] if save_total_limit else []:
        shutil.rmtree(old.path)
    return Checkpoint(final, step)


def _write_checkpoint(
    run_dir: Path,
    temporary: Path,
    step: int,
    learners: Sequence[Trained],
    gathered: Sequence[Gathered | None],
    upcoming: Sequence[dict],
) -> None:
    """Write all files of a checkpoint and sync them to disk."""
    for leftover in run_dir.glob(".checkpoint-*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    for learner, parts in zip(learners, gathered, strict=True):
        for name, ending in SAVED.items():
            if name in learner.policies:
                folder = temporary / f"{learner.name}{ending}"
                weights = None if parts is None else parts.weights[name]
                learner.policies[name].model.save_pretrained(folder, state_dict=weights)
                learner.policies[name].processor.save_pretrained(folder)
        moments = (
            _moments(learner.optimizer, _names(learner.policies[STUDENT].model)) if parts is None else parts.moments
        )
        safetensors.torch.save_file(dict(moments), Checkpoint(temporary, step).optimizer(learner.name))
    if upcoming:
        lines = "".join(json.dumps(row) + "\n" for row in upcoming)
        Checkpoint(temporary, step).upcoming.write_text(lines, encoding="utf-8")
    written = {str(path.relative_to(temporary)): path for path in temporary.rglob("*") if path.is_file()}
    files = {name: path.stat().st_size for name, path in written.items()}
    digests = {name: digest(path) for name, path in written.items()}
    (temporary / STATE).write_text(json.dumps({"step": step, "files": files, "sha256": digests}, indent=1))
    _sync(temporary)


def load_optimizer(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    learner: str = STUDENT,
    process_group: ProcessGroup = ALONE,
) -> None:
    """Load the saved moments into a new optimizer. Raises RunError if they belong to other weights."""
    saved, names = _SavedState(checkpoint.optimizer(learner), process_group), _names(model)
    trained = {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    if saved.parts.keys() <= trained.keys():  # one without state never had a gradient, as a vision tower without images
        trained = {name: parameter for name, parameter in trained.items() if name in saved.parts}
    for name in trained:
        if not saved.parts.get(name, set()) >= _required(optimizer):
            raise RunError(
                f"{checkpoint.path} has no optimizer state for the weight {name}: the checkpoint has other trained "
                "weights (LoRA?). Resume with the run's own configuration."
            )
    with in_lockstep(process_group):
        for name, parameter in trained.items():
            state = {part: saved.load(name, part, parameter) for part in sorted(saved.parts[name] - {"step"})}
            count = saved.count(name)  # fused AdamW needs it beside the weight
            step = int(count) if _is_8_bit(optimizer) else count.to(parameter.device)
            optimizer.state[parameter] = {"step": step, **state}


class _SavedState:
    """Optimizer state on disk, read a tensor at a time: that of sharded weights by rank 0, for all ranks.

    parts  by weight, the names of its tensors
    """

    def __init__(self, file: Path, process_group: ProcessGroup) -> None:
        self._file = file
        self._reader: Any = None
        is_sharded = process_group.sharding is not None
        self._tensors = process_group.broadcast_from_main(self._open) if is_sharded else self._open()
        self._files = mapped_files() if is_sharded and process_group.is_main else []
        self.parts: dict[str, set[str]] = {}
        for key in self._tensors:
            part, _, name = key.partition("/")
            self.parts.setdefault(name, set()).add(part)

    def load(self, name: str, part: str, parameter: torch.Tensor) -> torch.Tensor:
        """A tensor on the parameter's device; of a sharded parameter this rank's shard."""
        key = f"{part}/{name}"
        value = self._tensors[key] if self._reader is None else self._reader.get_tensor(key)
        if not isinstance(parameter, DTensor):
            return value.to(parameter.device)
        shard = scatter_like(value, parameter)
        if self._reader is not None:
            release_pages(value, self._files)
        return shard

    def count(self, name: str) -> torch.Tensor:
        """Number of updates of a weight."""
        return self._tensors[f"step/{name}"]

    def _open(self) -> dict[str, torch.Tensor]:
        """Numbers of updates, and all other tensors without their numbers."""
        try:
            self._reader = reader = safe_open(self._file, framework="pt")
            return {
                key: reader.get_tensor(key) if key.startswith("step/") else reader.get_tensor(key).to("meta")
                for key in reader.keys()  # noqa: SIM118  (it has no __iter__)
            }
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot read {self._file}: {error}. Delete this checkpoint to resume from an older one."
            ) from None


def _is_8_bit(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes")


def _required(optimizer: torch.optim.Optimizer) -> set[str]:
    """Keys of the state of every weight that has been updated."""
    return {"state1", "state2", "step"} if _is_8_bit(optimizer) else {"exp_avg", "exp_avg_sq", "step"}


def _moments(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensor = full_tensor(value.detach()) if isinstance(value, torch.Tensor) else torch.tensor(value)
            tensor = tensor.clone() if key.startswith("qmap") else tensor  # safetensors refuses shared memory
            yield f"{key}/{names[id(parameter)]}", tensor.cpu().contiguous()


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _sync(folder: Path) -> None:
    """Sync all files to disk before the folder is renamed into place."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
