"""EOPD: reverse KL on every token, plus forward KL where the teacher's entropy is high.

Source: Entropy-aware on-policy distillation, arXiv 2603.07079; gate and threshold as in its code (WLS04/EOPD).
1. The student answers the plain prompt; the teacher scores the same tokens, given `privilege`.
2. SURE: the teacher's entropy is at most `threshold` nats. Reverse KL, which settles on one of the teacher's choices.
3. UNDECIDED: above it. The same reverse KL plus `forward_weight` times the forward KL, which covers all of them.
The forward KL is added, not substituted. With a threshold above the log of the vocabulary size this is opd.
A guess: both divergences are over the whole vocabulary, and the forward KL has weight 1.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import AGGREGATIONS, Loss, Method, Option, Regime, View
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    privilege: Annotated[str, Option("context of the teacher")] = "plain"
    threshold: Annotated[float, Option("teacher entropy above which forward KL is added", unit="nats", low=0)] = 0.8
    forward_weight: Annotated[float, Option("weight of the forward KL that is added", low=0)] = 1.0
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, or over all positions", choices=AGGREGATIONS)
    ] = "sequence_mean"


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        entropy = batch.scores["teacher"].entropy
        undecided = (entropy > options.threshold).long()
        return Routing(undecided, torch.ones_like(entropy), thresholds={"teacher_entropy": options.threshold})

    reverse = Loss("teacher", Divergence("reverse_kl"))
    forward = Loss("teacher", Divergence("forward_kl"), options.forward_weight)
    return Method(
        name="eopd",
        views={
            "student": View("student", "plain", learns=True),
            "teacher": View("teacher", options.privilege),
        },
        regimes={
            "SURE": Regime((reverse,), "teacher sure: reverse KL"),
            "UNDECIDED": Regime((reverse, forward), "teacher undecided: reverse and forward KL"),
        },
        route=route,
        router_views=("teacher",),
        loss_aggregation=options.loss_aggregation,
    )
