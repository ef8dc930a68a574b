"""SPD: the student samples once with projected keys and values, then trains on that text.

Source: "Self-Policy Distillation via Capability-Selective Subspace Projection", arXiv 2605.22675, through an audit and
notes (no official code).
1. On labeled examples: loss on the tokens that make an answer right, and its gradient with respect to the outputs of
   the key and value projections of a middle and the last layer, at all positions.
2. Half of the gradients' first right singular vectors span a subspace for each projection.
3. The student before training answers every prompt once, keys and values projected on it. No answer is filtered out.
4. Without projection, the student trains on these answers, token by token, for some epochs.
Differs: the loss covers the answer's tokens only (paper: also the prompt's). Not stated there and chosen here: the
sampling options; all heads of a projection share one space; projection before key norm and rotary embedding, so that it
can be folded into the weights; gradients are not centered; the middle layer is number L // 2, counted from 0; the loss
of an example is a mean over its tokens; calibration uses the first examples in the run's order. The calibration labels
are an external signal. Controls: subspace=random; subspace=none is plain self-retraining (PSR); calibrate_on=all is the
paper's weaker ablation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from workbench.distill.divergences import Divergence
from workbench.distill.method import TOKENS, Loss, Method, Option, PatchState, Regime, SamplingPatch, View
from workbench.distill.routing import everywhere
from workbench.policies.projection import (
    LAYERS,
    Subspace,
    calibrate,
    find_projections,
    gradient_subspace,
    projected,
    random_subspace,
    rank_of,
)
from workbench.seeding import derive_seed
from workbench.types import Example


@dataclass(frozen=True)
class Options:
    subspace: Annotated[
        str,
        Option(
            "subspace for keys and values while sampling; random and none are controls",
            choices=("gradient", "random", "none"),
        ),
    ] = "gradient"
    layers: Annotated[str, Option("layers of the text decoder that are projected", choices=LAYERS)] = LAYERS[0]
    fraction: Annotated[float, Option("dimensions kept, as a fraction of a projection's width", low=0, high=1)] = 0.5
    rank: Annotated[int, Option("dimensions kept, as a number; 0 = by fraction", low=0)] = 0
    calibrate_on: Annotated[
        str, Option("token type, as the data's marks name it, that makes an answer right; all = every token")
    ] = "answer"
    calibration: Annotated[int, Option("labeled examples whose gradients are taken", low=1)] = 50


def build(options: Options) -> Method:
    def make(student, examples: Iterator[Example], seed: int) -> PatchState:
        ranks = {
            name: rank_of(name, module.out_features, options.fraction, options.rank)
            for name, module in find_projections(student.model, options.layers).items()
        }
        if options.subspace == "random":
            widths = {name: student.model.get_submodule(name).out_features for name in ranks}
            spaces = {
                name: random_subspace(widths[name], rank, derive_seed(seed, name)) for name, rank in ranks.items()
            }
            return PatchState(_tensors(spaces), {"rank": _each(spaces, lambda space: space.rank)})
        result = calibrate(
            student, examples, count=options.calibration, kind=options.calibrate_on, layers=options.layers
        )
        spaces = {name: gradient_subspace(result.moments[name], rank) for name, rank in ranks.items()}
        facts = {
            "calibration examples": result.used,
            f"{options.calibrate_on} tokens": result.tokens,
            "examples without": result.left_out,
            "rank": _each(spaces, lambda space: space.rank),
            "rank of the gradients": _each(spaces, lambda space: space.gradient_rank),
            "their energy inside": _each(spaces, lambda space: "-" if space.energy is None else f"{space.energy:.1%}"),
        }
        return PatchState(_tensors(spaces), facts)

    sampling_patch = None if options.subspace == "none" else SamplingPatch(make, projected, _NAMES[options.subspace])
    return Method(
        name="spd",
        views={"student": View("student", "plain", learns=True)},
        regimes={"ALL": Regime((Loss(TOKENS, Divergence("nll")),), "every token: the sampled token")},
        route=everywhere,
        loss_aggregation="token_mean",
        sampling_patch=sampling_patch,
        resample=False,
    )


_NAMES = {"gradient": "projection", "random": "random projection"}


def _tensors(spaces: dict[str, Subspace]) -> dict:
    return {name: space.projector for name, space in spaces.items()}


def _each(spaces: dict[str, Subspace], value) -> str:
    """Format one value per projection, in order."""
    return ", ".join(
        f"{name.split('layers.')[-1].replace('self_attn.', '')} {value(space)}" for name, space in spaces.items()
    )
