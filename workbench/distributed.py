"""Process group of a run: batch slices per rank, object all-gather, gradient all-reduce, rank-0 logging.

Data parallel: every rank holds the whole student, or a shard of every weight (workbench.policies.fsdp). It samples and
scores its own slice of the step's examples, then all ranks sum their gradients. Batch statistics of a routing rule and
the loss normalizers cover all ranks, so the summed gradient equals that of one process with the whole batch. Rank 0
writes the files of the run; every rank writes its own traces. A run of one process is a group of size 1, in which every
collective returns at once.

What accelerate, torchrun and torch do is left to them: finding the ranks and their devices, starting and ending the
processes, collectives, shards and their all-gathers (FSDP2). Ours, and why:

    messages over gloo   NCCL notices a lost rank only after its timeout, and no collective carries another rank's error
    slices of a step     accelerate's samplers reorder batches by rank, and our seeds belong to positions in a step
    GradientReduction    DistributedDataParallel takes one forward call; a pass is several (training/gradients)
    Rounds               FSDP2 needs equally many passes on all ranks; ragged batches have others (policies/fsdp)
    scattering           accelerate's loading broadcasts each weight whole to every rank (policies/scattering)
    layer_memory         gloo all-gathers into a copy, and autocast keeps a copy of every layer (policies/layer_memory)
    node_memory          gloo sends layers through sockets, also between processes of one machine (policies/node_memory)
    requested_sharding   with accelerate's own settings, it and transformers would wrap the models as well
    --resume             torchrun's restarts would begin at step 0; ours begins at the newest checkpoint

Python objects travel over gloo, which detects a lost rank; gradients use the device's backend (NCCL or gloo). If one
rank raises an error, the next object all-gather raises it on every rank, so that all can save the weights before a step
that failed. In a lockstep pass of sharded weights a rank prints its error and exits, and the launcher ends the others.
"""

import contextlib
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from workbench.errors import ConfigError, RunError, WorkbenchError

PATIENCE = timedelta(hours=2)  # timeout of an object all-gather
_UNSUPPORTED = ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # accelerate sets ACCELERATE_USE_<name>
_FSDP, _SHARD = "ACCELERATE_USE_FSDP", "WORKBENCH_SHARDS"
# FSDP settings of accelerate's launcher: the one accepted value (None = leave it out), and the reason
_FSDP_SETTINGS = {
    "VERSION": ("2", "only FSDP2 is supported"),
    "OFFLOAD_PARAMS": ("false", "shards stay on their device"),
    "ACTIVATION_CHECKPOINTING": ("false", "models.gradient_checkpointing=true does it"),
    "AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "weights are wrapped by decoder layer"),
    "TRANSFORMER_CLS_TO_WRAP": (None, "the layers are those of the model's text decoder"),
    "IGNORED_MODULES": (None, "all weights are sharded"),
}
_GLOO = re.compile(r"^\[\S+\] |\. This is typically caused by.*")  # what gloo adds to its messages
BUCKET_BYTES = 25 * 2**20  # of gradients in one all-reduce, as in torch's DDP
T = TypeVar("T")
R = TypeVar("R")


class LostProcess(RunError):
    """A rank of the run exited without reporting an error."""

    reported = True


@dataclass(frozen=True)
class Sharding:
    """Shard every weight across the ranks (FSDP2).

    reshard  reshard a layer's weights between its forward and its backward pass, and a learner's after it has sampled
    """

    reshard: bool = True


class ProcessGroup:
    """The ranks of a run; this process is rank `rank` of `size`."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        messages: dist.ProcessGroup | None = None,
        sharding: "Sharding | None" = None,
    ) -> None:
        self.rank, self.size, self._messages, self.sharding = rank, size, messages, sharding
        self.remedy = ""  # last sentence of LostProcess: what to do about a lost rank
        self.in_lockstep = False  # inside a lockstep forward pass of sharded weights

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def resume_command(self, run_dir: Path) -> str:
        """What continues a run, in as many processes; follows "with"."""
        command = f"-m workbench.training.run --resume {run_dir}"
        return f"`workbench resume {run_dir}`" if self.size == 1 else f"the same launcher and `{command}`"

    @property
    def seed(self) -> tuple[int, ...]:
        """Seed suffix of random draws that differ between ranks; empty on rank 0."""
        return (self.rank,) if self.rank else ()

    def require_prompts(self, num_prompts: int) -> None:
        """Raise ConfigError if a step has fewer prompts than ranks."""
        if num_prompts < self.size:
            raise ConfigError(
                f"training.batch_size={num_prompts} is less than the number of processes, {self.size}. Expected at "
                f"least one prompt for each. Set training.batch_size={self.size} or more."
            )

    def on_main(self, work: Callable[[], T], elsewhere: T) -> T:
        """Run `work` on rank 0 and return its result there; every other rank waits and returns `elsewhere`."""
        result = work() if self.is_main else elsewhere
        self.all_gather_object("done")
        return result

    def local_range(self, count: int) -> range:
        """Indices of this rank's slice of `count` items. Slices are contiguous by rank and differ by at most one
        item.
        """
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def all_gather_object(self, value: T) -> list[T]:
        """All-gather one picklable value per rank.

        Raises: the error of any rank that failed before this call; LostProcess if a rank exited.
        """
        return self._all_gather(None, value)

    def map_ranks(self, items: Sequence[T], work: Callable[[list[T], int], list[R]]) -> list[R]:
        """Map over slices: every rank calls `work(its items, index of the first)`; all ranks get all results in
        order.
        """
        local = self.local_range(len(items))
        return [
            result
            for part in self.all_gather_object(work([items[idx] for idx in local], local.start))
            for result in part
        ]

    def broadcast_from_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its result."""
        return self.all_gather_object(work() if self.is_main else None)[0]

    @contextlib.contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Send an error raised inside to the other ranks, once; their next object all-gather raises it."""
        try:
            yield
        except Exception as error:
            if self.size > 1 and not getattr(error, "reported", False):
                error.reported = True  # type: ignore[attr-defined]
                self._report(error)
            raise

    def _report(self, error: Exception) -> None:
        """Report `error` to the other ranks. Raise LostProcess if a collective of the model raised it."""
        of_collective = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if self.in_lockstep:  # the other ranks wait in an FSDP collective; they only notice that this rank exits
            if of_collective:
                raise self._lost(error) from error
            error.print_anyway = True  # type: ignore[attr-defined]
            return
        try:
            self._all_gather(_sendable(error, self.rank, self.remedy), None)
        except LostProcess as lost:
            if of_collective:
                raise lost from error
        except Exception:
            pass  # the error of another rank; the caller raises its own

    def start_sum(self, values: Tensor) -> dist.Work:
        """Begin an all-reduce by summation, in place; `wait` for it before the values are used."""
        try:
            return dist.all_reduce(values, async_op=True)
        except RuntimeError as error:
            raise self._lost(error) from error

    def wait(self, work: dist.Work) -> None:
        """Wait for a collective. Raises LostProcess if a rank exited."""
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def any_rank(self, flags: Sequence[bool] | Tensor, device: torch.device) -> list[bool]:
        """Logical or of each flag over the ranks."""
        flags_set = torch.as_tensor(flags, dtype=torch.uint8, device=device)
        if self.size > 1:
            try:
                dist.all_reduce(flags_set, op=dist.ReduceOp.MAX)
            except RuntimeError as error:
                raise self._lost(error) from error
        return flags_set.bool().tolist()

    def _all_gather(self, error: Exception | None, value: T) -> list[T]:
        if self.size == 1:
            return [value]
        received: list = [None] * self.size
        try:
            dist.all_gather_object(received, (error, value), group=self._messages)
        except RuntimeError as lost:
            raise self._lost(lost) from lost
        for raised, _ in received:
            if raised is not None:
                raised.reported = True
                raise raised
        return [other_value for _, other_value in received]

    def _lost(self, cause: Exception) -> LostProcess:
        reason = _GLOO.sub("", str(cause).partition("\n")[0]).strip(" .")
        what = f"exited unexpectedly (1 of {self.size} ranks; possibly out of memory or killed)"
        if "timed out" in reason.lower():
            what = f"hangs (1 of {self.size} ranks; the others have waited as long as they may)"
        return LostProcess(
            f"a worker process {what}. All ranks stopped, rank {self.rank} with: {reason}. {self.remedy}"
        )


ALONE = ProcessGroup()


def join() -> ProcessGroup:
    """Join the process group of the launcher (accelerate launch, torchrun); a group of size 1 without a launcher.

    Raises: ConfigError for an unsupported strategy or FSDP setting.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    sharding = requested_sharding() if launched > 1 else None
    if sharding is not None:
        os.environ |= {_FSDP: "false", _SHARD: "true"}  # else accelerate and transformers would wrap the models too
    # on a machine without an accelerator, PartialState joins the launcher's group only with cpu=True
    state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available())
    if state.num_processes == 1:
        return ALONE
    messages = dist.new_group(backend="gloo", timeout=PATIENCE)
    process_group = ProcessGroup(state.process_index, state.num_processes, messages, sharding)
    if not process_group.is_main:
        logging.getLogger("workbench").disabled = True  # rank 0 logs
    return process_group


def requested_sharding() -> Sharding | None:
    """How the launcher wants the weights sharded, or None for replicated weights. Raises ConfigError as `join` does."""
    strategies = [name for name in _UNSUPPORTED if _is_set(f"ACCELERATE_USE_{name}")]
    if strategies:
        raise ConfigError(
            f"the launcher's strategy {strategies[0]} is not supported. Expected distributed_type: MULTI_GPU (every "
            "process holds the whole student) or FSDP with fsdp_version: 2 (sharded weights). Start with a file of "
            "configs/accelerate/."
        )
    if not (_is_set(_FSDP) or _is_set(_SHARD)):
        return None
    for name, (allowed, why) in _FSDP_SETTINGS.items():
        value = os.environ.get(f"FSDP_{name}", allowed)
        if value != allowed:
            remedy = "Leave it out" if allowed is None else f"Set it to {allowed}"
            raise ConfigError(
                f"accelerate's fsdp_{name.lower()}={value} is not supported: {why}. {remedy}, as in "
                "configs/accelerate/one-node-8-fsdp2.yaml."
            )
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true")
    if reshard.lower() not in ("true", "false"):
        raise ConfigError(
            f"accelerate's fsdp_reshard_after_forward={reshard} is not valid. Set it to true or false, as FSDP2 "
            "expects."
        )
    return Sharding(reshard=reshard.lower() == "true")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def choose_device(name: str | None, process_group: ProcessGroup = ALONE) -> torch.device:
    """Device of this rank's models: `name` (models.device), or for None the first accelerator, otherwise the CPU.

    Raises: ConfigError listing the available devices.
    """
    assigned = PartialState().device
    if name is None:
        return assigned
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    available = ["cpu", *(f"{kind.type}:{idx}" for idx in range(torch.accelerator.device_count()) if kind is not None)]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    setting = f"models.device={name}"
    if device is None or f"{device.type}:{device.index or 0}" not in (*available, "cpu:0"):
        built = (
            ""
            if torch.version.cuda or torch.version.hip
            else f" (torch {torch.__version__} is built without GPU support)"
        )
        raise ConfigError(
            f"{setting} is not available to torch on this machine{built}. Expected one of {', '.join(available)}. Set "
            "models.device to one of them, or leave it out to use the first accelerator."
        )
    if process_group.size > 1 and (device.type != assigned.type or device.index is not None):
        raise ConfigError(
            f"{setting} conflicts with the launcher, which assigned {assigned} to rank {process_group.rank} of "
            f"{process_group.size}. "
            "Leave models.device out; to train on the CPU, set use_cpu: true in accelerate's configuration."
        )
    return assigned if process_group.size > 1 else device


def is_of_collective(error: Exception) -> bool:
    """Return whether a collective raised an error, since another rank has ended or hangs."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def is_main() -> bool:
    """Return whether this process is rank 0, or the only one."""
    return PartialState().is_main_process


def _sendable(error: Exception, rank: int, remedy: str) -> WorkbenchError:
    with contextlib.suppress(Exception):
        if isinstance(error, WorkbenchError) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RunError(f"rank {rank} failed: {type(error).__name__}: {error}. {remedy}".strip())
