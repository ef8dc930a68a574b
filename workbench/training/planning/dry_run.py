"""Dry run: the workbench's own passes on tensors that have a shape, a dtype and no numbers.

Weights, and all that is computed from them, are fake (torch's FakeTensor: the meta device, with the dispatch of a CPU,
so that autocast and attention choose their kernels). Token ids, image grids, masks and positions are real, since code
asks them for values; flags that depend on fake numbers count as true. The run counts the bytes of all storages that are
alive, by kind, and the floating-point operations. Buffers inside of a kernel are not seen.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import zip_longest
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from workbench.training.planning.known_shapes import KnownShapes

LARGE = 2**22  # entries; a larger real tensor (an attention mask, pixels) loses its numbers
ACTIVATIONS, CACHE, LOGITS, GRADIENT, WEIGHTS, MOMENTS = KINDS = (
    "activations",
    "cache",
    "logits chunk",
    "gradient",
    "weights",
    "moments",
)
_aten = torch.ops.aten
_FACTORIES = (_aten.empty, _aten.zeros, _aten.ones, _aten.rand, _aten.randn, _aten.empty_strided)


def _cpu_attention(query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return 5 * sdpa_flop_count(query.shape, key.shape, value.shape) // 2  # two products become five


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


class DryRun(TorchDispatchMode):
    """Mode in which floating-point tensors have no numbers; counts bytes and operations.

    live   bytes alive by kind
    peaks  live bytes at the peak of each segment of the current phase; `mark` begins a segment
    flops  operations of each segment of the current phase
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._shapes = KnownShapes(self.fake)
        self.vocabularies: set[int] = set()  # widths of logits
        self.copied: set[torch.Size] = set()  # shapes of weights that autocast copies in half precision
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, Counter[str]] = {}
        self.flops: Counter[str] = Counter()
        self.kind: str | None = None
        self._gradients: frozenset[torch.Size] = frozenset()
        self.segment = ""
        self._peak_total = 0
        self._seen: dict[int, weakref.ref] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and skipping costs more than most operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked of every fake tensor, half of all operations
            return args[0].fake_device
        kwargs = kwargs or {}
        result = self._shapes.result(func, args, kwargs)
        if result is None:
            result = self._result(func, args, kwargs)
        if func._overloadpacket in _FLOPS:
            self.flops[self.segment] += _FLOPS[func._overloadpacket](*args, **kwargs, out_val=result)
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _result(self, func: Any, args: tuple, kwargs: dict) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func._overloadpacket is _aten.equal:
            return leaves[0].shape == leaves[1].shape
        if func._overloadpacket is _aten._local_scalar_dense and _is_fake_flag(args[0]):
            return True
        if any(isinstance(leaf, FakeTensor) for leaf in leaves):
            result = func(*self._with_whole_indices(func, args), **kwargs)
            self._shapes.keep(func, args, kwargs, result)
            return result
        if _creates_floats(func, args, kwargs, leaves) or _is_large(leaves):
            with self.fake:
                return func(*args, **kwargs)
        return tree_map_only(Tensor, self._without_numbers_if_large, func(*args, **kwargs))

    def _with_whole_indices(self, func: Any, args: tuple) -> tuple:
        """Indices by flags become indices by numbers, whose count is known; flags without numbers select all."""
        if func._overloadpacket not in (_aten.index, _aten.index_put, _aten.index_put_):
            return args
        indices: list[Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype == torch.bool:
                flags = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, FakeTensor) else index
                indices += flags.nonzero().unbind(-1)
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def _without_numbers_if_large(self, value: Tensor) -> Tensor:
        return self.fake.from_tensor(value) if value.numel() > LARGE else value

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        seen = self._seen.get(key)
        if seen is not None and seen() is not None:
            return
        size, kind = storage.nbytes(), self.kind or self._kind_of(tensor)
        self._seen[key] = weakref.ref(storage, lambda _: self._release(key, size, kind))
        self.hold(kind, size)

    def _kind_of(self, tensor: Tensor) -> str:
        if tensor.shape in self._gradients:
            return GRADIENT
        if tensor.shape in self.copied:
            return WEIGHTS
        return LOGITS if tensor.ndim == 2 and tensor.shape[-1] in self.vocabularies else ACTIVATIONS

    def _release(self, key: int, size: int, kind: str) -> None:
        self._seen.pop(key, None)
        self.live[kind] -= size

    def forget(self, model: nn.Module) -> None:
        """Do not count the weights of a model, whose bytes are held by phase."""
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = weakref.ref(storage)
        self.live.clear()

    def hold(self, kind: str, size: int) -> None:
        """Count bytes that no tensor of the dry run has; negative to give them back."""
        self.live[kind] += size
        total = sum(self.live.values())
        if total > self._peak_total:
            self._peak_total, self.peaks[self.segment] = total, Counter(self.live)

    def mark(self, segment: str) -> None:
        """Begin a segment of the phase, or go on with it."""
        self.segment = segment
        self._peak_total = sum(self.peaks.get(segment, Counter()).values())
        self.hold(ACTIVATIONS, 0)

    @contextlib.contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Inside is a segment of its own: what is there for a moment, so that it hides no other segment's peak."""
        before = self.segment
        phase, _, policy = before.split("|")
        self.mark(f"{phase}|{name}|{policy}")
        yield
        self.mark(before)

    @contextlib.contextmanager
    def phase(self, segment: str) -> Iterator[None]:
        """Run operations inside without numbers; count peaks and operations from here on."""
        self.flops, self.peaks = Counter(), {}
        self.mark(segment)
        with self:
            yield

    @contextlib.contextmanager
    def backward_of(self, parameters: list[Tensor]) -> Iterator[None]:
        """Inside, tensors with the shape of one of these weights count as gradients."""
        self._gradients = frozenset(parameter.shape for parameter in parameters)
        try:
            yield
        finally:
            self._gradients = frozenset()

    @contextlib.contextmanager
    def counted_as(self, kind: str | None) -> Iterator[None]:
        """Inside, all new tensors are of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before


def _is_fake_flag(value: Tensor) -> bool:
    return isinstance(value, FakeTensor) and value.dtype == torch.bool


def _creates_floats(func: Any, args: tuple, kwargs: dict, leaves: list[Tensor]) -> bool:
    """Whether an operation without tensors gives floating-point numbers; not ramps, which models read as rates."""
    if leaves or func._overloadpacket is _aten.linspace:
        return False
    dtype = kwargs.get("dtype") or next((value for value in args if isinstance(value, torch.dtype)), None)
    if dtype is not None:
        return dtype.is_floating_point
    return func._overloadpacket in _FACTORIES or any(isinstance(leaf, float) for leaf in tree_leaves(args))


def _is_large(leaves: list[Tensor]) -> bool:
    """Whether real tensors broadcast to one that is not worth its numbers."""
    if len(leaves) < 2:
        return False
    sizes = zip_longest(*(reversed(leaf.shape) for leaf in leaves), fillvalue=1)
    return prod(max(size) for size in sizes) > LARGE
