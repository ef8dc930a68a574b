"""SDPO: the student's moving average scores a wrong answer again, given a right answer of the same group.

Source: arXiv 2601.20802; written from notes.
1. The student answers each question `sampling.num_generations` times; answers are graded.
2. A wrong answer gets the first right answer of its group as feedback.
3. TOLD: tokens of such an answer. JSD to the self-teacher, given the question and the feedback, over the student's 100
   most likely entries and one entry for the rest, times min(p_now / p_when_sampled, ratio_clip).
4. RIGHT (a right answer gets no feedback) and ALONE (no answer of the group is right): no loss.
Differs: the loss is divided by the tokens of all answers; tokens without supervision count as 0, so fewer TOLD answers
make a smaller step. The reference code divides by the TOLD tokens only: normalize_by=supervised. The ratio is at
temperature 1, as the paper samples, for any `sampling` options. Feedback of an environment is not used, only the grade.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import NORMALIZERS, Loss, Method, Option, Regime, View
from workbench.distill.routing import sampler_ratio
from workbench.types import Rollout, RouteBatch, Routing

TOLD, RIGHT, ALONE = range(3)


@dataclass(frozen=True)
class Options:
    top_k: Annotated[int, Option("entries of the student's distribution that are compared", low=1)] = 100
    normalize_by: Annotated[str, Option("positions that the loss is divided by", choices=NORMALIZERS)] = "all"
    ratio_clip: Annotated[float, Option("largest importance weight of a token", low=0.01)] = 2.0
    self_policy: Annotated[
        str, Option("weights of the self-teacher", choices=("student@ema", "student@start", "student"))
    ] = "student@ema"
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    divergence = Divergence("jensen_shannon", "top_k", top_k=options.top_k, of="learner", tail="bucket")
    return Method(
        name="sdpo",
        views={
            "student": View("student", "plain", learns=True),
            "self": View(options.self_policy, "feedback"),
        },
        regimes={
            "TOLD": Regime((Loss("self", divergence),), "wrong, a sibling is right: self-teacher given the sibling"),
            "RIGHT": Regime((), "right, or not graded: no supervision"),
            "ALONE": Regime((), "wrong, no sibling is right: no supervision"),
        },
        route=lambda batch: route(batch, options),
        router_views=("student",),
        uses_ratio=True,
        loss_aggregation="token_mean",
        normalize_by=options.normalize_by,
        needs=("answer",),
        min_generations=2,
        ema_rate=options.ema_rate,
        annotate=lambda rollouts, *_: show_siblings(rollouts),
    )


def show_siblings(rollouts: tuple[Rollout, ...]) -> tuple[Rollout, ...]:
    """Attach to each wrong answer the first right answer to its question, as `reference: ANSWER`.

    The built-in models know worked answers in this form.
    """
    right: dict[int, list[str]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.reward == 1.0:
            right[id(rollout.example)].append(rollout.text)
    return tuple(
        replace(rollout, feedback=f"reference: {right[id(rollout.example)][0]}")
        if rollout.reward == 0.0 and right[id(rollout.example)]
        else rollout
        for rollout in rollouts
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    kinds = [
        TOLD if rollout.feedback is not None else ALONE if rollout.reward == 0.0 else RIGHT
        for rollout in batch.rollouts
    ]
    regime = torch.tensor(kinds, device=batch.sequence.device)[batch.sequence]
    weight = sampler_ratio(batch).clamp(max=options.ratio_clip)
    return Routing(regime, weight, thresholds={"ratio_clip": options.ratio_clip})
