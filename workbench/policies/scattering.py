"""Weights of sharded models: rank 0 reads a model, and every rank gets its part of it, unit by unit.

The other ranks build the model without numbers (meta tensors), so a node's host memory has each model once, however
many ranks it has. Rank 0 leaves weights in the memory map of their file until they are scattered, where they keep their
data type, and then lets the system drop the pages of the file; it drops others as soon as they are scattered. Only rank
0 checks and proves what it has read.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.distributed import ProcessGroup
from workbench.errors import PolicyError

_MADV_PAGEOUT = 21  # of Linux 5.4 and newer; no number is lost, unlike with MADV_DONTNEED


def is_empty(model: nn.Module) -> bool:
    """Return whether a model was built without numbers."""
    return next(model.parameters()).is_meta


def match_structure(model: nn.Module, process_group: ProcessGroup) -> None:
    """Give a model without numbers the data types of rank 0's.

    Raises: PolicyError naming the first weight or buffer that differs from rank 0's in name or shape.
    """
    expected = process_group.broadcast_from_main(lambda: _structure(model))
    present = _structure(model)
    for first, second in zip([*expected, None], [*present, None], strict=False):
        if first is None or second is None or first[:2] != second[:2]:
            if first == second:
                break
            raise PolicyError(
                f"{type(model).__name__} is built differently by rank {process_group.rank}: {second} in place of "
                f"{first}. Install the same versions of transformers and peft, and the same files, on all machines."
            )
    dtypes = {name: dtype for name, _, dtype in expected}
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            tensor.data = tensor.data.to(dtypes[name])


@contextlib.contextmanager
def scattered(part: nn.Module, process_group: ProcessGroup, device: torch.device) -> Iterator[None]:
    """Shard a part of a model inside (`fully_shard`); then its weights come from rank 0, which has them whole."""
    whole = {name: weight for name, weight in part.named_parameters() if not isinstance(weight, DTensor)}
    values = {name: weight.detach() for name, weight in whole.items()} if process_group.is_main else {}
    shapes = {name: torch.empty_like(weight, device="meta") for name, weight in whole.items()}
    del whole
    yield
    users: dict[int, list[tuple[nn.Module, str]]] = {}  # tied weights have several
    for module in part.modules():
        for key, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            users.setdefault(id(weight), []).append((module, key))
    files = mapped_files() if process_group.is_main else []
    for name, weight in list(part.named_parameters()):
        if name not in shapes:
            continue
        read = values.pop(name) if process_group.is_main else torch.empty_like(shapes[name], device=device)
        local = distribute_tensor(read.to(device), weight.device_mesh, weight.placements, src_data_rank=0)
        if process_group.is_main:
            release_pages(read, files)
            continue  # FSDP has kept its part
        del read
        replaced = nn.Parameter(local, requires_grad=weight.requires_grad)
        for module, key in users[id(weight)]:
            module._parameters[key] = replaced


def mapped_files() -> list[range]:
    """Addresses at which this process has files in its memory; none on systems other than Linux."""
    maps = Path("/proc/self/maps")
    lines = [line.split() for line in maps.read_text().splitlines()] if maps.is_file() else []
    spans = [(fields[0].split("-"), fields[4]) for fields in lines]
    return [range(int(start, 16), int(end, 16)) for (start, end), inode in spans if inode != "0"]


def release_pages(tensor: Tensor, files: list[range]) -> None:
    """Let the system drop the pages of a tensor in one of `files`; it reads them again if they are needed."""
    size = os.sysconf("SC_PAGESIZE")
    start, end = -(-tensor.data_ptr() // size) * size, (tensor.data_ptr() + tensor.nbytes) // size * size
    if end > start and any(start in file for file in files):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)


def broadcast_buffers(model: nn.Module, process_group: ProcessGroup, device: torch.device) -> None:
    """Give every rank rank 0's buffers, and tensors that modules hold as plain attributes; none is sharded.

    Raises: PolicyError if a weight or a buffer has no numbers after that.
    """
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            value = buffer.to(device) if process_group.is_main else torch.empty_like(buffer, device=device)
            dist.broadcast(value, src=0)
            module._buffers[key] = value
    modules = dict(model.named_modules())
    for (name, key), value in process_group.broadcast_from_main(lambda: dict(_attributes(model))).items():
        setattr(modules[name], key, value)
    empty = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if empty:
        raise PolicyError(
            f"{len(empty)} weights of {type(model).__name__} have no numbers on rank {process_group.rank}; the first: "
            f"{empty[0]}. Start with distributed_type: MULTI_GPU (configs/accelerate/one-node-8.yaml)."
        )


def _attributes(model: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                yield (name, key), value.detach().cpu()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _structure(model: nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Names, shapes and data types of all weights and buffers; a tied weight once."""
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(model)]
