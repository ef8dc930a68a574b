"""LM + KD: the data's own answers, learned by their tokens and by what a teacher says at each of them. Off-policy.

Source: "Strong Teacher Not Needed?", arXiv 2605.23857.
1. Sequences are the data's reference answers; nobody writes.
2. The teacher scores them, shown `privilege`.
3. Every token: (1 - alpha) times minus its log-prob, and alpha times the forward KL to the teacher.
alpha=0 is fine-tuning without a teacher, which is then not loaded; alpha=1 is pure distillation. The best alpha depends
on the teacher: a fixed one can turn a comparison of teachers round.
Differs: the paper pre-trains on text; here a student that can answer goes on with questions. A guess: forward KL at
temperature 1, averaged over all positions.
"""

from dataclasses import dataclass
from typing import Annotated

from workbench.distill.divergences import Divergence
from workbench.distill.method import TOKENS, Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere


@dataclass(frozen=True)
class Options:
    alpha: Annotated[float, Option("weight of the teacher; the data's tokens have the rest", low=0, high=1)] = 0.5
    privilege: Annotated[str, Option("context shown to the teacher")] = "plain"


def build(options: Options) -> Method:
    views, losses = {"student": View("student", "plain", learns=True)}, []
    if options.alpha < 1:
        losses.append(Loss(TOKENS, Divergence("nll"), 1 - options.alpha))
    if options.alpha > 0:
        views["teacher"] = View("teacher", options.privilege)
        losses.append(Loss("teacher", Divergence("forward_kl"), options.alpha))
    return Method(
        name="lm_kd",
        views=views,
        regimes={"ALL": Regime(tuple(losses), "every token: the data and the teacher")},
        route=everywhere,
        average="position",
        dataset_share=1.0,
    )
