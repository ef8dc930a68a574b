"""Keys and values of a few layers, projected on a subspace while a policy writes.

The subspace is that in which the loss on chosen tokens moves: G stacks the gradients of that loss with respect to the
output of one key or value projection, at every position of every calibration example; its first r right singular vectors
V span the subspace, and P = V V^T projects on it (SPD, arXiv 2605.22675). The whole
width of the projection is taken together, all heads at once, before any key norm and rotary embedding, so that P can also be
folded into the weights: W' = P W, b' = P b.
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
EVERY_TOKEN = "all"  # of the answer, instead of those of one kind
_NEGLIGIBLE = 1e-12  # of the largest squared singular value; gradients are float32


@dataclass
class Calibration:
    """Second moments of the gradients, G^T G: their eigenvectors are the right singular vectors of G.

    moments   per projection, in float64
    used      examples that gave a gradient; `tokens` of them carried the loss
    left_out  examples looked at that have no answer, or no token of the asked kind
    """

    moments: dict[str, Float[Tensor, "W W"]]
    used: int = 0
    tokens: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Subspace:
    """An orthogonal projector, and what is known of where it comes from.

    energy         share of the gradients' squared norm that lies inside; None without gradients
    gradient_rank  rank of the gradients; directions kept beyond it are arbitrary
    """

    projector: Float[Tensor, "W W"]
    rank: int
    energy: float | None = field(default=None)
    gradient_rank: int | None = field(default=None)


def find_projections(model: nn.Module, layers: str = LAYERS[0]) -> dict[str, nn.Module]:
    """Key and value projections of the text decoder's chosen layers, by module name.

    Raises: PolicyError if a layer has none of its own (fused projections, no attention).
    """
    stack = getattr(model.get_decoder(), "layers", None)
    if not isinstance(stack, nn.ModuleList) or not len(stack):
        raise PolicyError(
            f"{type(model).__name__}: its text decoder has no list of layers, so no key and value projections are found."
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
                f"layer {idx} of {type(model).__name__} has no single k_proj and v_proj; its linear maps are "
                f"{', '.join(linear) or 'none'}. Keys and values can be projected only where they are maps of their own: "
                "choose another method.layers or a model without fused projections."
            )
        modules |= {names[id(module)]: module for _, module in layer_modules}
    return modules


def calibrate(
    policy, examples: Iterable[Example], *, count: int, kind: str, layers: str = LAYERS[0], context: str = "plain"
) -> Calibration:
    """Gradients of -log p, mean over an answer's tokens of `kind`, on the reference answers of `count` examples.

    kind      a kind that the examples' marks name, or EVERY_TOKEN. Examples without marks: the final answer's tokens
    examples  looked at in order until `count` were used

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
        for name, gradient in _gradients(policy, projections, example, context, ids, places).items():
            done.moments[name] += (gradient.T @ gradient).cpu()
        done.used += 1
        done.tokens += len(places)
    if not done.used:
        raise DataError(
            f'none of {done.left_out} examples has a token of kind "{kind}" in an answer or reference, to calibrate on; '
            f"kinds found: {', '.join(sorted(kinds)) or 'none'}. Name one of them as method.calibrate_on, add answers, or "
            f"set method.calibrate_on={EVERY_TOKEN}."
        )
    return done


def gradient_subspace(moments: Float[Tensor, "W W"], rank: int) -> Subspace:
    """The subspace of the `rank` largest singular values of the gradients whose second moments are given."""
    values, vectors = torch.linalg.eigh(moments)  # ascending
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(-1)
    total = float(values.sum())
    energy = float(values[:rank].sum()) / total if total else None
    return Subspace(_projector(vectors[:, :rank]), rank, energy, int((values > _NEGLIGIBLE * values[0]).sum()))


def random_subspace(width: int, rank: int, seed: int) -> Subspace:
    """A subspace of the same rank, drawn evenly over all of them: the control."""
    normal = torch.randn(width, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Subspace(_projector(torch.linalg.qr(normal).Q), rank)


def rank_of(name: str, width: int, share: float, rank: int = 0) -> int:
    """Dimensions kept of a projection: `rank`, or the share of its width. Raises ConfigError if there are fewer."""
    if rank > width:
        raise ConfigError(
            f"method.rank={rank} is more than {name} has: its width is {width}. Choose at most that, or method.rank=0 "
            "and a method.share."
        )
    return rank or max(1, round(share * width))


@contextlib.contextmanager
def projected(policy, projectors: dict[str, Float[Tensor, "W W"]]) -> Iterator[None]:
    """Inside, the outputs of the named projections are multiplied by their projectors; after it, no hook is left."""

    def multiply(projector: Tensor) -> Callable:
        return lambda module, inputs, output: (output.float() @ projector.to(output.device)).to(output.dtype)

    modules = [(policy.model.get_submodule(name), multiply(projector)) for name, projector in projectors.items()]
    with _hooked(modules):
        yield


@torch.no_grad()
def fold(model: nn.Module, projectors: dict[str, Float[Tensor, "W W"]]) -> None:
    """Make the model write as `projected` has it write, without hooks: W' = P W, b' = P b.

    Raises: PolicyError for anything but a linear layer (an adapter has to be merged first).
    """
    for name, projector in projectors.items():
        linear = model.get_submodule(name)
        if type(linear) is not nn.Linear:
            raise PolicyError(f"{name} is a {type(linear).__name__} and no plain linear layer: merge adapters first.")
        for values in filter(None.__ne__, (linear.weight, linear.bias)):
            values.copy_(projector.to(values.device) @ values.float())


def _places(texts: list[str], example: Example, kind: str, kinds: set[str]) -> list[int]:
    """Indices of the tokens that carry the calibration loss; `kinds` gains those that were met."""
    if kind == EVERY_TOKEN:
        return list(range(len(texts)))
    marks = example.marks
    if not marks and example.answer:  # the last time that the answer is named
        marks = (Mark(rf"(?s).*({re.escape(example.answer)})", "answer"),)
    token_kinds = [label for label, _ in label_tokens([*texts[:-1], ""], marks)] if texts else []
    kinds |= set(filter(None, token_kinds))
    return [idx for idx, token_kind in enumerate(token_kinds) if token_kind == kind]


def _gradients(
    policy, projections: dict[str, nn.Module], example: Example, context: str, ids: tuple[int, ...], places: list[int]
) -> dict[str, Float[Tensor, "N W"]]:
    """d loss / d output of each projection, all positions of prompt and answer end to end."""
    taken: list[tuple[str, Tensor]] = []

    def tap(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            nothing = torch.zeros_like(output, requires_grad=True)  # frozen weights give outputs without gradient
            taken.append((name, nothing))
            return output + nothing

        return hook

    policy.prove()  # its passes are not to be tapped
    with _hooked([(module, tap(name)) for name, module in projections.items()]), torch.enable_grad():
        index = torch.tensor(places, device=policy.device)
        logits = policy.forward([build_prompt(example, context)], [ids]).logits(index)
        written = torch.tensor(ids, device=policy.device)[index]
        loss = torch.nn.functional.cross_entropy(logits, written)
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
