"""torch.compile where it lasts: RMSNorms and MLPs, the parts of a layer that do the same whatever came before them.

A whole layer is compiled anew for every place in the key-value cache that it writes to, with a cache and without, with
gradient and without: minutes before the first step has ended, for nothing that was measured (docs/LOG.md). Its RMSNorms and
MLPs are a handful of graphs, the same for all layers. Attention and LayerNorms are fused kernels already.
"""

import functools
from types import MethodType

import torch
from torch import nn

from workbench.errors import ConfigError

PARTS = ("RMSNorm", "MLP")  # how the names of their classes end, in transformers' models
GRAPHS = 64  # of one class: of every width that its models have, with gradient and without


def compile_parts(model: nn.Module, backend: str, name: str) -> None:
    """Has a model's RMSNorms and MLPs compiled when they are first used, and those of its copies.

    Weights keep their names, and are read where they are: what trains, moves or averages them need not know.

    Raises: ConfigError if torch has no such compiler or it does not work here, or the model has no such parts.
    """
    from torch._dynamo import config, list_backends  # noqa: PLC0415  (seconds of importing, for who compiles alone)
    from torch._dynamo.exc import BackendCompilerFailed, InvalidBackend  # noqa: PLC0415

    parts = [module for module in model.modules() if type(module).__name__.endswith(PARTS)]
    if not parts:
        raise ConfigError(
            f"models.compile={backend} compiles RMSNorms and MLPs, and {name} has no module whose class ends in "
            f"{' or '.join(PARTS)}. Leave models.compile out."
        )
    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    try:
        # a trial: the parts themselves are compiled when they are first used
        torch.compile(torch.exp, backend=backend)(torch.ones(2, device=model.device))
        for part in parts:  # a method, so that a copy's is bound to the copy
            part.forward = MethodType(_compiled(type(part).forward, backend), part)
    except InvalidBackend as error:
        raise ConfigError(
            f"models.compile={backend} is no backend of torch.compile. There is: {', '.join(list_backends())}. "
            "Choose one, or leave models.compile out: then nothing is compiled."
        ) from error
    except BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().partition("\n")[0]
        raise ConfigError(
            f"models.compile={backend} does not work here ({type(error.inner_exception).__name__}: {reason}). Install what it needs, "
            "choose models.compile=inductor, or leave models.compile out."
        ) from error


@functools.cache
def _compiled(forward: object, backend: str) -> object:
    return torch.compile(forward, backend=backend, dynamic=True)
