"""The processes that train one run together; one alone is a group of one, for which everything here is nothing.

Every process holds the whole student, or a part of every weight (workbench.policies.fsdp), writes and reads its own block of the
step's examples, and adds its gradient to those of the others. What a rule compares (means over the batch) it compares over all blocks, and a position's coefficient
counts all of them, so that the gradients' sum is that of one process with the whole batch. The first process (rank 0) writes
the run's files; traces are written by each.

Messages go over gloo, which notices a process that is gone; gradients over whatever the device has (NCCL, gloo). An error of
one process is told to all at the next message, and each raises it: nobody waits for one that will not come.
"""

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from workbench.errors import ConfigError, RunError, WorkbenchError

PATIENCE = timedelta(hours=2)  # for a process that lives and says nothing
_OTHERS = ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # as accelerate's launcher names them in the environment
_COLLECTIVES = ("gloo", "NCCL", "Connection", "imed out")  # in the errors of those whose partner is gone
_FSDP, _ASKED = "ACCELERATE_USE_FSDP", "WORKBENCH_SHARDS"
# settings of FSDP in that environment: the only value that is not refused, and what does that here
_FSDP_SETTINGS = {
    "VERSION": ("2", "there is FSDP2 alone"),
    "OFFLOAD_PARAMS": ("false", "shards stay on their device"),
    "ACTIVATION_CHECKPOINTING": ("false", "models.gradient_checkpointing=true does it"),
    "AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "weights travel by decoder layer"),
    "TRANSFORMER_CLS_TO_WRAP": (None, "the layers are those of the model's text decoder"),
    "IGNORED_MODULES": (None, "all weights are sharded"),
}
BUCKET_BYTES = 64 * 2**20  # of gradients that travel together
T, R = TypeVar("T"), TypeVar("R")


class LostProcess(RunError):
    """A process of the run is gone, and could not say why."""


@dataclass(frozen=True)
class Sharding:
    """Each process is to hold a part of every weight.

    reshard  a layer's weights go apart again between its forward and its backward pass
    """

    reshard: bool = True


class Group:
    """Processes of a run, this one being number `rank` of `size`."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        messages: dist.ProcessGroup | None = None,
        sharding: "Sharding | None" = None,
    ) -> None:
        self.rank, self.size, self._messages, self.sharding = rank, size, messages, sharding
        self.remedy = ""  # what to do if a process is lost
        self.entangled = False  # in a pass that all make together, layer by layer

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def seed(self) -> tuple[int, ...]:
        """What goes into draws that are to differ between processes."""
        return (self.rank,) if self.rank else ()

    def require(self, num_prompts: int) -> None:
        """Raises ConfigError if a step has fewer prompts than there are processes."""
        if num_prompts < self.size:
            raise ConfigError(
                f"training.batch_size is {num_prompts} prompts for {self.size} processes together; give each at least one: "
                f"training.batch_size={self.size} or more."
            )

    def here(self, work: Callable[[], T], elsewhere: T) -> T:
        """What the first process does for itself alone; the others have `elsewhere`, once it is done."""
        done: list[T] = []
        self.first(lambda: done.append(work()))
        return done[0] if self.is_main else elsewhere

    def block(self, count: int) -> range:
        """This process's places of `count`: blocks lie end to end by rank, as near to equal as can be."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def exchange(self, value: T) -> list[T]:
        """Everybody's value, by rank. Raises what any process raised before it came here; LostProcess if one is gone."""
        return self._swap(None, value)

    def share(self, items: Sequence[T], work: Callable[[list[T], int], list[R]]) -> list[R]:
        """Each process works on its own block: `work(items of the block, place of the first)`. All results, in order."""
        rows = self.block(len(items))
        return [result for part in self.exchange(work([items[idx] for idx in rows], rows.start)) for result in part]

    def first(self, work: Callable[[], T]) -> T:
        """What the first process alone does, for all; its error is everybody's."""
        if not self.is_main:
            return self._swap(None, None)[0]
        with self.guard():
            done = work()
        return self._swap(None, done)[0]

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """What is raised inside is told to the others, once, at the message that they wait for."""
        try:
            yield
        except Exception as error:
            if self.size > 1 and not getattr(error, "told", False):
                self._tell(error)
                error.told = True
            raise

    def _tell(self, error: Exception) -> None:
        """Raises LostProcess instead, if the error at hand is that somebody left."""
        of_others = type(error) is RuntimeError and any(word in str(error) for word in _COLLECTIVES)
        if self.entangled:  # the others wait for this one's weights and hear no message; that it leaves they notice
            if of_others:
                raise self._lost() from error
            error.loud = True
            return
        try:
            self._swap(_sendable(error, self.rank, self.remedy), None)
        except LostProcess as lost:
            if of_others:
                raise lost from error
        except Exception:
            pass  # another's, who failed too: this one is said here

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every gradient becomes the sum of all processes'; one that nobody has stays None."""
        if self.size == 1:
            return
        has_grad = self.anywhere([parameter.grad is not None for parameter in parameters], parameters[0].device)
        for bucket in _buckets([parameter for parameter, has in zip(parameters, has_grad, strict=True) if has]):
            grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            self._reduce(flat, dist.ReduceOp.SUM)
            for parameter, summed in zip(bucket, flat.split([grad.numel() for grad in grads]), strict=True):
                parameter.grad = summed.reshape(parameter.shape).clone()

    def anywhere(self, flags: Sequence[bool] | Tensor, device: torch.device) -> list[bool]:
        """Which flags any process has set."""
        flags_set = torch.as_tensor(flags, dtype=torch.uint8, device=device)
        if self.size > 1:
            self._reduce(flags_set, dist.ReduceOp.MAX)
        return flags_set.bool().tolist()

    def _reduce(self, values: Tensor, how: dist.ReduceOp) -> None:
        try:
            dist.all_reduce(values, op=how)
        except RuntimeError as error:
            raise self._lost() from error

    def _swap(self, error: Exception | None, value: T) -> list[T]:
        if self.size == 1:
            return [value]
        received: list = [None] * self.size
        try:
            dist.all_gather_object(received, (error, value), group=self._messages)
        except RuntimeError as lost:
            raise self._lost() from lost
        for raised, _ in received:
            if raised is not None:
                raised.told = True
                raise raised
        return [other_value for _, other_value in received]

    def _lost(self) -> LostProcess:
        return LostProcess(
            f"a process of this run ended without a word (it was one of {self.size}; out of memory, or killed?), so all "
            "stopped. " + self.remedy
        )


ALONE = Group()


def join() -> Group:
    """The group that a launcher (accelerate launch, torchrun) started this process in; without one, it is alone.

    Raises: ConfigError for a strategy that is not known here, or a setting of FSDP.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    sharding = sharding_asked() if launched > 1 else None
    if (
        sharding is not None
    ):  # accelerate and transformers, were they to read it too, would load and wrap models their way
        os.environ |= {_FSDP: "false", _ASKED: "true"}
    # accelerate's launcher starts several processes without an accelerator too, and its state would take each to be alone
    state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available())
    if state.num_processes == 1:
        return ALONE
    messages = dist.new_group(backend="gloo", timeout=PATIENCE)
    group = Group(state.process_index, state.num_processes, messages, sharding)
    if not group.is_main:
        logging.getLogger("workbench").disabled = True  # the first process says it
    return group


def sharding_asked() -> Sharding | None:
    """How the launcher wants the weights sharded, or None for replicated weights. Raises ConfigError as `join` does."""
    strategies = [name for name in _OTHERS if _is_set(f"ACCELERATE_USE_{name}")]
    if strategies:
        raise ConfigError(
            f"started with the strategy {strategies[0]}, and there are two: every process holds the whole student "
            "(distributed_type: MULTI_GPU), or a part of every weight (FSDP, fsdp_version: 2). See configs/accelerate/."
        )
    if not (_is_set(_FSDP) or _is_set(_ASKED)):
        return None
    for name, (allowed, why) in _FSDP_SETTINGS.items():
        value = os.environ.get(f"FSDP_{name}", allowed)
        if value != allowed:
            remedy = "Leave it out" if allowed is None else f"Set it to {allowed}"
            raise ConfigError(
                f"accelerate's fsdp_{name.lower()} is {value}, and here {why}. {remedy}, as configs/accelerate/one-node-8-fsdp2.yaml has it."
            )
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false"):
        raise ConfigError(f"accelerate's fsdp_reshard_after_forward is {reshard}; with FSDP2 it is true or false.")
    return Sharding(reshard=reshard == "true")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def choose_device(name: str | None, group: Group = ALONE) -> torch.device:
    """The device that this process's models are to be on: `asked` (models.device), or with None an accelerator if there is one.

    Raises: ConfigError naming the devices that there are.
    """
    assigned = PartialState().device
    if name is None:
        return assigned
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = ["cpu", *(f"{kind.type}:{idx}" for idx in range(torch.accelerator.device_count()) if kind is not None)]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    setting = f"models.device={name}"
    if device is None or f"{device.type}:{device.index or 0}" not in (*there, "cpu:0"):
        built = "" if torch.version.cuda or torch.version.hip else f" (torch {torch.__version__} is built for no GPU)"
        raise ConfigError(
            f"{setting}, and this machine has no such device that torch can use{built}. There is: {', '.join(there)}. Set "
            "models.device to one of them, or leave it out: then it is the accelerator, if there is one."
        )
    if group.size > 1 and (device.type != assigned.type or device.index is not None):
        raise ConfigError(
            f"{setting} in one of {group.size} processes, which was given {assigned}: the launcher gives each its own. Leave "
            "models.device out; use_cpu: true in accelerate's config has all on the CPU."
        )
    return assigned if group.size > 1 else device


def is_main() -> bool:
    """Whether this process is the first of its run, or alone."""
    return PartialState().is_main_process


def _sendable(error: Exception, rank: int, remedy: str) -> WorkbenchError:
    with contextlib.suppress(Exception):
        if isinstance(error, WorkbenchError) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RunError(f"process {rank} stopped: {type(error).__name__}: {error}. {remedy}".strip())


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters whose gradients travel together: of one kind of number, in order, BUCKET_BYTES at most but for large ones."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in sorted(parameters, key=lambda weight: str(weight.dtype)):  # stable: the same order on every rank
        num_bytes = parameter.numel() * parameter.element_size()
        if bucket and (parameter.dtype != bucket[0].dtype or size + num_bytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += num_bytes
    if bucket:
        yield bucket
