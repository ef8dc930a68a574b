"""Head detection: measure how a model computes logits from its last hidden states, in one forward pass.

Families scale hidden states or logits, soft-cap logits, or mask tokens, each under its own configuration keys.
Measuring these constants avoids a list of families. A model with anything else in between (a layer, a scale per token)
has no such head, and its own logits are used.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.policies.view_output import Head

CLOSE = {
    torch.float32: 1e-5,
    torch.float64: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}  # relative tolerance of one layer


def output_layer(model: nn.Module) -> nn.Module:
    """Output layer of a model, or of the language model inside it.

    Raises: ValueError for a model without one.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        inner = (getattr(part, "get_output_embeddings", lambda: None)() for part in model.children())
        layer = next((layer for layer in inner if layer is not None), None)
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output layer over its vocabulary")
    return layer


@dataclass
class Seen:
    """Inputs and outputs of the output layer in one pass."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def watched(layer: nn.Module) -> Iterator[Seen]:
    """Record the inputs and outputs of a layer inside this context."""
    seen = Seen()

    def note(_: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen.inputs.append(inputs[0].detach())
        seen.outputs.append(output.detach())

    handle = layer.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def find_head(model: nn.Module, hidden: Float[Tensor, "T D"], seen: Seen, logits: Float[Tensor, "T V"]) -> Head | None:
    """Find the head that maps a model's hidden states to its logits, at T positions before the last; None if none fits.

    seen  inputs and outputs of the output layer in the same pass
    """
    layer = output_layer(model)
    if len(seen.outputs) != 1 or seen.inputs[0].ndim != 3 or seen.outputs[0].ndim != 3:
        return None
    given, raw = (states[0, -1 - len(logits) : -1].double() for states in (seen.inputs[0], seen.outputs[0]))
    if given.shape != hidden.shape or raw.shape != logits.shape:
        return None
    close = CLOSE.get(hidden.dtype, 3e-2)
    before = _multiple(hidden.double(), given, close)
    if before is None:
        return None
    never = (logits <= torch.finfo(logits.dtype).min / 2).all(0)
    logits = logits.double()[:, ~never]
    config_numbers = _numbers(model.config.to_dict())
    for cap in (None, *(value for name, value in config_numbers if "cap" in name and value > 0)):
        after = _after(raw[:, ~never], logits, cap, close)
        if after is not None:
            break
    else:
        return None
    scale = before * after
    if scale != 1.0 and getattr(layer, "bias", None) is not None:
        return None
    names = [value for _, value in config_numbers if value > 0]
    candidates = (factor for number in (1.0, *names) for factor in (number, 1 / number))
    scale = next((factor for factor in candidates if abs(scale / factor - 1) < close), scale)
    return Head(layer, scale, cap, never=tuple(never.nonzero().squeeze(-1).tolist()))


def _multiple(values: Tensor, other: Tensor, close: float) -> float | None:
    """The factor with which `values` becomes `other`; None if it is not a multiple."""
    norm = (values * values).sum()
    if not norm or not torch.isfinite(other).all():
        return None
    factor = float((values * other).sum() / norm)
    return factor if float((factor * values - other).abs().max()) <= close * float(other.abs().max()) else None


def _after(raw: Tensor, logits: Tensor, cap: float | None, close: float) -> float | None:
    """Scale s such that s * raw, soft-capped, equals `logits`; None if none fits."""
    if cap is None:
        return _multiple(raw, logits, close)
    if float(logits.abs().max()) > cap * (1 + close):
        return None
    inside = logits.abs() < 0.9 * cap  # beyond that the inverse is not exact
    factor = _multiple(raw[inside], cap * torch.atanh(logits[inside] / cap), 10 * close)
    if factor is None:
        return None
    capped = cap * torch.tanh(factor * raw / cap)
    return factor if float((capped - logits).abs().max()) <= close * float(logits.abs().max()) else None


def _numbers(config: dict, prefix: str = "") -> list[tuple[str, float]]:
    """All numbers of a configuration with their dotted keys."""
    numbers = []
    for key, value in config.items():
        if isinstance(value, dict):
            numbers += _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers.append((f"{prefix}{key}", float(value)))
    return numbers
