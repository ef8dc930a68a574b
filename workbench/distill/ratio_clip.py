"""Truncated importance sampling: learn from answers of slightly older weights, or of another engine.

Each token's loss counts min(p_now / p_when_sampled, clip) times, without gradient. For a loss whose target is a reward
this is the importance-weighted gradient of the token, truncated so that its variance is bounded; earlier tokens of the
answer are not corrected. For a divergence over the vocabulary, which needs no sampled token, it only makes tokens count
less that the student would hardly sample now.

Source: truncated importance sampling, Ionides 2008; for engines whose log-probs differ from the trainer's: Yao et al.,
"Your efficient RL framework secretly brings you off-policy RL training", 2025 (clip 2).
"""

from dataclasses import replace

from workbench.distill.method import Method
from workbench.distill.routing import sampler_ratio
from workbench.errors import ConfigError
from workbench.types import RouteBatch, Routing


def clip_ratio(method: Method, clip: float) -> Method:
    """The method with each token's weight times its importance ratio, at most `clip`; 0 = unchanged.

    The rule then needs the learner's scores, which costs one more forward pass with several micro-batches.
    Raises: ConfigError if the method weighs tokens by the ratio itself, or for a limit that every token exceeds.
    """
    if clip == 0:
        return method
    if clip < 1:
        raise ConfigError(
            f"sampling.ratio_clip={clip:g} would make every token count less, since ratios are about 1. Expected 0 "
            "(off) or at least 1; 2 is usual."
        )
    if method.uses_ratio:
        raise ConfigError(
            f"sampling.ratio_clip={clip:g} would weigh tokens by their importance ratio twice, since method "
            f"{method.name} does so itself. Set sampling.ratio_clip=0; the method's own options bound the ratio."
        )
    route, learner = method.route, method.learner_view

    def route_clipped(batch: RouteBatch) -> Routing:
        routing = route(batch)
        weight = routing.weight * sampler_ratio(batch).clamp(max=clip)
        return replace(routing, weight=weight, thresholds={**routing.thresholds, "ratio_clip": clip})

    views = tuple(name for name in method.views if name in (*method.router_views, learner))
    return replace(method, route=route_clipped, router_views=views)
