"""SDFT: the student, given a demonstration, is the teacher of the student without it, on the student's own answers.

Source: Self-Distillation Fine-Tuning, arXiv 2601.19897, as trl.experimental.sdft documents it. Its aim is to learn from
demonstrations without forgetting; direct fine-tuning on them is lm_kd with alpha=0.
1. The student answers the plain prompt.
2. A copy of it, frozen at the start, scores the same tokens, given the demonstration (`privilege`).
3. Every token: reverse KL over the student's `top_k` most likely entries and one entry for the rest.
Differs from opsd only in the context and the divergence. No importance weights: one update follows each batch. A guess:
top_k=100. Other options are the documented ones: a live or an averaged copy, forward KL or JSD, renormalization.
"""

from dataclasses import dataclass
from typing import Annotated

from workbench.distill.divergences import KINDS, TAILS, Divergence
from workbench.distill.method import AGGREGATIONS, Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere


@dataclass(frozen=True)
class Options:
    privilege: Annotated[str, Option("context of the self-teacher: reference is the whole worked answer")] = "reference"
    self_policy: Annotated[
        str, Option("weights of the self-teacher", choices=("student@start", "student@ema", "student"))
    ] = "student@start"
    divergence: Annotated[str, Option("divergence", choices=KINDS[1:4])] = "reverse_kl"
    top_k: Annotated[int, Option("most likely entries of the student that are compared; 0 = all", low=0)] = 100
    tail: Annotated[str, Option("treatment of the other entries", choices=TAILS[:2])] = "bucket"
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, or over all positions", choices=AGGREGATIONS)
    ] = "token_mean"
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    support = "top_k" if options.top_k else "full"
    divergence = Divergence(options.divergence, support, top_k=options.top_k, of="learner", tail=options.tail)
    return Method(
        name="sdft",
        views={
            "student": View("student", "plain", learns=True),
            "self": View(options.self_policy, options.privilege),
        },
        regimes={"ALL": Regime((Loss("self", divergence),), "every token: self-teacher given the demonstration")},
        route=everywhere,
        loss_aggregation=options.loss_aggregation,
        ema_rate=options.ema_rate,
    )
