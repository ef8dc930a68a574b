"""A device without hardware, `foreign:0`: its tensors compute on the CPU, and do not mix with tensors of the CPU.

So a run in which an operation would get tensors of two devices, an error on a GPU, fails on any machine too. As on a
GPU, a tensor of the CPU may be an index, or a number without dimensions. Not simulated: `tensor.data = ...` across
devices, pinned memory, streams, kernels that a device lacks, autocast (which changes nothing here).

`install()` makes it the process's accelerator, for good: call it in a process of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "foreign"
aten = torch.ops.aten
_INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# operations without tensors; those that create an empty tensor and resize it could not resize a ForeignTensor
_CREATING = ("arange", "arange.start", "arange.start_step", "empty.memory_format", "empty_strided", "eye", "eye.m")
_CREATING += ("full", "linspace", "ones", "rand", "randint", "randint.low", "randn", "randperm", "randperm.generator")
_CREATING += ("scalar_tensor", "zeros")
_libraries: list[torch.library.Library] = []  # a library's rules last as long as its object


class ForeignTensor(Tensor):
    """A tensor of the device; `host` has its numbers."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "ForeignTensor":
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        wrapper.host = host
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(operation, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = ForeignTensor(self.host.detach().clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, requires_grad=self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return self.host.tolist()

    def __format__(self, rule: str) -> str:
        return format(self.host, rule)

    def __repr__(self) -> str:
        return f"{self.host} on {NAME}"


def _host(value: Any) -> Any:
    return value.host if isinstance(value, ForeignTensor) else value


def _compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the CPU; its results are on the device if its arguments are, or if it names the device."""
    packet, tensors = operation._overloadpacket, [leaf for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)]
    if operation is torch.ops.prim.device.default:
        return torch.device(NAME, 0)
    if packet is aten.copy_:
        _host(args[0]).copy_(_host(args[1]))
        return args[0]
    if packet is not aten._to_copy:
        _require_one_device(operation, packet, args, tensors)
    target = kwargs.get("device")
    is_foreign = any(isinstance(tensor, ForeignTensor) for tensor in tensors)
    if target is not None:
        is_foreign = torch.device(target).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        kwargs = {name: value for name, value in kwargs.items() if name in _arguments(operation)}
    result = operation(*tree_map(_host, args), **tree_map(_host, kwargs))
    mine = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, ForeignTensor)}  # changed in place

    def returned(value: Any) -> Any:
        if not is_foreign or not _is_tensor(value):
            return value
        return mine.get(id(value)) if id(value) in mine else ForeignTensor(value)

    return tree_map(returned, result)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _arguments(operation: Any) -> set[str]:
    return {argument.name for argument in operation._schema.arguments}


def _require_one_device(operation: Any, packet: Any, args: tuple, tensors: list[Tensor]) -> None:
    if packet in _INDEXED and isinstance(args[0], ForeignTensor):
        tensors = [args[0], *args[2:3]]
    types = {tensor.device.type for tensor in tensors if tensor.dim() > 0 or tensor.device.type == NAME}
    if len(types) > 1:
        shapes = ", ".join(f"{tensor.device.type} {list(tensor.shape)}" for tensor in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} got {shapes}")


def _creating(operation: Any) -> Callable:
    def create(*args: Any, **kwargs: Any) -> Tensor:
        given = {**kwargs, "device": torch.device("cpu")}
        return ForeignTensor(operation(*args, **{name: value for name, value in given.items() if name != "pin_memory"}))

    return create


class _Module:
    """What torch asks of a device's module."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = synchronize = manual_seed = manual_seed_all = staticmethod(lambda *_: None)
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = staticmethod(lambda *_: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    empty_cache = staticmethod(lambda: None)


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def install() -> None:
    """Make `foreign:0` this process's accelerator."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
    rules, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in _CREATING:
        packet, _, overload = name.partition(".")
        rules.impl(name, _creating(getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        _host(target).copy_(_host(source))
        return target

    rules.impl("_copy_from", copy_from, "PrivateUse1")
    rules.impl("_local_scalar_dense", lambda number: _host(number).item(), "PrivateUse1")
    others.fallback(lambda operation, *args, **kwargs: _compute(operation, args, kwargs), "PrivateUse1")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend((rules, others))
