"""Memory of sharded layers: all-gathers without copies on a CPU, and weights in half precision under autocast."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from workbench.policies.node_memory import GatherOnNode, NodeMemory, SumOnNode


class GatherInPlace:
    """All-gather over gloo, whose own collective receives into a copy first: each rank in turn sends its part to where
    it belongs. For `FSDPModule.set_custom_all_gather`.
    """

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The flat tensor of all parts."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False):
        """Gather; the input is this rank's part of the output. It is done on return, as `async_op` allows."""
        for rank, part in enumerate(output_tensor.chunk(group.size())):
            dist.broadcast(part, group=group, group_src=rank)


def communicate_in_memory(layers: Sequence[FSDPModule], root: FSDPModule, memory: NodeMemory | None) -> None:
    """Have the parts of a model on a CPU gathered with few copies: in memory that all ranks share, if they do. There a
    layer is on its way while the one before computes, so that ranks wait less for each other.
    """
    for part in (*layers, root):
        part.set_custom_all_gather(GatherInPlace() if memory is None else GatherOnNode(memory))
        if memory is not None:
            part.set_custom_reduce_scatter(SumOnNode(memory))
    if memory is None:
        gather_alone(layers)
        return
    for layer, following in pairwise(layers):
        layer.set_modules_to_forward_prefetch([following])


def gather_alone(layers: Sequence[FSDPModule]) -> None:
    """Have each layer gathered before FSDP does in its forward pass, which keeps the previous layer's flat buffer until
    then. On a GPU that lets communication overlap with compute; on a CPU it is one layer more for nothing.
    """

    def gather(layer: FSDPModule, _: object) -> None:
        layer.unshard()

    for layer in layers:
        layer.register_forward_pre_hook(gather, prepend=True)


def cast_in_each_pass(layers: Sequence[nn.Module], active: Callable[[], bool]) -> None:
    """While `active`, have autocast drop its copies of a layer's weights with the layer.

    Otherwise it keeps a copy of every layer in half precision until its context ends, so the whole model.
    """

    def enter(*_: object) -> None:
        if active():
            torch.set_autocast_cache_enabled(False)

    def leave(*_: object) -> None:
        torch.set_autocast_cache_enabled(True)

    for layer in layers:
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave, always_call=True)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Data type of the present autocast context; None without one."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@torch.no_grad()
def in_half_precision(layer: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give linear layers the copies of their weights that autocast would make for each product.

    Returns the modules, the names and the weights that were replaced.
    """
    replaced = cast_weights(layer)
    for module, name, weight in replaced:
        setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))
    return replaced


def cast_weights(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Float32 weights of linear layers, which autocast casts, with their modules and names."""
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    weights = [(module, *item) for module in linear for item in module.named_parameters(recurse=False)]
    return [item for item in weights if item[2].dtype == torch.float32]


def whole_bytes(layers: Sequence[nn.Module], precision: str) -> int:
    """Bytes of layers that are whole to sample in a precision."""
    size = sum(weight.nbytes for layer in layers for weight in layer.parameters())
    halved = sum(weight.nbytes // 2 for layer in layers for _, _, weight in cast_weights(layer))
    return size if precision == "float32" else size - halved
