"""Random-mask control: on-policy distillation on a random share of the tokens.

Source: the random rows of DOPD, arXiv 2606.30626, Figure 4. A router whose gain is not above this one's, at the same
share, has not found which tokens matter: it has only supervised fewer of them.
1. The student answers the plain prompt; the teacher scores it, shown `privilege`.
2. A random `share` of the positions is pulled to the teacher; the rest has no supervision.
The loss stays divided by all positions, so that the pull on a kept token is that of opd; average_over=supervised
divides by the kept ones, as tip does.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from workbench.distill.divergences import KINDS, Divergence
from workbench.distill.method import AVERAGED, Loss, Method, Option, Regime, View
from workbench.distill.routing import draw_positions
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    share: Annotated[float, Option("share of positions that are supervised", low=0, high=1)] = 0.5
    privilege: Annotated[str, Option("context shown to the teacher")] = "plain"
    divergence: Annotated[str, Option("what is minimised", choices=KINDS[1:4])] = "reverse_kl"
    average_over: Annotated[str, Option("positions that the loss is divided by", choices=AVERAGED)] = "all"


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        kept = draw_positions(batch, options.share)
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
        average_over=options.average_over,
    )
