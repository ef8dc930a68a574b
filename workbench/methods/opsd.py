"""OPSD: the student's frozen start, given the answer, is the teacher of the student without it.

Source: Self-Distilled Reasoner, arXiv 2601.18734.
1. The student answers the plain prompt.
2. Its frozen start scores the same tokens, given `privilege`.
3. Every token: JSD, forward or reverse KL to it.
Differs: the paper gives the whole reference solution (privilege=reference); the default here is the final answer.
"""

from dataclasses import dataclass
from typing import Annotated

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere


@dataclass(frozen=True)
class Options:
    privilege: Annotated[str, Option("context of the self-teacher")] = "answer"
    divergence: Annotated[str, Option("divergence", choices=KINDS[1:4])] = "jensen_shannon"
    self_policy: Annotated[str, Option("weights of the self-teacher", choices=("student@start", "student@ema"))] = (
        "student@start"
    )
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    loss = Loss("self", Divergence(options.divergence))
    return Method(
        name="opsd",
        views={
            "student": View("student", "plain", learns=True),
            "self": View(options.self_policy, options.privilege),
        },
        regimes={"ALL": Regime((loss,), "every token: privileged student")},
        route=everywhere,
        ema_rate=options.ema_rate,
    )
