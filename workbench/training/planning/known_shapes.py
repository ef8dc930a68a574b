"""Results of operations on fake tensors, without torch's inference of their shapes where it has been done before.

torch infers shapes in Python, and a step repeats few operations often.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._pytree import tree_leaves

_CPU = torch.device("cpu")
_FRESH, _VIEW, _IN_PLACE, _OTHER = range(4)  # what an operation returns
_UNNAMED_VIEWS = (torch.ops.aten._unsafe_view.default,)  # their schema has no alias
_INFERRED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides
_layouts: dict[tuple, tuple[Layout, ...]] = {}  # of results, by operation and layouts of its arguments


class KnownShapes:
    """Results of operations all of whose tensors are fake tensors of `mode`."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._kinds: dict[Any, int] = {}

    def result(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The result of an operation; None if it must be inferred."""
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == _OTHER or (key := _key(func, args, kwargs)) is None:
            return None
        if kind == _IN_PLACE:
            return args[0]
        if kind == _VIEW:
            return self._view(func, args, kwargs)
        layouts = _layouts.get(key)
        if layouts is None:
            return None
        results = [
            self._fake(torch.empty_strided(sizes, strides, dtype=dtype, device="meta"))
            for sizes, strides, dtype in layouts
        ]
        return results[0] if len(results) == 1 else tuple(results)

    def keep(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Keep the layouts of an inferred result for `result`, if its tensors have memory of their own."""
        if self._kinds.get(func) != _FRESH or (key := _key(func, args, kwargs)) is None:
            return
        results = (result,) if isinstance(result, Tensor) else tuple(result)
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if all(_fills_its_memory(value) and value.untyped_storage()._cdata not in inputs for value in results):
            _layouts[key] = tuple((tuple(value.shape), value.stride(), value.dtype) for value in results)

    def _view(self, func: Any, args: tuple, kwargs: dict) -> Any:
        with in_kernel_invocation_manager(self.mode):
            result = func(*args, **kwargs)
        return self._fake(result) if isinstance(result, Tensor) else [self._fake(value) for value in result]

    def _fake(self, tensor: Tensor) -> Tensor:
        return tensor if type(tensor) is FakeTensor else FakeTensor(self.mode, tensor, _CPU)


def _fills_its_memory(value: Any) -> bool:
    if type(value) is not FakeTensor or value.constant is not None or not value.numel() or value.storage_offset():
        return False
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.untyped_storage().nbytes() == (last + 1) * value.element_size()


def _kind(func: Any) -> int:
    """What an operation returns, by its schema."""
    if not isinstance(func, torch._ops.OpOverload) or not func._schema.returns:
        return _OTHER
    schema = func._schema
    aliases = [value.alias_info is not None for value in schema.returns]
    if schema.is_mutable:
        changes_itself = schema.name.endswith("_") and len(aliases) == 1 and schema.arguments[0].alias_info is not None
        return _IN_PLACE if changes_itself and torch.Tag.inplace_view not in func.tags else _OTHER
    if any(aliases) or func in _UNNAMED_VIEWS:
        return _VIEW if len(aliases) == 1 else _OTHER
    return (
        _OTHER if _INFERRED & set(func.tags) or any(str(value.type) != "Tensor" for value in schema.returns) else _FRESH
    )


def _key(func: Any, args: tuple, kwargs: dict) -> tuple | None:
    """The operation with layouts of its tensors and its other arguments; None unless all its tensors are fake."""
    parts: list[Any] = [func]
    count = _describe(args, parts)
    if kwargs and count >= 0:
        parts += kwargs
        inner = _describe(tuple(kwargs.values()), parts)
        count = -1 if inner < 0 else count + inner
    return tuple(parts) if count > 0 else None


def _describe(values: Any, parts: list[Any]) -> int:
    """Append to the parts of a key what values are; returns the number of fake tensors, -1 if another tensor is there.

    A device other than the CPU counts as another tensor.
    """
    count = 0
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                return -1
            parts += (value.shape, value.stride(), value.dtype)
            count += 1
        elif kind is list or kind is tuple:
            parts.append(len(value))
            if (inner := _describe(value, parts)) < 0:
                return -1
            count += inner
        elif isinstance(value, Tensor) or (kind is torch.device and value.type != "cpu"):
            return -1
        else:
            parts += (kind, value)
    return count
