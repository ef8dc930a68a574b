"""MOPD: one teacher per domain; each answer is supervised by the teacher of its domain only.

Source: MiMo-V2-Flash, arXiv 2601.02780, and MOPD, arXiv 2606.30406; domain_mean: Open-MOPD, arXiv 2608.19098.
1. The student answers questions of all domains. models.teachers names the teacher of each domain; it scores only the
   answers of that domain.
2. Advantage of a token: A = log teacher(y) - log student(y), without gradient, optionally clipped, plus `outcome` times
   the group-normalized reward of its answer.
3. Ratio r of the current student to the sampling student. Inside the band the loss is -r A log student(y).
4. Outside the band the token is dropped, not clipped: no supervision.
5. objective=full: reverse KL over the vocabulary in place of A; bregman: over the teacher's top_k entries, with the
   correction - student + teacher, without which truncation itself would have a gradient.
6. Mean over each answer, or with loss_aggregation=domain_mean over each domain, so that long answers do not dominate.
Differs: the training weights sample the answers, so r is 1 up to rounding and the band drops nothing, unless answers
are older or another engine sampled them. Both sides of r are at temperature 1, so a fresh answer is inside the band for
any `sampling` options. The reports do not state the band (NeMo RL's here) nor the weight of the outcome (0 here).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.distill.divergences import Divergence
from workbench.distill.method import AGGREGATIONS, REWARD, Loss, Method, Option, Regime, View
from workbench.distill.routing import group_relative_advantage, sampler_ratio
from workbench.errors import ConfigError
from workbench.types import RouteBatch, Routing

KEPT, DROPPED = range(2)


@dataclass(frozen=True)
class Options:
    objective: Annotated[
        str, Option("reverse KL on the sampled token, all or top_k entries", choices=("sampled", "full", "bregman"))
    ] = "sampled"
    top_k: Annotated[int, Option("the teacher's entries that are compared when objective=bregman", low=1)] = 64
    ratio_low: Annotated[float, Option("tokens of a lower importance ratio are dropped", low=0, high=1)] = 0.2
    ratio_high: Annotated[float, Option("tokens of a higher importance ratio are dropped; 0 = no band", low=0)] = 5.0
    advantage_clip: Annotated[
        float, Option("largest absolute log-ratio of a token to its teacher; 0 = not clipped", unit="nats", low=0)
    ] = 0.0
    outcome: Annotated[float, Option("weight of the group-normalized outcome in the advantage", low=0)] = 0.0
    privilege: Annotated[str, Option("context of the teachers")] = "plain"
    loss_aggregation: Annotated[str, Option("mean of the loss", choices=AGGREGATIONS)] = "sequence_mean"


def build(options: Options) -> Method:
    if 0 < options.ratio_high < 1:
        raise ConfigError(
            f"method.ratio_high={options.ratio_high:g} drops fresh answers, whose ratio is 1. Set it to 0 or at least "
            "1."
        )
    if options.advantage_clip and options.objective != "sampled":
        raise ConfigError(
            f"method.advantage_clip has no effect with method.objective={options.objective}, which has no sampled "
            "log-ratio. Set method.advantage_clip=0, or method.objective=sampled."
        )
    return Method(
        name="mopd",
        views={
            "student": View("student", "plain", learns=True),
            "teacher": View("teacher", options.privilege),
        },
        regimes={
            "KEPT": Regime(_losses(options), "ratio inside the band: its domain's teacher"),
            "DROPPED": Regime((), "ratio outside the band: no supervision"),
        },
        route=lambda batch: route(batch, options),
        router_views=("student", "teacher")
        if options.objective == "sampled"
        else ("student",)
        if options.ratio_high
        else (),
        loss_aggregation=options.loss_aggregation,
        min_generations=2 if options.outcome else 1,
        uses_ratio=options.ratio_high > 0,
    )


def _losses(options: Options) -> tuple[Loss, ...]:
    outcome = (Loss(REWARD, Divergence("policy_gradient")),) if options.outcome else ()
    if options.objective == "sampled":  # teacher and outcome are one advantage
        return (Loss(REWARD, Divergence("policy_gradient"), by="teacher"),)
    if options.objective == "full":
        return (Loss("teacher", Divergence("reverse_kl")), *outcome)
    return (
        Loss("teacher", Divergence("reverse_kl", "top_k", top_k=options.top_k, of="target", tail="bregman")),
        *outcome,
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    """Weight tokens inside the band by the ratio. Scores have no gradient, so neither has the advantage."""
    weight, regime = torch.ones(batch.num_positions, device=batch.sequence.device), torch.zeros_like(batch.sequence)
    thresholds = {}
    if options.ratio_high:
        weight = sampler_ratio(batch)
        regime = torch.where((weight >= options.ratio_low) & (weight <= options.ratio_high), KEPT, DROPPED)
        weight = torch.where(regime == KEPT, weight, 0.0)
        thresholds = {"ratio_low": options.ratio_low, "ratio_high": options.ratio_high}
    return Routing(regime, weight, advantages(batch, options), thresholds)


def advantages(batch: RouteBatch, options: Options) -> Float[Tensor, " N"] | None:
    """Advantage of every position: the teacher's log-ratio (objective=sampled) plus the outcome of its answer."""
    if options.objective != "sampled" and not options.outcome:
        return None
    advantage = torch.zeros(batch.num_positions, device=batch.sequence.device)
    if options.objective == "sampled":
        advantage = batch.scores["teacher"].logprob - batch.scores["student"].logprob
        if options.advantage_clip:
            advantage = advantage.clamp(-options.advantage_clip, options.advantage_clip)
    if options.outcome:
        advantage = (
            advantage + options.outcome * group_relative_advantage(batch.rollouts).to(advantage.device)[batch.sequence]
        )
    return advantage
