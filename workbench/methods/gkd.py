"""GKD: generalized Jensen-Shannon divergence on a mixture of dataset sequences and student samples.

Source: Agarwal et al., arXiv 2306.13649, Algorithm 1 and equation 1.
1. A fraction of the answers are the data's reference answers; the student samples the others.
2. The teacher scores all of them under the plain prompt.
3. Every token: beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.
Differs: Algorithm 1 draws once per step whether the whole batch comes from the data. Here each answer is drawn
separately, so a step and even a question can mix both; the expectation is the same. Other tools turn the ends of beta
into full KLs, a thousandfold jump; here they are options of their own, divergence=forward_kl and reverse_kl.
"""

from dataclasses import dataclass
from typing import Annotated

from workbench.distill.divergences import Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere


@dataclass(frozen=True)
class Options:
    dataset_fraction: Annotated[
        float, Option("fraction of sequences that are the data's reference answers", low=0, high=1)
    ] = 0.5
    divergence: Annotated[str, Option("divergence", choices=("generalized_jsd", "forward_kl", "reverse_kl"))] = (
        "generalized_jsd"
    )
    beta: Annotated[float, Option("weight of the teacher in the mixture, strictly between 0 and 1", low=0, high=1)] = (
        0.5
    )
    privilege: Annotated[str, Option("context of the teacher")] = "plain"


def build(options: Options) -> Method:
    beta = options.beta if options.divergence == "generalized_jsd" else None
    return Method(
        name="gkd",
        views={
            "student": View("student", "plain", learns=True),
            "teacher": View("teacher", options.privilege),
        },
        regimes={"ALL": Regime((Loss("teacher", Divergence(options.divergence, beta=beta)),), "every token: teacher")},
        route=everywhere,
        loss_aggregation="token_mean",
        dataset_fraction=options.dataset_fraction,
    )
