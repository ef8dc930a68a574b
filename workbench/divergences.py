"""Divergences between the learner and a target, per position, in nats and in fp32.

Every function takes logits (or log-probabilities: they are the same thing here) of shape (N, V), first the learner,
then the target, and returns (N). All are zero, with zero gradient, where learner and target are equal.

A `Divergence` adds the support, that is which vocabulary entries are compared:

    full          every entry
    top_k         the K most likely entries of the learner, of the target, or of both, and by `tail`:
        bucket        all other entries together form one more entry, on both sides (a true divergence of K + 1 entries)
        renormalise   both sides are divided by their mass on the K entries
        bregman       sum of p log(p/q) - p + q over the K entries (MOPD, arXiv 2606.30406, variant c)
      The naive sum over K entries is not offered: its gradient is not zero at equality (arXiv 2605.11182).
    sampled       the written token alone: value log p - log q, gradient through sg[log p - log q] * log p

Source of the formulas: Hinton 2015; GKD, arXiv 2306.13649, equation 1; DOPD, arXiv 2606.30626, equation 4.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import ConfigError, unknown

KINDS = ("nll", "forward_kl", "reverse_kl", "jensen_shannon", "generalized_jsd", "policy_gradient")
SUPPORTS = ("full", "top_k", "sampled")
TOP_K_OF = ("learner", "target", "union", "intersection")
TAILS = ("bucket", "renormalise", "bregman")


def forward_kl(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(target || learner): covers every mode of the target."""
    return _kl(target.float().log_softmax(-1), learner.float().log_softmax(-1))


def reverse_kl(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(learner || target): settles on modes of the target."""
    return _kl(learner.float().log_softmax(-1), target.float().log_softmax(-1))


def jensen_shannon(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Half KL(learner || m) plus half KL(target || m), m their mean. Symmetric, at most ln 2."""
    return generalized_jsd(learner, target, beta=0.5)


def generalized_jsd(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"], *, beta: float) -> Float[Tensor, " N"]:
    """beta KL(target || m) + (1 - beta) KL(learner || m), m = beta target + (1 - beta) learner.

    It vanishes as beta nears 0 or 1, where other tools jump to a full KL a thousand times larger. No jump here.

    Raises: ConfigError unless 0 < beta < 1.
    """
    check_beta(beta)
    # an entry without mass on either side must not make a NaN gradient: finite, and exp of it still 0
    learner_logp = learner.float().log_softmax(-1).clamp(min=-1e4)
    target_logp = target.float().log_softmax(-1).clamp(min=-1e4)
    mixture_logp = torch.logaddexp(target_logp + math.log(beta), learner_logp + math.log1p(-beta))
    return beta * _kl(target_logp, mixture_logp) + (1 - beta) * _kl(learner_logp, mixture_logp)


def check_beta(beta: float | None) -> None:
    """Raises ConfigError unless beta is inside (0, 1)."""
    if beta is None or not 0.0 < beta < 1.0:
        raise ConfigError(
            f"generalized_jsd needs a beta strictly between 0 and 1, got {beta}. "
            "Its ends are other divergences: choose forward_kl or reverse_kl instead."
        )


def _kl(first_logp: Tensor, second_logp: Tensor) -> Tensor:
    """KL(first || second) over the last axis; an entry with no mass in `first` adds nothing."""
    ratio = first_logp - second_logp
    ratio = ratio.masked_fill(first_logp == -torch.inf, 0.0)  # 0 * log(0 / x) is 0, and must not make a NaN gradient
    return (first_logp.exp() * ratio).sum(-1)


@dataclass(frozen=True)
class Divergence:
    """A divergence with its support; the field of a `Loss`. Options are checked when it is made.

    kind      one of KINDS. nll: minus the written token's log-prob; policy_gradient: minus advantage times log-prob
    support   full, top_k or sampled
    beta      generalized_jsd only
    top_k     number of entries K; `of`: whose most likely entries; `tail`: what becomes of the rest
    """

    kind: str
    support: str = "full"
    beta: float | None = None
    top_k: int = 0
    of: str = "learner"
    tail: str = "bucket"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("divergence", self.kind, KINDS),
            ("support", self.support, SUPPORTS),
            ("top-k support", self.of, TOP_K_OF),
            ("tail", self.tail, TAILS),
        ):
            if value not in known:
                raise ConfigError(unknown(what, value, known))
        if self.kind == "generalized_jsd":
            check_beta(self.beta)
        elif self.beta is not None:
            raise ConfigError(f"beta={self.beta} is read by generalized_jsd only, not by {self.kind}; remove it.")
        if (self.support == "top_k") != (self.top_k > 0):
            raise ConfigError(f"top_k={self.top_k} with support={self.support}: top_k needs K >= 1, the others none.")
        if self.support == "sampled" and self.kind != "reverse_kl":
            raise ConfigError(f"support=sampled is an estimate of reverse_kl only, not of {self.kind}.")
        if self.support == "top_k" and self.kind in ("nll", "policy_gradient"):
            raise ConfigError(f"{self.kind} reads the written token alone; top_k does not apply.")
        if self.tail == "bregman" and self.support == "top_k" and self.kind not in ("forward_kl", "reverse_kl"):
            raise ConfigError(f"tail=bregman is defined for forward_kl and reverse_kl, not for {self.kind}.")

    @property
    def label(self) -> str:
        """Short name for traces and legends, such as "reverse_kl top-128 of target, bucket"."""
        text = self.kind if self.beta is None else f"{self.kind} beta={self.beta:g}"
        if self.support == "top_k":
            return f"{text} top-{self.top_k} of {self.of}, {self.tail}"
        return text if self.support == "full" else f"{text} {self.support}"

    def __call__(
        self,
        learner: Float[Tensor, "N V"],
        target: Float[Tensor, "N V"] | None,
        token_ids: Int[Tensor, " N"],
        advantage: Float[Tensor, " N"] | None = None,
    ) -> Float[Tensor, " N"]:
        """Per-position loss in nats. nll and policy_gradient do not read `target`; only the latter reads `advantage`."""
        if self.kind in ("nll", "policy_gradient") or self.support == "sampled":
            learner_logp = _written(learner, token_ids)
            if self.kind == "nll":
                return -learner_logp
            if self.kind == "policy_gradient":
                return -advantage.float() * learner_logp
            ratio = learner_logp.detach() - _written(target, token_ids)
            # value: the ratio; gradient: ratio * grad log p. Differentiating the ratio itself would ignore the target.
            return ratio + ratio * (learner_logp - learner_logp.detach())
        if self.support == "full" or self.top_k >= learner.shape[-1]:
            return self._full(learner, target)
        return self._on_top_k(learner.float().log_softmax(-1), target.float().log_softmax(-1))

    def _full(self, learner: Tensor, target: Tensor) -> Tensor:
        if self.kind == "forward_kl":
            return forward_kl(learner, target)
        if self.kind == "reverse_kl":
            return reverse_kl(learner, target)
        return generalized_jsd(learner, target, beta=0.5 if self.beta is None else self.beta)

    def _on_top_k(self, learner_logp: Tensor, target_logp: Tensor) -> Tensor:
        ids, keep = self._top_k_ids(learner_logp.detach(), target_logp)
        learner_k, target_k = learner_logp.gather(-1, ids), target_logp.gather(-1, ids)
        if self.tail == "bregman":
            first, second = (learner_k, target_k) if self.kind == "reverse_kl" else (target_k, learner_k)
            terms = first.exp() * (first - second) - first.exp() + second.exp()
            return terms.masked_fill(~keep, 0.0).sum(-1)
        # Entries left out (of an intersection) get no mass on either side; finite, so that no gradient is NaN.
        learner_k, target_k = learner_k.masked_fill(~keep, -1e9), target_k.masked_fill(~keep, -1e9)
        if self.tail == "bucket":
            learner_k = torch.cat((learner_k, _rest_logp(learner_k)), -1)
            target_k = torch.cat((target_k, _rest_logp(target_k)), -1)
        return self._full(learner_k, target_k)

    def _top_k_ids(self, learner_logp: Tensor, target_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Vocabulary entries compared (N, K or 2K) and which of them count."""
        if self.of in ("learner", "target"):
            ids = (learner_logp if self.of == "learner" else target_logp).topk(self.top_k, -1).indices
            return ids, torch.ones_like(ids, dtype=torch.bool)
        own = learner_logp.topk(self.top_k, -1).indices
        other = target_logp.topk(self.top_k, -1).indices
        shared = (own.unsqueeze(-1) == other.unsqueeze(-2)).any(-1)  # (N, K): entries of `own` that `other` has too
        if self.of == "intersection":
            return own, shared
        doubled = (other.unsqueeze(-1) == own.unsqueeze(-2)).any(-1)
        return torch.cat((own, other), -1), torch.cat((torch.ones_like(doubled), ~doubled), -1)


def _written(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-prob (N) of the written tokens, without a second (N, V) array of log-probabilities."""
    logits = logits.float()
    return logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _rest_logp(kept_logp: Tensor) -> Tensor:
    """Log of the mass outside the kept entries, (N, 1); never below log 1e-7, fp32's resolution next to 1."""
    kept = kept_logp.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.log(-torch.expm1(kept))
