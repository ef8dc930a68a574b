"""A frozen policy whose weights lie in host memory and visit the device only while it reads or writes.

Its head stays: losses ask for logits of its hidden states after it has read.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.policies.autoregressive import AutoregressivePolicy


def offload(policy: AutoregressivePolicy, device: torch.device | str) -> None:
    """Have a policy that was loaded on the CPU do its work on `device`, and hold only its head there in between."""
    policy.head.linear.to(device)
    stays = {id(tensor) for tensor in _tensors(policy.model.get_output_embeddings())}
    resident = [(tensor, _pinned(tensor)) for tensor in _tensors(policy.model) if id(tensor) not in stays]
    for tensor, values in resident:
        tensor.data = values

    away = False

    @contextlib.contextmanager
    def visit() -> Iterator[None]:
        nonlocal away
        if away:  # one verb inside another
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
    """Page-locked where there is a GPU, so that copies to it run at full speed."""
    return tensor.data.pin_memory() if torch.cuda.is_available() else tensor.data
