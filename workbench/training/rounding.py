"""How much of a step is left where weights are trained in half precision.

A bfloat16 number has eight binary digits: what is added to a weight of 0.02 is lost below 6e-5, and a common learning
rate for whole models is 1e-6. Training then goes on, with losses and checkpoints, and changes next to nothing.
"""

from collections.abc import Iterable

import torch

from workbench.policies.fsdp import local

HALF = (torch.bfloat16, torch.float16)
PROBED = 4096  # weights of a tensor that are looked at
LEAST = 0.5  # of the weights, that should move in a step
REMEDY = (
    "Keep weights in float32: models.dtype=float32 with training.mixed_precision=bf16 and "
    "models.teacher_dtype=bfloat16; or train adapters, which are in float32 always: models.lora.rank=16"
)


class Rounding:
    """Looks at weights before a step and after it. Of weights in float32 there is nothing to look at."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = [weight for weight in parameters if weight.dtype in HALF]
        self._before: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []

    def before(self) -> None:
        """To be called when gradients are there and nothing has moved."""
        with_gradient = [weight for weight in self._parameters if weight.grad is not None]
        self._before = [(weight, _part(weight).clone(), _part(weight.grad) != 0) for weight in with_gradient]

    def after(self) -> dict[str, float]:
        """weights_moved: of the weights that were looked at and have a gradient, the share with another value now."""
        counts = [
            ((_part(weight) != before)[has_gradient].sum(), has_gradient.sum())
            for weight, before, has_gradient in self._before
        ]
        self._before = []
        if not counts:
            return {}
        moved, total = (int(torch.stack(column).sum()) for column in zip(*counts, strict=True))
        return {"weights_moved": moved / total} if total else {}

    @property
    def dtype(self) -> str | None:
        """What they are in, as configurations call it; None without weights in half precision."""
        return str(self._parameters[0].dtype).removeprefix("torch.") if self._parameters else None

    def finest_step(self) -> float | None:
        """About the smallest step that moves a typical weight, the median of them; None without weights in half
        precision.
        """
        if not self._parameters:
            return None
        sizes = torch.cat([_part(weight).detach().abs().float() for weight in self._parameters])
        return float(sizes[sizes > 0].median()) * torch.finfo(self._parameters[0].dtype).eps / 2


def _part(tensor: torch.Tensor) -> torch.Tensor:
    return local(tensor.detach()).flatten()[:PROBED]
