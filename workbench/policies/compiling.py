"""torch.compile for RMSNorms and MLPs, the parts of a layer that do not depend on the key-value cache.

A whole layer would recompile for every length of the cache, with and without cache and gradient: minutes before the
first step ends, without a measured speed-up (docs/LOG.md). RMSNorms and MLPs need a few graphs that all layers share.
Attention and LayerNorms already are fused kernels.
"""

import functools
from types import MethodType
from typing import Any

import torch
from torch import nn

from workbench.errors import ConfigError

PARTS = ("RMSNorm", "MLP")  # suffixes of class names in transformers' models
GRAPHS = 64  # per class: for every width, with and without gradient


def compile_parts(model: nn.Module, backend: str, name: str) -> None:
    """Compile the RMSNorms and MLPs of a model, and of its copies, at their first use.

    Weights keep their names and memory, so training, offloading and averaging work unchanged.

    Raises: ConfigError for an unknown or unusable backend, or a model without such parts.
    """
    from torch._dynamo import config, list_backends  # noqa: PLC0415  (slow to import)
    from torch._dynamo.exc import BackendCompilerFailed, InvalidBackend  # noqa: PLC0415

    parts = [module for module in model.modules() if type(module).__name__.endswith(PARTS)]
    if not parts:
        raise ConfigError(
            f"models.compile={backend} has no effect on {name}: no class name of its modules ends in "
            f"{' or '.join(PARTS)}. Leave models.compile out."
        )
    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    try:
        # a trial run of the backend
        torch.compile(torch.exp, backend=backend)(torch.ones(2, device=model.device))
        for part in parts:  # a bound method, so that a copy of the model gets its own
            part.forward = MethodType(_compiled(type(part).forward, backend), part)
    except InvalidBackend as error:
        raise ConfigError(
            f"models.compile={backend} is not a backend of torch.compile. Expected one of "
            f"{', '.join(list_backends())}. Choose one, or leave models.compile out."
        ) from error
    except BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().partition("\n")[0]
        raise ConfigError(
            f"models.compile={backend} fails on this machine ({type(error.inner_exception).__name__}: {reason}). "
            "Install the packages it needs, choose models.compile=inductor, or leave models.compile out."
        ) from error


@functools.cache
def _compiled(forward: Any, backend: str) -> Any:
    return torch.compile(forward, backend=backend, dynamic=True)
