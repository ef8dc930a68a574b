"""Divergences between the learner and a target, per position, in nats and in fp32.

Every function takes logits (or log-probabilities) of shape (N, V), first of the learner, then of the target, and
returns (N). All are zero, with zero gradient, if learner and target are equal.

A `Divergence` adds the support, the set of vocabulary entries that are compared:

    full          every entry
    top_k         the K most likely entries of the learner, of the target, or of both; `tail` treats the others:
        bucket        all other entries form one more entry on both sides (a true divergence of K + 1 entries)
        renormalize   both sides are divided by their mass on the K entries
        bregman       sum of p log(p/q) - p + q over the K entries (MOPD, arXiv 2606.30406, variant c)
      A plain sum over K entries is not an option: its gradient is not zero at equality (arXiv 2605.11182).
    sampled       only the sampled token: value log p - log q, gradient through sg[log p - log q] * log p

`clip` bounds the contribution of one entry to a KL before the sum (OPSD, arXiv 2601.18734; d-OPSD, arXiv 2606.18195),
so that a few entries with a large ratio do not dominate the gradient. Negative contributions are not clipped, so the
loss can be negative. `clip` does not bound the loss of a position.

Source of the formulas: Hinton 2015; GKD, arXiv 2306.13649, equation 1; DOPD, arXiv 2606.30626, equation 4.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.errors import ConfigError, require_one_of
from workbench.policies.view_output import row_slices

KINDS = ("nll", "forward_kl", "reverse_kl", "jensen_shannon", "generalized_jsd", "policy_gradient")
SUPPORTS = ("full", "top_k", "sampled")
TOP_K_OF = ("learner", "target", "union", "intersection")
TAILS = ("bucket", "renormalize", "bregman")
_NO_MASS = -1e4  # log-prob of an entry without mass: its exp is 0, and unlike minus infinity it causes no NaN


def forward_kl(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(target || learner), which covers every mode of the target."""
    return _Kl.apply(target.float(), learner.float())


def reverse_kl(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(learner || target), which concentrates on modes of the target."""
    return _Kl.apply(learner.float(), target.float())


def jensen_shannon(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Half KL(learner || m) plus half KL(target || m), m their mean. Symmetric, at most ln 2."""
    return generalized_jsd(learner, target, beta=0.5)


def generalized_jsd(learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"], *, beta: float) -> Float[Tensor, " N"]:
    """beta KL(target || m) + (1 - beta) KL(learner || m), m = beta target + (1 - beta) learner.

    It vanishes as beta nears 0 or 1. Other tools switch there to a full KL, which is a thousand times larger.

    Raises: ConfigError unless 0 < beta < 1.
    """
    check_beta(beta)
    return _Jsd.apply(learner.float(), target.float(), beta)


def check_beta(beta: float | None) -> None:
    """Raise ConfigError unless 0 < beta < 1."""
    if beta is None or not 0.0 < beta < 1.0:
        raise ConfigError(
            f"beta of generalized_jsd is {beta}. Expected more than 0 and less than 1. At the ends, choose forward_kl "
            "or reverse_kl instead."
        )


class _Kl(torch.autograd.Function):
    """KL(first || second) of logits (N, V), per position (N).

    The gradients are explicit: p (log p - log q - KL) for the first, q - p for the second. The forward pass computes
    them a few positions at a time, while all their arrays are in the processor's cache, and keeps nothing else of shape
    (N, V). Autograd would store and read four such arrays, which dominate time and memory with a large vocabulary.
    """

    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor) -> Tensor:
        divergence = first.new_empty(len(first))
        of_first, of_second = (
            torch.empty_like(logits) if needed else None
            for logits, needed in zip((first, second), ctx.needs_input_grad, strict=True)
        )
        for chunk in row_slices(first):
            first_logp = first[chunk].log_softmax(-1)
            ratio = second[chunk].log_softmax(-1).neg_().add_(first_logp)
            ratio.masked_fill_(first_logp == -torch.inf, 0.0)  # 0 * log(0 / x) is 0
            mass = first_logp.exp_()
            divergence[chunk] = (mass * ratio).sum(-1)
            if of_first is not None:
                torch.mul(ratio.sub_(divergence[chunk].unsqueeze(-1)), mass, out=of_first[chunk])
            if of_second is not None:
                torch.sub(second[chunk].softmax(-1), mass, out=of_second[chunk])
        ctx.save_for_backward(of_first, of_second)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        of_first, of_second = ctx.saved_tensors
        return tuple(None if of is None else of * grad.unsqueeze(-1) for of in (of_first, of_second))


class _Jsd(torch.autograd.Function):
    """beta KL(target || m) + (1 - beta) KL(learner || m) of logits (N, V), m = beta target + (1 - beta) learner.

    Explicit gradient for the learner: (1 - beta) p (log p - log m - KL(learner || m)); the terms through m cancel. The
    gradient for the target has the same form.
    """

    @staticmethod
    def forward(ctx, learner: Tensor, target: Tensor, beta: float) -> Tensor:
        # finite log-probs, whose exp is still 0, so that entries without mass cause no NaN
        learner_logp = learner.log_softmax(-1).clamp_(min=-1e4)
        target_logp = target.log_softmax(-1).clamp_(min=-1e4)
        mixture_logp = torch.logaddexp(target_logp + math.log(beta), learner_logp + math.log1p(-beta))
        total, saved = 0.0, []
        for logp, weight in ((learner_logp, 1 - beta), (target_logp, beta)):
            ratio = logp - mixture_logp
            mass = logp.exp_()
            divergence = (mass * ratio).sum(-1)
            total = total + weight * divergence
            saved += [mass, ratio, divergence]
        needed = [ctx.needs_input_grad[idx // 3] for idx in range(6)]
        ctx.save_for_backward(*(tensor if need else None for tensor, need in zip(saved, needed, strict=True)))
        ctx.beta = beta
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grads = []
        for side, weight in enumerate((1 - ctx.beta, ctx.beta)):
            mass, ratio, divergence = ctx.saved_tensors[3 * side : 3 * side + 3]
            if mass is None:
                grads.append(None)
            else:
                grads.append((ratio - divergence.unsqueeze(-1)).mul_(mass).mul_(weight * grad.unsqueeze(-1)))
        return grads[0], grads[1], None


@dataclass(frozen=True)
class Divergence:
    """A divergence with its support, the field of a `Loss`.

    kind      one of KINDS. nll: minus the log-prob of the token; policy_gradient: minus advantage times log-prob
    support   full, top_k or sampled
    beta      generalized_jsd only
    top_k     number of entries K; `of`: owner of the top-k; `tail`: treatment of the other entries
    clip      largest contribution of one entry to a forward or reverse KL, in nats; 0 = no clip

    Raises: ConfigError for options that do not go together.
    """

    kind: str
    support: str = "full"
    beta: float | None = None
    top_k: int = 0
    of: str = "learner"
    tail: str = "bucket"
    clip: float = 0.0

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("divergence", self.kind, KINDS),
            ("support", self.support, SUPPORTS),
            ("top-k support", self.of, TOP_K_OF),
            ("tail", self.tail, TAILS),
        ):
            require_one_of(what, value, allowed)
        if self.kind == "generalized_jsd":
            check_beta(self.beta)
        elif self.beta is not None:
            raise ConfigError(f"beta={self.beta} has no effect with {self.kind}. Remove it, or choose generalized_jsd.")
        if (self.support == "top_k") != (self.top_k > 0):
            raise ConfigError(
                f"top_k={self.top_k} with support={self.support}. Set top_k >= 1 with support=top_k, else 0."
            )
        if self.support == "sampled" and self.kind != "reverse_kl":
            raise ConfigError(f"support=sampled estimates reverse_kl, not {self.kind}. Choose another support.")
        if self.support == "top_k" and self.kind in ("nll", "policy_gradient"):
            raise ConfigError(
                f"support=top_k has no effect with {self.kind}, which uses one token. Choose support=full."
            )
        summed = self.kind in ("forward_kl", "reverse_kl") and self.support != "sampled" and self.tail != "bregman"
        if self.clip < 0 or (self.clip and not summed):
            raise ConfigError(
                f"clip={self.clip:g} with {self.kind}, support={self.support} and tail={self.tail}. Expected 0 or more "
                "for a forward or reverse KL. Set clip=0 for the others."
            )
        if self.tail == "bregman" and self.support == "top_k" and self.kind not in ("forward_kl", "reverse_kl"):
            raise ConfigError(
                f"tail=bregman is not defined for {self.kind}. Choose forward_kl or reverse_kl, or another tail."
            )

    @property
    def label(self) -> str:
        """Short name for traces and legends, such as "reverse_kl top-128 of target, bucket"."""
        text = self.kind if self.beta is None else f"{self.kind} beta={self.beta:g}"
        if self.support == "top_k":
            text = f"{text} top-{self.top_k} of {self.of}, {self.tail}"
        elif self.support != "full":
            text = f"{text} {self.support}"
        return f"{text}, entries at most {self.clip:g}" if self.clip else text

    def __call__(
        self,
        learner: Float[Tensor, "N V"],
        target: Float[Tensor, "N V"] | None,
        token_ids: Int[Tensor, " N"],
        advantage: Float[Tensor, " N"] | None = None,
    ) -> Float[Tensor, " N"]:
        """Loss of each position in nats. nll and policy_gradient read no `target`; only the latter an `advantage`."""
        if self.kind in ("nll", "policy_gradient") or self.support == "sampled":
            learner_logp = _token_logp(learner, token_ids)
            if self.kind == "nll":
                return -learner_logp
            if self.kind == "policy_gradient":
                return -advantage.float() * learner_logp
            ratio = learner_logp.detach() - _token_logp(target, token_ids)
            # value: the ratio; gradient: ratio * grad log p. Differentiating the ratio itself would ignore the target.
            return ratio + ratio * (learner_logp - learner_logp.detach())
        if self.support == "full" or self.top_k >= learner.shape[-1]:
            return self._full(learner, target)
        return self._on_top_k(learner.float(), target.float())

    def _full(self, learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
        if self.clip:
            learner_logp, target_logp = learner.float().log_softmax(-1), target.float().log_softmax(-1)
            pair = (learner_logp, target_logp) if self.kind == "reverse_kl" else (target_logp, learner_logp)
            return (pair[0].exp() * (pair[0] - pair[1])).clamp(max=self.clip).sum(-1)
        if self.kind == "forward_kl":
            return forward_kl(learner, target)
        if self.kind == "reverse_kl":
            return reverse_kl(learner, target)
        return generalized_jsd(learner, target, beta=0.5 if self.beta is None else self.beta)

    def _on_top_k(self, learner: Float[Tensor, "N V"], target: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
        ids, keep = self._top_k_ids(learner.detach(), target)
        if self.tail == "bucket":
            # ids outside `keep`: of an intersection they belong to the rest, of a union they are duplicates
            inside = keep if self.of == "intersection" else None
            learner_k = _LogProbsAndRest.apply(learner, ids, keep, inside)
            target_k = _LogProbsAndRest.apply(target, ids, keep, inside)
            keep = None if keep is None else torch.cat((keep, torch.ones_like(keep[:, :1])), -1)
        else:
            learner_k, target_k = _logp_of(learner, ids), _logp_of(target, ids)
        if self.tail == "bregman":
            first, second = (learner_k, target_k) if self.kind == "reverse_kl" else (target_k, learner_k)
            terms = first.exp() * (first - second) - first.exp() + second.exp()
            return (terms if keep is None else terms.masked_fill(~keep, 0.0)).sum(-1)
        if keep is not None:  # no mass outside `keep`; finite, so that no gradient is NaN
            learner_k, target_k = learner_k.masked_fill(~keep, _NO_MASS), target_k.masked_fill(~keep, _NO_MASS)
        return self._full(learner_k, target_k)

    def _top_k_ids(self, learner: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compared vocabulary entries (N, K or 2K), and a mask of those that count; None = all."""
        if self.of in ("learner", "target"):
            return (learner if self.of == "learner" else target).topk(self.top_k, -1).indices, None
        learner_ids = learner.topk(self.top_k, -1).indices
        target_ids = target.topk(self.top_k, -1).indices
        # (N, K): which of the learner's entries are among the target's
        shared = (learner_ids.unsqueeze(-1) == target_ids.unsqueeze(-2)).any(-1)
        if self.of == "intersection":
            return learner_ids, shared
        doubled = (target_ids.unsqueeze(-1) == learner_ids.unsqueeze(-2)).any(-1)
        return torch.cat((learner_ids, target_ids), -1), torch.cat((torch.ones_like(doubled), ~doubled), -1)


def _token_logp(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probs (N) of the tokens."""
    return _logp_of(logits.float(), token_ids.unsqueeze(-1)).squeeze(-1)


def _logp_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs (N, K) of K entries per position."""
    return _LogProbs.apply(logits, ids)


class _LogProbs(torch.autograd.Function):
    """log_softmax(logits)[ids] (N, K) with one (N, V) array for the gradient, indicator minus softmax summed over K.

    Autograd would allocate one for the entries and one for the normalizer, and add them.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor) -> Tensor:
        total = logits.new_empty(logits.shape[0], 1)
        for chunk in row_slices(logits):
            total[chunk] = logits[chunk].logsumexp(-1, keepdim=True)  # logsumexp copies its input
        ctx.save_for_backward(logits, total, ids)
        return logits.gather(-1, ids) - total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, total, ids = ctx.saved_tensors
        of_logits = (logits - total).exp_().mul_(grad.sum(-1, keepdim=True).neg_())
        return of_logits.scatter_add_(-1, ids, grad), None


class _LogProbsAndRest(torch.autograd.Function):
    """Log-probs (N, K + 1) of the entries `ids` (N, K), and last of all other entries together (the rest).

    The rest is summed over its entries; as 1 minus the kept mass it would be lost below fp32's resolution near 1, 6e-8.
    _NO_MASS if no entry is left.

    keep    mask of the ids whose log-probs are used; the others have no gradient. None = all
    inside  mask of the ids that do not belong to the rest. None = all

    Gradient, with s the sum of all K + 1 incoming gradients: for a kept entry g - p s, for another
    p / rest * (g_rest - rest * s), where p / rest is the softmax within the rest, so no small number is a divisor.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor, keep: Tensor | None, inside: Tensor | None) -> Tensor:
        chosen = logits.gather(-1, ids)
        rest = logits.new_empty(logits.shape[0], 1)
        lowest = torch.finfo(rest.dtype).min  # instead of minus infinity, which would cause NaN in sums and gradients
        for chunk in row_slices(logits):
            without = -torch.inf if inside is None else chosen[chunk].masked_fill(inside[chunk], -torch.inf)
            others = logits[chunk].scatter(-1, ids[chunk], without)
            peak = others.amax(-1, keepdim=True).clamp_(min=lowest)
            rest[chunk] = others.sub_(peak).exp_().sum(-1, keepdim=True).log_().add_(peak)
        rest.clamp_(min=lowest)
        kept = chosen if keep is None else chosen.masked_fill(~keep, -torch.inf)
        total = torch.logaddexp(rest, kept.logsumexp(-1, keepdim=True))
        ctx.save_for_backward(logits, ids, inside, chosen, rest, total)
        return torch.cat((chosen - total, (rest - total).clamp_(min=_NO_MASS)), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, ids, inside, chosen, rest, total = ctx.saved_tensors
        of_ids, of_rest, whole = grad[:, :-1], grad[:, -1:], grad.sum(-1, keepdim=True)
        of_logits = (logits - rest).exp_().mul_(of_rest - (rest - total).exp() * whole)
        of_inside = (chosen - total).exp_().mul_(-whole)
        if inside is not None:
            of_inside = torch.where(inside, of_inside, of_logits.gather(-1, ids))
        return of_logits.scatter_(-1, ids, of_inside).scatter_add_(-1, ids, of_ids), None, None, None
