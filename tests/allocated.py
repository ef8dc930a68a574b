"""Bytes that a step of a run has allocated in host memory, by phase.

One process: torch's profiler records each allocation and release of its allocator. Several: gloo releases buffers in
threads of its own, which the profiler does not see. There glibc's count of mappings is read after each operation of
torch, with a process's share of the memory that ranks share; every tensor of 16 KiB or more is made a mapping. oneDNN,
whose buffers would count too, is off there.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

import workbench.training.loop as loop
from workbench.config.schema import RunConfig, load_config
from workbench.policies.fsdp import local_tensor
from workbench.policies.node_memory import NodeMemory
from workbench.training.run import train

SMALLEST, _MMAP_THRESHOLD, _MMAP_MAX = 16 * 2**10, -3, -4
PLACES = (  # what belongs to which phase
    ("sample", loop.Trainer, "_sample"),
    ("score", loop, "score_batch"),
    ("learn", loop, "compute_step"),
    ("learn", loop.Learner, "finish_gradients"),
)
_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Counts(ctypes.Structure):
    """struct mallinfo2; hblkhd is the bytes of all mappings."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _COUNTS)


class Recorded:
    """Peaks by phase from the allocations that the profiler records."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            yield
        events, live = profiler.profiler.kineto_results.events(), 0
        marks = [
            (event.start_ns(), event.end_ns(), event.name()[6:]) for event in events if event.name()[:6] == "phase:"
        ]
        memory = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
        for event in memory:
            live += event.nbytes()
            for start, end, phase in marks:
                if start <= event.start_ns() <= end:
                    self.peaks[phase] = max(self.peaks.get(phase, 0), live)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with record_function(f"phase:{name}"):
            yield


class Mapped(TorchDispatchMode):
    """Peaks by phase from glibc's count of mappings, read after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self._libc = ctypes.CDLL(None)
        self._libc.mallinfo2.restype = _Counts
        assert self._libc.mallopt(_MMAP_THRESHOLD, SMALLEST) and self._libc.mallopt(_MMAP_MAX, 2**20)
        self.peaks: dict[str, int] = {}
        self._name, self._start, self._memories = "", 0, []
        build = NodeMemory.__init__

        def remember(memory: NodeMemory, *arguments: Any) -> None:
            build(memory, *arguments)
            self._memories.append(memory)

        NodeMemory.__init__ = remember

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._name:
            grown = self._libc.mallinfo2().hblkhd - self._start + sum(memory.nbytes for memory in self._memories)
            self.peaks[self._name] = max(self.peaks.get(self._name, 0), grown)
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._start = self._libc.mallinfo2().hblkhd
        with self:
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before


def peaks_of_second_step(config: RunConfig, watch: Recorded | Mapped | None = None) -> dict[str, int]:
    """Largest number of bytes in each phase of step 2: weights and moments, and what the step allocates."""
    watch, step, before = watch or Recorded(), loop.Trainer.train_step, 0

    def watched(trainer: loop.Trainer, number: int) -> dict[str, float]:
        nonlocal before
        if number != 2:
            return step(trainer, number)
        before = _bytes(trainer)
        with _phases_of(watch), watch.watching():
            return step(trainer, number)

    with _replaced(loop.Trainer, "train_step", lambda _: watched):
        train(config)
    return {phase: before + peak for phase, peak in watch.peaks.items()}


def _bytes(trainer: loop.Trainer) -> int:
    """Of weights, buffers and moments; shared storages once."""
    tensors = [item for policy in trainer.policies for item in (*policy.model.parameters(), *policy.model.buffers())]
    tensors = [item for item in tensors if not item.is_meta]  # of which a server holds the rest
    tensors += [item for policy in trainer.policies for item in policy.head.linear.parameters()]
    states = [state for learner in trainer.learners for state in learner.optimizer.state.values()]
    tensors += [value for state in states for value in state.values()]
    storages = [local_tensor(tensor.detach()).untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@contextmanager
def _phases_of(watch: Recorded | Mapped) -> Iterator[None]:
    def entering(phase: str) -> Callable:
        def wrap(act: Callable) -> Callable:
            def acting(*args: object, **options: object) -> object:
                with watch.phase(phase):
                    return act(*args, **options)

            return acting

        return wrap

    (first, second, third, fourth) = (_replaced(owner, name, entering(phase)) for phase, owner, name in PLACES)
    with first, second, third, fourth:
        yield


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, wrap(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def main(config: str, out: str) -> None:
    """Measure a run of several processes; each writes its peaks."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # its buffers are not torch's
    peaks = peaks_of_second_step(load_config(config), Mapped())
    Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps(peaks))


if __name__ == "__main__":
    main(*sys.argv[1:])
