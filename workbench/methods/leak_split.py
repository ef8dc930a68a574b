"""Leak split: where the teacher knows a token only from the evidence, cover what it might have been; elsewhere, imitate.

Source: this project; what it showed is in docs/LOG.md and docs/studies/main.md. No paper.
1. The student answers the plain prompt. The teacher reads the answer twice: shown the evidence, and shown nothing more.
2. Leak of a token = |log t(y|x,p) - log t(y|x)|: same weights, other information (the teacher's information gap, which
   DOPD never looks at).
3. GROUNDED: at most the batch's mean leak (or `limit`). Pulled to the privileged teacher by `grounded`.
4. LEAKED: more. Pulled by `leaked` divergence. Averaged over what the evidence might have shown, forward KL has its optimum
   at the mixture of the privileged teachers, reverse KL at their normalised geometric mean, on tokens none would say.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.divergences import Divergence
from workbench.method import Loss, Method, Option, Regime, View
from workbench.routers import below_quantile, trimmed_mean
from workbench.types import RouteBatch, Routing

GROUNDED, LEAKED = range(2)
KINDS = ("reverse_kl", "jensen_shannon", "forward_kl")


@dataclass(frozen=True)
class Options:
    privilege: Annotated[str, Option("context of the teacher that supervises")] = "crop"
    grounded: Annotated[str, Option("divergence where the evidence changes little", choices=KINDS)] = "reverse_kl"
    leaked: Annotated[str, Option("divergence where the evidence changes much", choices=KINDS)] = "forward_kl"
    leaked_weight: Annotated[float, Option("weight of leaked tokens", low=0)] = 1.0
    limit: Annotated[float | None, Option("leak above which a token is leaked; null = the batch's mean", unit="nats", low=0)] = None  # fmt: skip
    trim: Annotated[float, Option("share of the largest leaks left out of the mean", low=0, high=0.5)] = 0.05
    average: Annotated[str, Option("mean over a sequence first, or over all positions", choices=("sequence", "position"))] = "sequence"  # fmt: skip


def build(options: Options) -> Method:
    grounded, leaked = Divergence(options.grounded), Divergence(options.leaked)
    return Method(
        name="leak_split",
        views={
            "student": View("student", "plain", learns=True),
            "unprivileged": View("teacher", "plain"),
            "teacher": View("teacher", options.privilege),
        },
        regimes={
            "GROUNDED": Regime((Loss("teacher", grounded),), "evidence changes little: privileged teacher"),
            "LEAKED": Regime((Loss("teacher", leaked, options.leaked_weight),), "evidence decides: its mixture"),
        },
        route=lambda batch: route(batch, options),
        reads=("unprivileged", "teacher"),
        average=options.average,
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    """By the size of the teacher's information gap."""
    leak = (batch.scores["teacher"].logprob - batch.scores["unprivileged"].logprob).abs()
    limit = options.limit
    if limit is None:
        limit = float(trimmed_mean(leak, below_quantile(leak, options.trim)))
    regime = torch.where(leak > limit, LEAKED, GROUNDED)
    return Routing(regime, torch.ones_like(leak), thresholds={"leak": limit})
