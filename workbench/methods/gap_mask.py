"""Gap-mask control: on-policy distillation without the tokens of largest, or smallest, gap.

Source: the token-drop ablation of DOPD, arXiv 2606.30626, Figure 4 (drops the fifth of the tokens with the largest
advantage gap from vanilla OPD). Differs: the gap may also be the capability or the information gap, to drop tokens that
carry information (known from the evidence only) or capability separately.
1. The student s answers the plain prompt x. Teacher t and privileged student s' score the same tokens, given
   `gap_context` p.
2. Gap of a token y: advantage |log t(y|x,p) - log s'(y|x,p)|, capability log t(y|x,p) - log s'(y|x,p), or information
   log s'(y|x,p) - log s(y|x).
3. The `fraction` of the batch's positions with the highest (or lowest) gap has no supervision. At the others the loss
   is the KL to the teacher, given `privilege`.
The loss is still divided by all positions, so a kept token has the same gradient as in opd; random_mask with
fraction = 1 - `fraction` is the control of equal size.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    gap: Annotated[str, Option("what tokens are ranked by", choices=("advantage", "capability", "information"))] = (
        "advantage"
    )
    drop: Annotated[str, Option("which end of the ranking has no supervision", choices=("highest", "lowest"))] = (
        "highest"
    )
    fraction: Annotated[float, Option("fraction of positions that is dropped", low=0, high=1)] = 0.2
    gap_context: Annotated[str, Option("context under which the gaps are measured")] = "crop"
    privilege: Annotated[str, Option("context of the teacher that supervises")] = "plain"
    divergence: Annotated[str, Option("divergence", choices=KINDS[1:4])] = "reverse_kl"


def build(options: Options) -> Method:
    views = {
        "student": View("student", "plain", learns=True),
        "self": View("student", options.gap_context),
        "teacher": View("teacher", options.gap_context),
    }
    target = "teacher"
    if options.privilege != options.gap_context:
        target = "supervisor"
        views[target] = View("teacher", options.privilege)
    loss = Loss(target, Divergence(options.divergence))
    return Method(
        name="gap_mask",
        views=views,
        regimes={"KEPT": Regime((loss,), "kept: teacher"), "DROPPED": Regime((), "dropped by gap: no supervision")},
        route=lambda batch: route(batch, options),
        router_views=("student", "self") if options.gap == "information" else ("self", "teacher"),
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    """Drop exactly `fraction` of the positions; ties are dropped in order of position."""
    values = gaps(batch, options.gap)
    order = values.argsort(stable=True, descending=options.drop == "highest")
    dropped = order[: int(options.fraction * batch.num_positions)]
    regime = torch.zeros_like(batch.sequence)
    regime[dropped] = 1
    thresholds = {f"{options.gap}_gap": float(values[dropped[-1]])} if dropped.numel() else {}
    return Routing(regime, torch.ones_like(values), thresholds=thresholds)


def gaps(batch: RouteBatch, kind: str) -> Float[Tensor, " N"]:
    """Gap of every position, in nats."""
    privileged = batch.scores["self"].logprob
    if kind == "information":
        return privileged - batch.scores["student"].logprob
    teacher = batch.scores["teacher"].logprob
    return (teacher - privileged).abs() if kind == "advantage" else teacher - privileged
