"""ExOPD: on-policy distillation that extrapolates beyond the teacher, along the line from a reference to it.

Source: G-OPD, arXiv 2602.12125, and its code (RUCBM/G-OPD).
1. The student s answers the plain prompt; teacher t (given `privilege`) and reference r (given the plain prompt) score
   its tokens.
2. Advantage of a token y: A = strength (log t(y) - log r(y)) - (log s(y) - log r(y)).
3. Loss: minus A times log s(y); no gradient through A.
Fixed point: s proportional to r^(1 - strength) t^strength. Strength 1 is opd with support=sampled (r cancels), 0 stays
at the reference, above 1 passes the teacher; far above 1 collapses (arXiv 2605.08737).
Reference: the student's start, or teacher:reference, the teacher before its own training (models.teachers.reference).
Differs: no importance weights (the paper clips them at 5). They are 1, because one update follows each batch.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from workbench.distill.divergences import Divergence
from workbench.distill.method import AGGREGATIONS, REWARD, Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    strength: Annotated[float, Option("how far from reference to teacher (the paper's lambda); 1 = opd", low=0)] = 1.25
    reference: Annotated[str, Option("policy at strength 0", choices=("student@start", "teacher:reference"))] = (
        "student@start"
    )
    privilege: Annotated[str, Option("context of the teacher")] = "plain"
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, or over all positions", choices=AGGREGATIONS)
    ] = "token_mean"


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        student, teacher, reference = (batch.scores[name].logprob for name in ("student", "teacher", "reference"))
        advantage = options.strength * (teacher - reference) - (student - reference)
        return replace(everywhere(batch), advantage=advantage)

    loss = Loss(REWARD, Divergence("policy_gradient"))
    return Method(
        name="exopd",
        views={
            "student": View("student", "plain", learns=True),
            "reference": View(options.reference, "plain"),
            "teacher": View("teacher", options.privilege),
        },
        regimes={"ALL": Regime((loss,), "every token: by its advantage")},
        route=route,
        router_views=("student", "reference", "teacher"),
        loss_aggregation=options.loss_aggregation,
    )
