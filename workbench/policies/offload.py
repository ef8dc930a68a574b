"""Offloading: a frozen policy's weights are in host memory, and on the device only during its forward passes.

The head stays on the device, because losses compute logits from the hidden states later.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.policies.autoregressive import AutoregressivePolicy


def offload(policy: AutoregressivePolicy, device: torch.device | str) -> None:
    """Run a policy that was loaded on the CPU on `device`; between its passes only its head stays there."""
    policy.head.linear.to(device)
    stays = {id(tensor) for tensor in _tensors(policy.model.get_output_embeddings())}
    resident = [(tensor, _pinned(tensor)) for tensor in _tensors(policy.model) if id(tensor) not in stays]
    for tensor, values in resident:
        tensor.data = values

    away = False

    @contextlib.contextmanager
    def visit() -> Iterator[None]:
        nonlocal away
        if away:  # not for nested calls
            yield
            return
        for tensor, values in resident:
            tensor.data = values.to(device, non_blocking=True, copy=True)
        away = True
        try:
            yield
        finally:
            away = False
            for tensor, values in resident:
                tensor.data = values

    for verb in ("forward", "sample", "prove"):
        setattr(policy, verb, _during(visit, getattr(policy, verb)))


def _during(visit: Callable, verb: Callable) -> Callable:
    @functools.wraps(verb)
    def inside(*arguments: object, **options: Any) -> object:
        with visit():
            return verb(*arguments, **options)

    return inside


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _pinned(tensor: Tensor) -> Tensor:
    """Pin memory if a GPU is available, for faster copies."""
    return tensor.data.pin_memory() if torch.cuda.is_available() else tensor.data
