"""The processes that train one run together; one alone is a group of one, for which everything here is nothing.

Every process holds the whole student, writes and reads its own block of the step's examples, and adds its gradient to those of
the others once a step. What a rule compares (means over the batch) it compares over all blocks, and a position's coefficient
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
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from workbench.errors import ConfigError, RunError, WorkbenchError

PATIENCE = timedelta(hours=2)  # for a process that lives and says nothing
_SHARDING = (
    "FSDP",
    "DEEPSPEED",
    "MEGATRON_LM",
    "PARALLELISM_CONFIG",
)  # as accelerate's launcher names them in the environment
BUCKET_BYTES = 64 * 2**20  # of gradients that travel together
T, R = TypeVar("T"), TypeVar("R")


class LostProcess(RunError):
    """A process of the run is gone, and could not say why."""


class Group:
    """Processes of a run, this one being number `rank` of `size`."""

    def __init__(self, rank: int = 0, size: int = 1, messages: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self._messages = rank, size, messages
        self.remedy = ""  # what to do if a process is lost

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
        own = self.block(len(items))
        return [one for part in self.exchange(work([items[place] for place in own], own.start)) for one in part]

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
                with contextlib.suppress(Exception):
                    self._swap(_sendable(error, self.rank), None)
                error.told = True
            raise

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every gradient becomes the sum of all processes'; one that nobody has stays None."""
        if self.size == 1:
            return
        device = parameters[0].device
        has = torch.tensor([one.grad is not None for one in parameters], dtype=torch.uint8, device=device)
        self._reduce(has, dist.ReduceOp.MAX)
        todo = [one for one, own in zip(parameters, has.tolist(), strict=True) if own]
        for bucket in _buckets(todo):
            flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1) for one in bucket])
            self._reduce(flat, dist.ReduceOp.SUM)
            for one, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.grad = summed.reshape(one.shape).clone()

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
        return [own for _, own in received]

    def _lost(self) -> LostProcess:
        return LostProcess(
            f"a process of this run ended without a word (it was one of {self.size}; out of memory, or killed?), so all "
            "stopped. " + self.remedy
        )


ALONE = Group()


def join() -> Group:
    """The group that a launcher (accelerate launch, torchrun) started this process in; without one, it is alone.

    Raises: ConfigError for a strategy that shards parameters.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # accelerate's launcher starts several processes without an accelerator too, and its state would take each to be alone
    state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available())
    if state.num_processes == 1:
        return ALONE
    refuse_sharding()
    group = Group(state.process_index, state.num_processes, dist.new_group(backend="gloo", timeout=PATIENCE))
    if not group.is_main:
        logging.getLogger("workbench").disabled = True  # the first process says it
    return group


def refuse_sharding() -> None:
    """Raises ConfigError if the launcher was told to shard parameters."""
    asked = [name for name in _SHARDING if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true")]
    if asked:
        raise ConfigError(
            f"started with the strategy {asked[0]}, which shards parameters; here every process holds the whole student. Start "
            "with distributed_type: MULTI_GPU (configs/accelerate/); a large student fits with models.lora.rank, "
            "models.dtype=bfloat16 or models.offload_teachers."
        )


def is_main() -> bool:
    """Whether this process is the first of its run, or alone."""
    return PartialState().is_main_process


def _sendable(error: Exception, rank: int) -> WorkbenchError:
    with contextlib.suppress(Exception):
        if isinstance(error, WorkbenchError) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RunError(f"process {rank} stopped: {type(error).__name__}: {error}")


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters whose gradients travel together: of one kind of number, in order, BUCKET_BYTES at most but for large ones."""
    bucket: list[Tensor] = []
    for one in sorted(parameters, key=lambda one: str(one.dtype)):  # stable: the same order in every process
        size = sum(own.numel() * own.element_size() for own in bucket)
        if bucket and (one.dtype != bucket[0].dtype or size + one.numel() * one.element_size() > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(one)
    if bucket:
        yield bucket
