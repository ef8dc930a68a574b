"""DOPD: route each token to the privileged teacher or to the privileged student, by their advantage gap.

Source: Dual On-policy Distillation, arXiv 2606.30626, sections 3.1 and 3.2, equations 1 to 11.
1. The student s answers the plain prompt x. Teacher t and student s' score the same tokens, both given x and p.
2. Gap A = |log t(y) - log s'(y)|; A, t(y) and s'(y) are compared with their means over the batch.
3. A low:  LH if t(y) + s'(y) is high: KL to the teacher, light;  else LL: KL to s', weak.
4. A high: HT if t(y) >= s'(y): full JSD to the teacher;          else HS: KL to s', light.
5. Mean over a sequence's positions, then over sequences. No gradient through t, s', A or the masks.
Not specified by the paper, options here with the default first: what the means trim (gaps above the 0.95 quantile of
the batch over all ranks), whether trimmed tokens keep their loss (yes), normalization (none), scope of the means (the
whole batch), whose top-k (teacher in LH, student in LL and HS), the tail (one bucket), the average, and the weights of
s' (the live student, as in the paper; with one update per batch, current and sampling weights are equal). At high
learning rates a live s' can reach an absorbing state (HS drops the teacher); student@ema and student@start avoid it.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.distill.divergences import TAILS, Divergence
from workbench.distill.method import Loss, Method, Option, Regime, View
from workbench.distill.routing import below_quantile, trimmed_mean
from workbench.types import RouteBatch, Routing

# low gap and High or Low probability; high gap and the Teacher or the Self with the higher probability
LH, LL, HT, HS = range(4)
SELF_POLICIES = ("student", "student@ema", "student@start")


@dataclass(frozen=True)
class Options:
    privilege: Annotated[
        str, Option("context of teacher and privileged student; plain = the control without privilege")
    ] = "boxes"
    self_policy: Annotated[str, Option("weights of the privileged student", choices=SELF_POLICIES)] = "student"
    beta_light: Annotated[float, Option("weight of LH and HS", low=0)] = 0.6
    beta_weak: Annotated[float, Option("weight of LL", low=0)] = 0.3
    top_k: Annotated[int, Option("entries compared in LH, LL and HS", low=1)] = 128
    tail: Annotated[str, Option("treatment of the other entries", choices=TAILS)] = "bucket"
    trim: Annotated[float, Option("fraction of outliers left out of the means; 0 = none", low=0, high=0.5)] = 0.05
    trim_target: Annotated[str, Option("trimmed by its largest values", choices=("gap", "gap+probability"))] = "gap"
    trim_drops_loss: Annotated[bool, Option("tokens with a trimmed gap lose their supervision")] = False
    normalize: Annotated[
        str, Option("normalization within the batch before comparing", choices=("none", "zscore", "minmax"))
    ] = "none"
    stat_scope: Annotated[str, Option("positions that the means are taken over", choices=("batch", "micro_batch"))] = (
        "batch"
    )
    loss_aggregation: Annotated[
        str, Option("mean over a sequence first, or over all positions", choices=("sequence_mean", "token_mean"))
    ] = "sequence_mean"
    ema_rate: Annotated[float, Option("weight of the student in each EMA update", low=1e-6, high=1)] = 0.05


def build(options: Options) -> Method:
    def top_k(of: str) -> Divergence:
        return Divergence("reverse_kl", "top_k", top_k=options.top_k, of=of, tail=options.tail)

    teacher_kl, self_kl = top_k("target"), top_k("learner")
    light, weak = options.beta_light, options.beta_weak
    return Method(
        name="dopd",
        views={
            "student": View("student", "plain", learns=True),
            "self": View(options.self_policy, options.privilege),
            "teacher": View("teacher", options.privilege),
        },
        regimes={
            "LH": Regime((Loss("teacher", teacher_kl, light),), "low gap, both sure: teacher, light"),
            "LL": Regime((Loss("self", self_kl, weak),), "low gap, unsure: privileged student, weak"),
            "HT": Regime((Loss("teacher", Divergence("jensen_shannon")),), "high gap, teacher leads: teacher, strong"),
            "HS": Regime(
                (Loss("self", self_kl, light),), "high gap, privileged student leads: privileged student, light"
            ),
        },
        route=lambda batch: route(batch, options),
        router_views=("self", "teacher"),
        loss_aggregation=options.loss_aggregation,
        ema_rate=options.ema_rate,
    )


def route(batch: RouteBatch, options: Options) -> Routing:
    """Assign the four regimes by the batch means (section 3.2.3)."""
    log_t, log_s = batch.scores["teacher"].logprob, batch.scores["self"].logprob
    scope = batch.micro_batch if options.stat_scope == "micro_batch" else torch.zeros_like(batch.micro_batch)
    regime = torch.empty_like(batch.sequence)
    weight = torch.ones_like(log_t)
    thresholds = {}
    for scope_idx in scope.unique().tolist():
        inside = scope == scope_idx
        gap, prob_t, prob_s = (log_t - log_s)[inside].abs(), log_t[inside].exp(), log_s[inside].exp()
        leads = prob_t >= prob_s  # compares raw probabilities, before any normalization
        kept = below_quantile(gap, options.trim)
        gap, mean_gap = _with_mean(gap, kept, options)
        own_kept = options.trim_target == "gap+probability"
        prob_t, mean_t = _with_mean(prob_t, below_quantile(prob_t, options.trim) if own_kept else kept, options)
        prob_s, mean_s = _with_mean(prob_s, below_quantile(prob_s, options.trim) if own_kept else kept, options)
        low, sure = gap < mean_gap, prob_s + prob_t >= mean_s + mean_t
        regime[inside] = torch.where(low, torch.where(sure, LH, LL), torch.where(leads, HT, HS))
        if options.trim_drops_loss:
            weight[inside] = kept.to(weight.dtype)
        suffix = "" if options.stat_scope == "batch" else f"_{scope_idx}"
        thresholds |= {f"gap{suffix}": float(mean_gap), f"probability_sum{suffix}": float(mean_s + mean_t)}
    return Routing(regime, weight, thresholds=thresholds)


def _with_mean(values: Float[Tensor, " M"], kept: Bool[Tensor, " M"], options: Options) -> tuple[Tensor, Tensor]:
    """Normalize the values as options.normalize says; return them and the mean of the kept ones on that scale."""
    if options.normalize == "zscore":
        values = (values - values[kept].mean()) / values[kept].std(unbiased=False).clamp(min=1e-6)
    elif options.normalize == "minmax":
        low, high = values[kept].min(), values[kept].max()
        values = (values - low) / (high - low).clamp(min=1e-6)
    return values, trimmed_mean(values, kept)
