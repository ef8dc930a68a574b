"""d-OPSD: a masked diffusion student is taught by its frozen start, which is shown a part of the student's own future.

Source: arXiv 2606.18195, section 3 and the official code.
1. The student writes block by block; a position is (denoising step, committed token).
2. Its frozen start reads the same canvases, in which a random share of the still masked positions of LATER blocks is
   filled from the finished answer, drawn anew for every step.
3. At the positions that a step committed: reverse KL to it over its 20 most likely entries, each entry's part at most
   0.05.
4. Only right answers count. The last block, and what is committed after the end, has no future and no loss.
Differs: the paper picks as many positions as the step committed by the TEACHER's confidence (81.0 on GSM8K; by the
student's 78.6, its ablation and the choice here, where a position is a token that was written); it resamples up to
eight times until an answer is right (here: num_generations, all of which count); it takes several optimiser steps per
answer (here: one). The loss is a mean over an answer's positions, then over answers; the paper takes the mean of a
step's positions and then of steps (the same where every step commits as many), its code the sum of a step's positions
over the number of steps. The paper writes of the whole vocabulary: its code, and top_k here, compare 20 entries,
renormalised (top_k=0 = all). Wrong answers count as zeros in the mean, as in the code; so do positions without a
future, whose states the code leaves out of its mean (their share: regime LAST). `source=tokens` is its control: the
student's own right answers as targets, every token in its own state.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import Divergence
from workbench.distill.method import TOKENS, Loss, Method, Option, Regime, View
from workbench.types import Rollout, RouteBatch, Routing

FUTURE, LAST, WRONG = range(3)


@dataclass(frozen=True)
class Options:
    context: Annotated[str, Option("what the student is shown, and the self-teacher beside the future")] = "plain"
    share: Annotated[float, Option("share of later blocks that the self-teacher is shown", low=0, high=1)] = 0.25
    source: Annotated[
        str, Option("what right answers are pulled to: the self-teacher, or their own tokens", choices=("self", TOKENS))
    ] = "self"
    divergence: Annotated[str, Option("what is minimised", choices=("reverse_kl", "forward_kl"))] = "reverse_kl"
    top_k: Annotated[int, Option("entries of the self-teacher's distribution that are compared; 0 = all", low=0)] = 20
    clip: Annotated[float, Option("most that one entry adds to a divergence; 0 = no clip", unit="nats", low=0)] = 0.05
    right_only: Annotated[bool, Option("answers that are not right have no supervision")] = True
    self_policy: Annotated[
        str, Option("weights of the self-teacher", choices=("student@start", "student@ema", "student"))
    ] = "student@start"
    ema_rate: Annotated[float, Option("share of the student mixed into student@ema each step", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    support = (
        {"support": "top_k", "top_k": options.top_k, "of": "target", "tail": "renormalise"} if options.top_k else {}
    )
    to_self = Loss("self", Divergence(options.divergence, clip=options.clip, **support))
    loss = to_self if options.source == "self" else Loss(TOKENS, Divergence("nll"))
    future = f"future:{options.share:g}"
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
    """By the answer's reward, then by whether anything was still to come at a token's step."""
    regime = [_regime(rollout, at, options) for rollout in batch.rollouts for at in range(len(rollout.ids))]
    regime = torch.tensor(regime, dtype=torch.long, device=batch.sequence.device)
    return Routing(regime, torch.ones(regime.numel(), device=regime.device))


def _regime(rollout: Rollout, at: int, options: Options) -> int:
    if options.right_only and rollout.reward != 1.0:
        return WRONG
    order = rollout.denoising
    return FUTURE if order is not None and order.later(order.steps[at], rollout.finished) else LAST
