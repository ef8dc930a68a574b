"""Gathers and sums of sharded layers through memory that all processes of one machine share, without a GPU.

gloo sends parts of a layer through sockets and copies them several times. Here each process writes its part to where
all read it. Shared are two flat layers, which gathers use in turn, and a flat gradient of a layer for each process.
"""

import math
import mmap
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.distributed import ProcessGroup

_FLAT = 2  # buffers of gathers: one is read while the next one is written


class NodeMemory:
    """Buffers that all ranks of a group share; they grow, on all ranks together, to the largest part of a model."""

    def __init__(self, process_group: ProcessGroup) -> None:
        self._process_group, self._turn = process_group, 0
        self._reading: dist.Work | None = None  # until all ranks have read the summands
        self._size, self._file = 0, -1  # of each buffer; descriptor of the memory
        self._map, self._bytes = mmap.mmap(-1, mmap.PAGESIZE), torch.empty(0, dtype=torch.uint8)

    @classmethod
    def of(cls, process_group: ProcessGroup) -> "NodeMemory | None":
        """The memory of a group; None if its ranks are not on one machine that lets them share memory."""
        memory = cls(process_group)
        return memory if memory._grow(mmap.PAGESIZE) else None

    def flat(self, size: int) -> Tensor:
        """A buffer of `size` bytes that all ranks have in common. The next call but one writes over it."""
        self._turn = (self._turn + 1) % _FLAT
        return self._buffer(self._turn, size)

    def summand(self, size: int) -> Tensor:
        """This rank's own buffer of `size` bytes, which all ranks can read, once they have read the one before."""
        self._wait()
        return self._buffer(_FLAT + self._process_group.rank, size)

    def summands(self, size: int, group: dist.ProcessGroup) -> Iterator[Tensor]:
        """Yield the buffers of all ranks, when all are written."""
        dist.barrier(group=group)
        for rank in range(self._process_group.size):
            yield self._buffer(_FLAT + rank, size)
        self._reading = dist.barrier(group=group, async_op=True)

    def release_flat(self) -> None:
        """Give pages of what was gathered back to the system. All ranks take part, none with a gather in progress."""
        self._process_group.all_gather_object("read")
        self._process_group.on_main(lambda: self._map.madvise(mmap.MADV_REMOVE, 0, _FLAT * self._size), None)

    def release_summand(self) -> None:
        """Give the pages of this rank's own buffer back to the system, once all ranks have read it."""
        self._wait()
        start = (_FLAT + self._process_group.rank) * self._size
        self._map.madvise(mmap.MADV_REMOVE, start, self._size)

    def _wait(self) -> None:
        if self._reading is not None:
            self._reading.wait()
            self._reading = None

    @property
    def nbytes(self) -> int:
        """This rank's share of the pages in use."""
        pages = os.fstat(self._file).st_blocks * 512 if self._file >= 0 else 0
        return pages // self._process_group.size

    def _buffer(self, idx: int, size: int) -> Tensor:
        if size > self._size:
            assert self._grow(size), "memory that ranks shared before"
        return self._bytes[idx * self._size :][:size]

    def _grow(self, size: int) -> bool:
        """Make all buffers larger; return whether all ranks have them."""
        size = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
        total, created, address = size * (_FLAT + self._process_group.size), -1, None
        if self._process_group.is_main and hasattr(os, "memfd_create"):
            created, token = _create(total)
            address = f"/proc/{os.getpid()}/fd/{created}", token
        address = self._process_group.all_gather_object(address)[0]
        file = _open(*address, total) if address else -1
        everywhere = min(self._process_group.all_gather_object(file)) >= 0
        for unused in (created, self._file if everywhere else file):
            if unused >= 0:
                os.close(unused)
        if everywhere:
            self._size, self._file, self._map = size, file, mmap.mmap(file, total)
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        return everywhere


def _create(size: int) -> tuple[int, bytes]:
    """Descriptor of new shared memory, and the token that it begins with."""
    file, token = os.memfd_create("workbench"), os.urandom(16)
    os.ftruncate(file, size)
    os.pwrite(file, token, 0)
    return file, token


def _open(path: str, token: bytes, size: int) -> int:
    """Descriptor of the memory at a path; -1 if there is none, or another, as on another machine."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return -1
    if os.fstat(file).st_size == size and os.pread(file, len(token), 0) == token:
        return file
    os.close(file)
    return -1


class GatherOnNode:
    """All-gather in shared memory. For `FSDPModule.set_custom_all_gather`."""

    def __init__(self, memory: NodeMemory) -> None:
        self._memory = memory

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The flat tensor of all parts, the same memory on all ranks."""
        return self._memory.flat(math.prod(size) * dtype.itemsize).view(dtype)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work:
        """Begin to wait until all ranks have written their parts of the output; the input is this rank's. FSDP waits
        for it before it copies the parts, also without `async_op`.
        """
        return dist.barrier(group=group, async_op=True)


class SumOnNode:
    """Reduce-scatter in shared memory. For `FSDPModule.set_custom_reduce_scatter`."""

    def __init__(self, memory: NodeMemory) -> None:
        self._memory, self._has_input = memory, False

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """FSDP allocates the input, then the output."""
        self._has_input = not self._has_input
        if self._has_input:
            return self._memory.summand(math.prod(size) * dtype.itemsize).view(dtype)
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> None:
        """Sum this rank's part of the inputs of all ranks, in the order of the ranks."""
        start, size = group.rank() * output_tensor.numel(), output_tensor.numel()
        total = None
        for summand in self._memory.summands(input_tensor.nbytes, group):
            part = summand.view(input_tensor.dtype)[start : start + size]
            total = part if total is None else torch.add(total, part, out=output_tensor)
