"""GRPO control: outcome rewards only. An answer is raised or lowered as a whole, without a signal per token.

Source: GRPO, arXiv 2402.03300, section 4.1.2. The difference to this control is what a dense signal adds, also to the
weights (arXiv 2606.13657 compares on-policy distillation with such runs).
1. The student answers each question several times; each answer is graded, 1 right and 0 wrong.
2. Advantage of an answer: its reward minus the mean of its group, over the group's standard deviation. A group is the
   answers to one prompt.
3. RAISED and LOWERED: loss minus advantage times log-prob, the same advantage at every token of an answer.
4. EVEN: a group all right or all wrong, or without grades. No supervision.
Differs: each answer is used once, so the ratio to the sampling policy is 1 and its clip never acts; no KL to the start,
as in later recipes.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import AGGREGATIONS, REWARD, Loss, Method, Option, Regime, View
from workbench.distill.routing import group_relative_advantage
from workbench.types import RouteBatch, Routing

RAISED, LOWERED, EVEN = range(3)


@dataclass(frozen=True)
class Options:
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, or over all positions", choices=AGGREGATIONS)
    ] = "sequence_mean"


def build(options: Options) -> Method:
    losses = (Loss(REWARD, Divergence("policy_gradient")),)
    return Method(
        name="grpo",
        views={"student": View("student", "plain", learns=True)},
        regimes={
            "RAISED": Regime(losses, "better than its question's other answers: raised"),
            "LOWERED": Regime(losses, "worse than its question's other answers: lowered"),
            "EVEN": Regime((), "as good as all others, or not graded: no supervision"),
        },
        route=route,
        loss_aggregation=options.loss_aggregation,
        min_generations=2,
    )


def route(batch: RouteBatch) -> Routing:
    """Give every token the advantage of its answer."""
    advantage = group_relative_advantage(batch.rollouts).to(batch.sequence.device)[batch.sequence]
    regime = torch.where(advantage > 0, RAISED, torch.where(advantage < 0, LOWERED, EVEN))
    return Routing(regime, torch.ones_like(advantage), advantage)
