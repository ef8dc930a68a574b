"""Vision-OPD: the student's moving average, given the evidence crop, teaches the student with the whole image.

Source: arXiv 2605.18740, section 3 and the official code.
1. The student answers about the whole image (`student_context`: plain, or marked: the box drawn in red, as in the
   paper).
2. Its moving average scores the same tokens, given the image and the crop (`privilege`).
3. Every token: Jensen-Shannon over the student's 100 most likely entries and one entry for the rest.
4. Weight of a token: min(p_now / p_when_sampled, ratio_clip), without gradient; mean over all positions.
Differs: the paper's teacher gets the crop instead of the image (privilege=crop_only; here it costs 32 points for models
that have seldom seen a crop alone). The deployed student gets plain prompts, so student_context=plain is the default;
the paper trains on marked ones with an instruction to look inside the red box, which no context here adds. A crop of
the data is used unchanged; one cut from a box is enlarged twofold, as in the paper. No rollout correction for an
inference engine. The ratio is at temperature 1, as the paper samples, for any `sampling` options.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from workbench.distill.divergences import Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.distill.routing import everywhere, sampler_ratio
from workbench.types import RouteBatch, Routing


@dataclass(frozen=True)
class Options:
    privilege: Annotated[
        str, Option("context of the self-teacher; crop_only: the crop instead of the image, as in the paper")
    ] = "crop"
    student_context: Annotated[str, Option("context of the student while training", choices=("plain", "marked"))] = (
        "plain"
    )
    top_k: Annotated[int, Option("entries of the student's distribution that are compared", low=1)] = 100
    ratio_clip: Annotated[float, Option("largest importance weight of a token; 0 = weights off", low=0)] = 2.0
    self_policy: Annotated[
        str, Option("weights of the self-teacher", choices=("student@ema", "student@start", "student"))
    ] = "student@ema"
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    def route(batch: RouteBatch) -> Routing:
        routing = everywhere(batch)
        weight = sampler_ratio(batch).clamp(max=options.ratio_clip)
        return replace(routing, weight=weight, thresholds={"ratio_clip": options.ratio_clip})

    divergence = Divergence("jensen_shannon", "top_k", top_k=options.top_k, of="learner", tail="bucket")
    return Method(
        name="vision_opd",
        views={
            "student": View("student", options.student_context, learns=True),
            "self": View(options.self_policy, options.privilege),
        },
        regimes={"ALL": Regime((Loss("self", divergence),), "every token: privileged student")},
        route=route if options.ratio_clip > 0 else everywhere,
        router_views=("student",) if options.ratio_clip > 0 else (),
        uses_ratio=options.ratio_clip > 0,
        loss_aggregation="token_mean",
        ema_rate=options.ema_rate,
    )
