"""GRPO control: rewards alone. Nobody says which token was wrong; an answer is raised or lowered as a whole.

Source: GRPO, arXiv 2402.03300, section 4.1.2. What a dense signal adds is the difference to this, and so is what it
does to the weights (arXiv 2606.13657 compares on-policy distillation with such runs).
1. The student answers each question several times; each answer is graded, 1 right and 0 wrong.
2. Advantage of an answer: its reward minus the mean of its question's answers, over their deviation.
3. RAISED and LOWERED: loss minus advantage times log-prob, the same advantage at every token of an answer.
4. EVEN: all of a question are right or all wrong, or nothing can be graded. No supervision.
Differs: each answer is learned from once, so the ratio to the policy that wrote it is 1 and its clip never acts; no KL
to the start, as later recipes leave it out too.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import AVERAGES, REWARD, Loss, Method, Option, Regime, View
from workbench.distill.routing import group_advantage
from workbench.types import RouteBatch, Routing

RAISED, LOWERED, EVEN = range(3)


@dataclass(frozen=True)
class Options:
    average: Annotated[str, Option("mean over a sequence first, or over all positions", choices=AVERAGES)] = "sequence"


def build(options: Options) -> Method:
    losses = (Loss(REWARD, Divergence("policy_gradient")),)
    return Method(
        name="grpo",
        views={"student": View("student", "plain", learns=True)},
        regimes={
            "RAISED": Regime(losses, "better than its question's other answers: raised"),
            "LOWERED": Regime(losses, "worse than them: lowered"),
            "EVEN": Regime((), "as good as all others, or not graded: no supervision"),
        },
        route=route,
        average=options.average,
        min_generations=2,
    )


def route(batch: RouteBatch) -> Routing:
    """Every token as its answer."""
    advantage = group_advantage(batch.rollouts).to(batch.sequence.device)[batch.sequence]
    regime = torch.where(advantage > 0, RAISED, torch.where(advantage < 0, LOWERED, EVEN))
    return Routing(regime, torch.ones_like(advantage), advantage)
