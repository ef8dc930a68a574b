"""TIP: on-policy distillation on the tokens where the student's entropy or its distance to the teacher is high.

Source: arXiv 2604.14084 (abstract and an audit; the released code lacks the selection).
1. The student answers the plain prompt; the teacher scores the same tokens, given `privilege`.
2. h is the student's entropy and d its distance from the teacher, both scaled to 0..1 by their minimum and maximum in
   the batch.
3. Score h + d - h d, which is high if either is; or h alone, or d alone (`select`).
4. The `fraction` of the batch's positions with the highest score has the KL to the teacher, the others no supervision.
5. The loss is divided by the kept positions; otherwise a smaller fraction would only lower the learning rate.
Differs: d is |log t(y) - log s(y)| of the sampled token y, not a divergence over the vocabulary, which rules do not
see. A guess: the loss is reverse KL. Control: random_mask with the same fraction, normalize_by=supervised.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import AGGREGATIONS, NORMALIZERS, Loss, Method, Option, Regime, View
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    fraction: Annotated[float, Option("fraction of positions that is kept", low=0, high=1)] = 0.5
    select: Annotated[str, Option("what positions are ranked by", choices=("either", "entropy", "distance"))] = "either"
    privilege: Annotated[str, Option("context of the teacher")] = "plain"
    divergence: Annotated[str, Option("divergence", choices=KINDS[1:4])] = "reverse_kl"
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, or over all positions", choices=AGGREGATIONS)
    ] = "token_mean"
    normalize_by: Annotated[str, Option("positions that the loss is divided by", choices=NORMALIZERS)] = "supervised"


def build(options: Options) -> Method:
    loss = Loss("teacher", Divergence(options.divergence))
    return Method(
        name="tip",
        views={
            "student": View("student", "plain", learns=True),
            "teacher": View("teacher", options.privilege),
        },
        regimes={
            "KEPT": Regime((loss,), "uncertain or distant: teacher"),
            "REST": Regime((), "no supervision"),
        },
        route=lambda batch: route(batch, options),
        router_views=("student", "teacher"),
        loss_aggregation=options.loss_aggregation,
        normalize_by=options.normalize_by,
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    """Keep exactly `fraction` of the positions, at least one; ties are kept in order of position."""
    student = batch.scores["student"]
    entropy = _spread(student.entropy)
    distance = _spread((batch.scores["teacher"].logprob - student.logprob).abs())
    score = {"either": entropy + distance - entropy * distance, "entropy": entropy, "distance": distance}[
        options.select
    ]
    kept = score.argsort(stable=True, descending=True)[: max(1, round(options.fraction * batch.num_positions))]
    regime = torch.ones_like(batch.sequence)
    regime[kept] = 0
    return Routing(regime, torch.ones_like(score), thresholds={"score": float(score[kept[-1]])})


def _spread(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Scale the values to 0..1 by their minimum and maximum; all 0 if they are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=1e-6)
