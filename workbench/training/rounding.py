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
    "Keep weights in float32: models.dtype=float32 with training.mixed_precision=bf16 and models.teacher_dtype=bfloat16; or train "
    "adapters, which are in float32 always: models.lora.rank=16"
)


class Rounding:
    """Looks at weights before a step and after it. Of weights in float32 there is nothing to look at."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = [one for one in parameters if one.dtype in HALF]
        self._before: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []

    def before(self) -> None:
        """To be called when gradients are there and nothing has moved."""
        here = [one for one in self._parameters if one.grad is not None]
        self._before = [(one, _part(one).clone(), _part(one.grad) != 0) for one in here]

    def after(self) -> dict[str, float]:
        """weights_moved: of the weights that were looked at and have a gradient, the share with another value now."""
        counts = [((_part(one) != before)[asked].sum(), asked.sum()) for one, before, asked in self._before]
        self._before = []
        if not counts:
            return {}
        moved, total = (int(torch.stack(own).sum()) for own in zip(*counts, strict=True))
        return {"weights_moved": moved / total} if total else {}

    @property
    def dtype(self) -> str | None:
        """What they are in, as configurations call it; None without weights in half precision."""
        return str(self._parameters[0].dtype).removeprefix("torch.") if self._parameters else None

    def finest_step(self) -> float | None:
        """About the smallest step that moves a typical weight, the median of them; None without weights in half precision."""
        if not self._parameters:
            return None
        sizes = torch.cat([_part(one).detach().abs().float() for one in self._parameters])
        return float(sizes[sizes > 0].median()) * torch.finfo(self._parameters[0].dtype).eps / 2


def _part(tensor: torch.Tensor) -> torch.Tensor:
    return local(tensor.detach()).flatten()[:PROBED]
