"""Update underflow: the fraction of weights that an optimizer step changes in half precision.

bfloat16 has eight bits of precision, so a weight of 0.02 loses updates below 6e-5, while a common learning rate for
full fine-tuning is 1e-6. Such a run still logs losses and saves checkpoints, but hardly changes the weights.
"""

from collections.abc import Iterable

import torch

from workbench.policies.fsdp import local_tensor

HALF = (torch.bfloat16, torch.float16)
MAX_WEIGHTS = 4096  # compared weights per tensor
MIN_FRACTION = 0.5  # smallest fraction of weights that a healthy step changes
REMEDY = (
    "Keep weights in float32: models.dtype=float32 with training.mixed_precision=bf16 and "
    "models.teacher_dtype=bfloat16; or train adapters, which are always float32: models.lora.rank=16"
)


class UpdateUnderflow:
    """Compares half-precision weights before and after an optimizer step; ignores float32 weights."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = [weight for weight in parameters if weight.dtype in HALF]
        self._before: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []

    def before(self) -> None:
        """Call after the backward pass, before the optimizer step."""
        with_gradient = [weight for weight in self._parameters if weight.grad is not None]
        self._before = [(weight, _part(weight).clone(), _part(weight.grad) != 0) for weight in with_gradient]

    def after(self) -> dict[str, float]:
        """Return updated_weight_fraction: of the compared weights with a gradient, those that the step changed."""
        counts = [
            ((_part(weight) != before)[has_gradient].sum(), has_gradient.sum())
            for weight, before, has_gradient in self._before
        ]
        self._before = []
        if not counts:
            return {}
        moved, total = (int(torch.stack(column).sum()) for column in zip(*counts, strict=True))
        return {"updated_weight_fraction": moved / total} if total else {}

    @property
    def dtype(self) -> str | None:
        """Name of the half precision dtype, as in configurations; None without such weights."""
        return str(self._parameters[0].dtype).removeprefix("torch.") if self._parameters else None

    def smallest_effective_update(self) -> float | None:
        """Smallest update that changes a weight of median size; None without half-precision weights."""
        if not self._parameters:
            return None
        sizes = torch.cat([_part(weight).detach().abs().float() for weight in self._parameters])
        return float(sizes[sizes > 0].median()) * torch.finfo(self._parameters[0].dtype).eps / 2


def _part(tensor: torch.Tensor) -> torch.Tensor:
    return local_tensor(tensor.detach()).flatten()[:MAX_WEIGHTS]
