"""On-policy distillation: the student samples, the teacher supervises every token by reverse KL.

Source: Agarwal et al., GKD, arXiv 2306.13649; the "vanilla OPD" row of DOPD, arXiv 2606.30626, Table 2.
1. The student answers the plain prompt.
2. The teacher scores the same tokens, given `privilege`.
3. Every token: KL from the student to the teacher.
With privilege=plain this is vanilla OPD. With any other it is the "naive privileged" control: uniform imitation of a
teacher whose evidence the student never gets (arXiv 2606.30626, Figure 3).
"""

from dataclasses import dataclass
from typing import Annotated

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import AGGREGATIONS, Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere


@dataclass(frozen=True)
class Options:
    privilege: Annotated[str, Option("context of the teacher; plain = vanilla OPD")] = "plain"
    divergence: Annotated[str, Option("divergence, from learner to teacher", choices=KINDS[1:4])] = "reverse_kl"
    support: Annotated[str, Option("vocabulary entries compared", choices=("full", "top_k", "sampled"))] = "full"
    top_k: Annotated[int, Option("entries compared when support=top_k", low=1)] = 128
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, over all positions, or over a domain first", choices=AGGREGATIONS)
    ] = "sequence_mean"


def build(options: Options) -> Method:
    top_k = options.top_k if options.support == "top_k" else 0
    divergence = Divergence(options.divergence, options.support, top_k=top_k)
    return Method(
        name="opd",
        views={
            "student": View("student", "plain", learns=True),
            "teacher": View("teacher", options.privilege),
        },
        regimes={"ALL": Regime((Loss("teacher", divergence),), "every token: teacher")},
        route=everywhere,
        loss_aggregation=options.loss_aggregation,
    )
