"""Teacher cache: load frozen teachers once for several runs in one process.

Without `cache_teachers` every run loads its own. A teacher that a run has modified is loaded again.
"""

import contextlib
import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workbench.policies.models import load_model


@dataclass(frozen=True)
class _CachedTeacher:
    model: nn.Module
    processor: object
    state: tuple


_kept: dict[tuple, _CachedTeacher] | None = None  # by folder, files and options; None = no cache


@contextlib.contextmanager
def cache_teachers() -> Iterator[None]:
    """Let `load_teacher` cache models inside this context."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def evict_teachers(but: Collection[str | Path]) -> None:
    """Evict the models of all other folders."""
    for key in [key for key in _kept or () if key[0] not in map(str, but)]:
        del _kept[key]


def load_teacher(path: str | Path, name: str, **options: Any) -> tuple[nn.Module, object]:
    """As models.load_model, for a frozen model."""
    if _kept is None:
        return load_model(path, name, **options)
    key = (str(path), files_of(Path(path)), tuple(sorted(options.items())))
    cached = _kept.get(key)
    if cached is None or cached.state != _state(cached.model):
        model, processor = load_model(path, name, **options)
        cached = _kept[key] = _CachedTeacher(model, processor, _state(model))
    return cached.model, copy.copy(cached.processor)  # a policy can replace its parts


def files_of(folder: Path) -> tuple:
    """Files of a folder; () for a name on the hub."""
    if not folder.is_dir():
        return ()
    return tuple(sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()))


def _state(model: nn.Module) -> tuple:
    """State that changes when a weight is modified or replaced, or a hook is left."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return (
        tuple((id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad) for tensor in tensors),
        hooks,
        model.training,
    )
