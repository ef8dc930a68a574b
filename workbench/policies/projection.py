"""Subspace projection of the keys and values of a few layers while a policy samples.

G stacks the gradients of the loss on chosen tokens with respect to the output of one key or value projection, at every
position of every calibration example. Its first r right singular vectors V span the subspace, and P = V V^T projects on
it (SPD, arXiv 2605.22675). P covers the whole width of the projection, all heads together, before key norm and rotary
embedding, so that it can be folded into the weights: W' = P W, b' = P b.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.data.contexts import build_prompt
from workbench.errors import ConfigError, DataError, PolicyError
from workbench.types import Example, Mark, label_tokens

LAYERS = ("middle+last", "middle", "last", "all")
KINDS = ("k_proj", "v_proj")
EVERY_TOKEN = "all"  # of the answer, in place of one kind
_NEGLIGIBLE = 1e-12  # relative to the largest squared singular value; gradients are float32


@dataclass
class Calibration:
    """Second moments of the gradients, G^T G, whose eigenvectors are the right singular vectors of G.

    moments   per projection, in float64
    used      number of examples with a gradient; `tokens`, their tokens with a loss
    left_out  number of examples without an answer or without a token of the kind
    """

    moments: dict[str, Float[Tensor, "W W"]]
    used: int = 0
    tokens: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Subspace:
    """An orthogonal projector and its origin.

    energy         share of the gradients' squared norm inside the subspace; None without gradients
    gradient_rank  rank of the gradients; directions kept beyond it are arbitrary
    """

    projector: Float[Tensor, "W W"]
    rank: int
    energy: float | None = field(default=None)
    gradient_rank: int | None = field(default=None)


def find_projections(model: nn.Module, layers: str = LAYERS[0]) -> dict[str, nn.Module]:
    """Find the key and value projections of the text decoder's chosen layers, by module name.

    Raises: PolicyError for a layer without them (fused projections, no attention).
    """
    stack = getattr(model.get_decoder(), "layers", None)
    if not isinstance(stack, nn.ModuleList) or not len(stack):
        raise PolicyError(
            f"the text decoder of {type(model).__name__} has no list of layers. Choose another model for this method."
        )
    last = len(stack) - 1
    chosen = {"middle+last": (len(stack) // 2, last), "middle": (len(stack) // 2,), "last": (last,)}
    names = {id(module): name for name, module in model.named_modules()}
    modules = {}
    for idx in dict.fromkeys(chosen.get(layers, range(len(stack)))):
        layer_modules = [
            (name, module) for name, module in stack[idx].named_modules() if name.rpartition(".")[2] in KINDS
        ]
        if {name.rpartition(".")[2] for name, _ in layer_modules} != set(KINDS) or len(layer_modules) != len(KINDS):
            linear = sorted({name for name, module in stack[idx].named_modules() if isinstance(module, nn.Linear)})
            raise PolicyError(
                f"layer {idx} of {type(model).__name__} has the linear maps {', '.join(linear) or 'none'}. Expected "
                "one k_proj and one v_proj. Choose another method.layers, or a model without fused projections."
            )
        modules |= {names[id(module)]: module for _, module in layer_modules}
    return modules


def calibrate(policy, examples: Iterable[Example], *, count: int, kind: str, layers: str = LAYERS[0]) -> Calibration:
    """Compute the gradients of -log p, averaged over an answer's tokens of `kind`, on `count` reference answers.

    kind      a kind of the examples' marks, or EVERY_TOKEN; examples without marks use the final answer's tokens
    examples  iterated until `count` were used

    Raises: DataError if no example has such a token; PolicyError as find_projections.
    """
    projections = find_projections(policy.model, layers)
    widths = {name: module.out_features for name, module in projections.items()}
    done = Calibration({name: torch.zeros(width, width, dtype=torch.float64) for name, width in widths.items()})
    kinds: set[str] = set()
    for example in examples:
        if done.used == count:
            break
        text = example.reference or example.answer
        ids = policy.answer_ids(text) if text and policy.special_in(text) is None else ()
        places = _places(policy.token_texts(ids), example, kind, kinds)
        if not places:
            done.left_out += 1
            continue
        for name, gradient in _gradients(policy, projections, example, ids, places).items():
            done.moments[name] += (gradient.T @ gradient).cpu()
        done.used += 1
        done.tokens += len(places)
    if not done.used:
        raise DataError(
            f'none of {done.left_out} examples has a token of kind "{kind}" in its answer. Expected one of '
            f"{', '.join(sorted(kinds)) or 'no kinds'}. Set method.calibrate_on to one of them or to {EVERY_TOKEN}, or "
            "add answers."
        )
    return done


def gradient_subspace(moments: Float[Tensor, "W W"], rank: int) -> Subspace:
    """Subspace of the `rank` largest singular values of gradients with the given second moments."""
    values, vectors = torch.linalg.eigh(moments)  # ascending
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(-1)
    total = float(values.sum())
    energy = float(values[:rank].sum()) / total if total else None
    return Subspace(_projector(vectors[:, :rank]), rank, energy, int((values > _NEGLIGIBLE * values[0]).sum()))


def random_subspace(width: int, rank: int, seed: int) -> Subspace:
    """Uniformly random subspace, the control."""
    normal = torch.randn(width, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Subspace(_projector(torch.linalg.qr(normal).Q), rank)


def rank_of(name: str, width: int, fraction: float, rank: int = 0) -> int:
    """Dimensions to keep of a projection: `rank`, or the fraction of its width. Raises ConfigError if rank > width."""
    if rank > width:
        raise ConfigError(
            f"method.rank={rank} exceeds the width of {name}. Expected at most {width}. Lower it, or set method.rank=0 "
            "and method.fraction."
        )
    return rank or max(1, round(fraction * width))


@contextlib.contextmanager
def projected(policy, projectors: dict[str, Float[Tensor, "W W"]]) -> Iterator[None]:
    """Multiply the outputs of the named projections by their projectors inside this context."""

    def multiply(projector: Tensor) -> Callable:
        return lambda module, inputs, output: (output.float() @ projector.to(output.device)).to(output.dtype)

    modules = [(policy.model.get_submodule(name), multiply(projector)) for name, projector in projectors.items()]
    with _hooked(modules):
        yield


def _places(texts: list[str], example: Example, kind: str, kinds: set[str]) -> list[int]:
    """Indices of the tokens with the calibration loss; adds the kinds of this example to `kinds`."""
    if kind == EVERY_TOKEN:
        return list(range(len(texts)))
    marks = example.marks
    if not marks and example.answer:  # the last occurrence of the answer
        marks = (Mark(rf"(?s).*({re.escape(example.answer)})", "answer"),)
    token_kinds = [label for label, _ in label_tokens([*texts[:-1], ""], marks)] if texts else []
    kinds |= set(filter(None, token_kinds))
    return [idx for idx, token_kind in enumerate(token_kinds) if token_kind == kind]


def _gradients(
    policy, projections: dict[str, nn.Module], example: Example, ids: tuple[int, ...], places: list[int]
) -> dict[str, Float[Tensor, "N W"]]:
    """d loss / d output of each projection, at all positions of prompt and answer."""
    taken: list[tuple[str, Tensor]] = []

    def tap(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            nothing = torch.zeros_like(output, requires_grad=True)  # outputs of frozen weights have no gradient
            taken.append((name, nothing))
            return output + nothing

        return hook

    policy.prove()  # before the hooks are added
    with _hooked([(module, tap(name)) for name, module in projections.items()]), torch.enable_grad():
        index = torch.tensor(places, device=policy.device)
        logits = policy.forward([build_prompt(example, "plain")], [ids]).logits(index)
        targets = torch.tensor(ids, device=policy.device)[index]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        gradients = torch.autograd.grad(loss, [nothing for _, nothing in taken])
    parts: dict[str, list[Tensor]] = {}
    for (name, _), gradient in zip(taken, gradients, strict=True):
        parts.setdefault(name, []).append(gradient.flatten(0, -2).double())
    return {name: torch.cat(rows) for name, rows in parts.items()}


@contextlib.contextmanager
def _hooked(hooks: list[tuple[nn.Module, Callable]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _projector(vectors: Float[Tensor, "W R"]) -> Float[Tensor, "W W"]:
    product = vectors @ vectors.T
    return ((product + product.T) / 2).float()
