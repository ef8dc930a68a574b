"""d-OPSD: train a masked diffusion student on its frozen start, whose canvas shows part of the student's own future.

Source: arXiv 2606.18195, section 3 and the official code.
1. The student generates block by block; a position is (denoising step, committed token).
2. The frozen start scores the same canvases. There a random fraction of the masked positions of LATER blocks is filled
   from the finished answer, drawn anew for every step.
3. Loss at the positions that a step committed: reverse KL over the frozen start's 20 most likely entries, at most 0.05
   for each entry.
4. Only right answers have a loss. The last block, and all positions after the end token, have no future and no loss.
Differs: the paper selects as many positions as the step committed by the TEACHER's confidence (GSM8K 81.0; by the
student's 78.6, its ablation and the choice here). It resamples up to eight times until an answer is right; here all
num_generations answers count. It takes several optimizer steps per answer; here one. The loss is a mean over an
answer's positions, then over answers. The paper averages over the positions of a step, then over steps (equal if every
step commits as many); its code sums over a step's positions and divides by the number of steps. The paper states the
whole vocabulary; its code, and top_k here, use 20 renormalized entries (top_k=0 = all). Wrong answers count as zeros in
the mean, as in the code; so do positions without a future, which the code leaves out (regime LAST has their share).
Control: `target=tokens` trains on the student's own right answers, each token in its own state.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import TOKENS, Loss, Method, Option, Regime, View
from workbench.types import Rollout, RouteBatch, Routing

FUTURE, LAST, WRONG = range(3)


@dataclass(frozen=True)
class Options:
    context: Annotated[str, Option("context of the student, and of the self-teacher beside the future")] = "plain"
    fraction: Annotated[float, Option("fraction of later blocks that the self-teacher sees", low=0, high=1)] = 0.25
    target: Annotated[
        str, Option("target of right answers: the self-teacher, or their own tokens", choices=("self", TOKENS))
    ] = "self"
    divergence: Annotated[str, Option("divergence", choices=("reverse_kl", "forward_kl"))] = "reverse_kl"
    top_k: Annotated[int, Option("entries of the self-teacher's distribution that are compared; 0 = all", low=0)] = 20
    clip: Annotated[
        float, Option("largest contribution of one entry to a divergence; 0 = no clip", unit="nats", low=0)
    ] = 0.05
    right_only: Annotated[bool, Option("only right answers have supervision")] = True
    self_policy: Annotated[
        str, Option("weights of the self-teacher", choices=("student@start", "student@ema", "student"))
    ] = "student@start"
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    support: dict[str, Any] = (
        {"support": "top_k", "top_k": options.top_k, "of": "target", "tail": "renormalize"} if options.top_k else {}
    )
    to_self = Loss("self", Divergence(options.divergence, clip=options.clip, **support))
    loss = to_self if options.target == "self" else Loss(TOKENS, Divergence("nll"))
    future = f"future:{options.fraction:g}"
    return Method(
        name="d_opsd",
        views={
            "student": View("student", options.context, learns=True),
            "self": View(options.self_policy, future if options.context == "plain" else f"{options.context}+{future}"),
        },
        regimes={
            "FUTURE": Regime((loss,), "right answer, blocks to come: self that sees a part of them"),
            "LAST": Regime((), "right answer, no block to come: no supervision"),
            "WRONG": Regime((), "answer not right: no supervision"),
        },
        route=lambda batch: route(batch, options),
        needs=("answer",) if options.right_only else (),
        ema_rate=options.ema_rate,
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    """Route by the reward of the answer, then by whether later blocks were still masked at the token's step."""
    regime = [_regime(rollout, at, options) for rollout in batch.rollouts for at in range(len(rollout.ids))]
    regime = torch.tensor(regime, dtype=torch.long, device=batch.sequence.device)
    return Routing(regime, torch.ones(regime.numel(), device=regime.device))


def _regime(rollout: Rollout, at: int, options: Options) -> int:
    if options.right_only and rollout.reward != 1.0:
        return WRONG
    order = rollout.denoising
    return FUTURE if order is not None and order.later(order.steps[at], rollout.finished) else LAST
