"""LM + KD: off-policy training on the data's own answers, by cross-entropy and by KL to a teacher at each token.

Source: "Strong Teacher Not Needed?", arXiv 2605.23857.
1. Sequences are the data's reference answers; nothing is sampled.
2. The teacher scores them, given `privilege`.
3. Every token: (1 - alpha) times minus its log-prob, plus alpha times the forward KL to the teacher.
alpha=0 is fine-tuning without a teacher, which is then not loaded; alpha=1 is pure distillation. The best alpha depends
on the teacher, so one fixed value can reverse a comparison of teachers.
Differs: the paper pre-trains on text; here training continues from a student that can answer. A guess: forward KL at
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
    privilege: Annotated[str, Option("context of the teacher")] = "plain"


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
        loss_aggregation="token_mean",
        dataset_fraction=1.0,
    )
