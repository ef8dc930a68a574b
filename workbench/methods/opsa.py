"""OPSA control: no teacher. Lowers the probability of the student's least likely sampled tokens.

Source: "Does OPD really distill?", arXiv 2608.31046; written from notes. A gain that this control also reaches does not
show that a teacher taught anything.
1. The student answers the plain prompt.
2. The lowest `fraction` of sampled tokens by log-prob get advantage -1/2 - (H - Hmin) / (2 (Hmax - Hmin)), H the
   student's entropy there, Hmin and Hmax over these tokens.
3. Loss: minus advantage times log-prob. Other tokens have none.
Not specified by the notes, chosen here: the fraction is of the batch and not of each answer; the loss is a mean over
all tokens of each answer, then over answers.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import REWARD, Loss, Method, Option, Regime, View
from workbench.distill.routing import below_quantile
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    fraction: Annotated[
        float, Option("fraction of positions, from the lowest log-prob up, whose probability is lowered", low=0, high=1)
    ] = 0.2


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        student = batch.scores["student"]
        low = below_quantile(student.logprob, 1.0 - options.fraction)
        entropy = student.entropy[low]
        spread = (entropy.max() - entropy.min()).clamp(min=1e-6)
        advantage = torch.zeros_like(student.logprob)
        advantage[low] = -0.5 - (entropy - entropy.min()) / (2 * spread)
        return Routing(
            regime=(~low).long(),
            weight=torch.ones_like(advantage),
            advantage=advantage,
            thresholds={"logprob": float(student.logprob[low].max())},
        )

    return Method(
        name="opsa",
        views={"student": View("student", "plain", learns=True)},
        regimes={
            "LOW": Regime((Loss(REWARD, Divergence("policy_gradient")),), "least likely tokens: lowered"),
            "REST": Regime((), "no supervision"),
        },
        route=route,
        router_views=("student",),
    )
