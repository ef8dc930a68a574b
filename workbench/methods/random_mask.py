"""Random-mask control: on-policy distillation on a random fraction of the tokens.

Source: the random rows of DOPD, arXiv 2606.30626, Figure 4. A router that does not beat this control at the same
fraction only supervised fewer tokens; it did not find the ones that matter.
1. The student answers the plain prompt; the teacher scores it, given `privilege`.
2. A random `fraction` of the positions has the KL to the teacher; the others have no supervision.
The loss is still divided by all positions, so a kept token has the same gradient as in opd; normalize_by=supervised
divides by the kept ones, as tip does.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import NORMALIZERS, Loss, Method, Option, Regime, View
from workbench.distill.routing import draw_positions
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    fraction: Annotated[float, Option("fraction of positions with supervision", low=0, high=1)] = 0.5
    privilege: Annotated[str, Option("context of the teacher")] = "plain"
    divergence: Annotated[str, Option("divergence", choices=KINDS[1:4])] = "reverse_kl"
    normalize_by: Annotated[str, Option("positions that the loss is divided by", choices=NORMALIZERS)] = "all"


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        kept = draw_positions(batch, options.fraction)
        return Routing(regime=(~kept).long(), weight=torch.ones(batch.num_positions, device=kept.device))

    loss = Loss("teacher", Divergence(options.divergence))
    return Method(
        name="random_mask",
        views={
            "student": View("student", "plain", learns=True),
            "teacher": View("teacher", options.privilege),
        },
        regimes={"KEPT": Regime((loss,), "drawn: teacher"), "REST": Regime((), "not drawn: no supervision")},
        route=route,
        normalize_by=options.normalize_by,
    )
