"""Chunked loss kernel: hidden states -> logits of a chunk -> scores per position, losses and their gradient.

A vocabulary has 150,000 entries and a batch thousands of positions, so (N, V) logits would not fit in memory. Hidden
states (N, D) become logits one chunk of positions at a time. Only per-position numbers and the gradients of hidden
states and head outlive a chunk, so peak memory depends on the chunk size and not on N.

The forward pass also computes the gradient of a chunk while its logits exist, so no chunk is computed twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.distill.divergences import row_slices
from workbench.distill.method import REWARD, TOKENS, Regime
from workbench.policies.view_output import MixedViewOutput, ViewOutput, chunk_size, cut, entropy_of
from workbench.types import Routing, TokenScores


@dataclass(frozen=True)
class LossResult:
    """Losses and scores of the learner.

    total   sum of loss_normalizer * loss over positions, a scalar to call backward() on
    loss    (N) weighted loss of each position in nats, before any averaging
    scores  scores of the learner
    """

    total: Float[Tensor, ""]
    loss: Float[Tensor, " N"]
    scores: TokenScores


@torch.no_grad()
def score(output: ViewOutput | MixedViewOutput, token_ids: Int[Tensor, " N"]) -> TokenScores:
    """Scores of one view at every position; NaN (rank -1) where it did not score."""
    order = torch.arange(token_ids.numel(), device=token_ids.device)
    order = order if output.is_scored is None else order[output.is_scored]
    parts = [_scalars(output.logits(chunk), token_ids[chunk]) for chunk in order.split(chunk_size(output.vocabulary))]
    scores = _joined(parts, token_ids)
    if output.is_scored is None:
        return scores
    whole = missing_scores(token_ids.numel(), token_ids.device)
    for name, values in vars(scores).items():
        getattr(whole, name)[order] = values
    return whole


def missing_scores(num_positions: int, device: torch.device | str = "cpu") -> TokenScores:
    """Scores of a view that scored nothing: NaN, rank -1."""
    logprob, entropy, max_logprob = torch.full((3, num_positions), torch.nan, device=device)
    return TokenScores(logprob, entropy, max_logprob, torch.full((num_positions,), -1, device=device))


@torch.no_grad()
def alternatives(
    output: ViewOutput | MixedViewOutput, index: Int[Tensor, " M"], count: int
) -> tuple[Int[Tensor, "M K"], Float[Tensor, "M K"]]:
    """Ids and log-probs of the `count` most likely tokens at some positions; -1 and NaN where the view did not
    score.
    """
    if output.is_scored is not None:
        is_scored = output.is_scored[index]
        some_ids, some_logprobs = alternatives(replace(output, is_scored=None), index[is_scored], count)
        ids = some_ids.new_full((index.numel(), some_ids.shape[1]), -1)
        logprobs = some_logprobs.new_full(ids.shape, torch.nan)
        ids[is_scored], logprobs[is_scored] = some_ids, some_logprobs
        return ids, logprobs
    ids, logprobs = [], []
    for chunk in index.split(chunk_size(output.vocabulary)):
        logprob = output.logits(chunk).log_softmax(-1)
        best = logprob.topk(min(count, output.vocabulary), -1)
        ids.append(best.indices)
        logprobs.append(best.values)
    if not ids:
        return index.new_zeros((0, count)), torch.zeros(0, count, device=output.device)
    return torch.cat(ids), torch.cat(logprobs)


def compute_losses(
    learner: ViewOutput,
    targets: dict[str, ViewOutput | MixedViewOutput],
    token_ids: Int[Tensor, " N"],
    *,
    regimes: tuple[Regime, ...],
    routing: Routing,
    loss_normalizer: Float[Tensor, " N"],
) -> LossResult:
    """Losses of all regimes at their positions, with gradients for the learner's hidden states and head.

    targets      outputs of the views that the losses compare with, without gradient
    loss_normalizer  weight of each position's loss in the total, see scoring.loss_normalizers
    """
    head_parameters = [parameter for parameter in learner.head.linear.parameters() if parameter.requires_grad]
    work = _Work(learner, targets, token_ids, regimes, routing, loss_normalizer, {})
    total = _Supervise.apply(learner.hidden, work, *head_parameters)
    return LossResult(total, work.out["loss"], work.out["scores"])


@dataclass(frozen=True)
class _Work:
    learner: ViewOutput
    targets: dict[str, ViewOutput | MixedViewOutput]
    token_ids: Tensor
    regimes: tuple[Regime, ...]
    routing: Routing
    loss_normalizer: Tensor
    out: dict  # results without gradient, since an autograd function returns tensors only

    def chunk(self, regime: Regime, index: Tensor, gradients: "_Gradients | None") -> tuple[Tensor, TokenScores]:
        """Losses and scores of the learner at some positions of one regime.

        A function of its own, so that all arrays of a chunk are freed before the next.
        """
        if gradients is None or not regime.losses:
            logits = self.learner.logits(index)
            weighted = self.position_losses(regime, index, logits)
        else:
            logits, step = gradients.logits(index)
            with torch.enable_grad():
                weighted = self.position_losses(regime, index, logits)
                gradients.add(index, (weighted * self.loss_normalizer[index]).sum(), step)
        return weighted.detach(), _scalars(logits.detach(), self.token_ids[index])

    def position_losses(self, regime: Regime, index: Tensor, logits: Tensor) -> Tensor:
        """Weighted sum of the regime's losses at the positions `index`, from the learner's logits there."""
        weighted = torch.zeros(index.numel(), device=logits.device)
        for loss in regime.losses:
            with torch.no_grad():  # a target can share the learner's head
                target = None if loss.target in (TOKENS, REWARD) else self.targets[loss.target].logits(index)
            advantage = self.routing.advantage[index] if loss.target == REWARD else None
            weighted = weighted + loss.weight * loss.divergence(logits, target, self.token_ids[index], advantage)
        return weighted * self.routing.weight[index]


class _Supervise(torch.autograd.Function):
    """Computes the gradient chunk by chunk in the forward pass; the backward pass returns it."""

    @staticmethod
    def forward(ctx, hidden: Tensor, work: _Work, *head_parameters: Tensor) -> Tensor:
        gradients = _Gradients(work.learner, hidden, head_parameters) if any(ctx.needs_input_grad) else None
        loss = torch.zeros(work.token_ids.numel(), device=hidden.device)
        parts, order = [], []
        for regime_idx, regime in enumerate(work.regimes):
            positions = (work.routing.regime == regime_idx).nonzero().squeeze(-1)
            for index in positions.split(chunk_size(work.learner.vocabulary)):
                if index.numel():
                    loss[index], scores = work.chunk(regime, index, gradients)
                    parts.append(scores)
                    order.append(index)
        if order:
            back = torch.cat(order).argsort()
            scores = _joined(parts, work.token_ids)
            scores = TokenScores(*(values[back] for values in vars(scores).values()))
        else:
            scores = _joined([], work.token_ids)
        work.out.update(loss=loss, scores=scores)
        ctx.gradients = gradients
        return (loss * work.loss_normalizer).sum()

    @staticmethod
    def backward(ctx, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # the only reference, so .grad takes them without a copy
        of_head = [grad.mul_(grad_total) for grad in gradients.of_head]
        return gradients.of_hidden.mul_(grad_total), None, *of_head


class _Gradients:
    """Accumulates d total / d hidden and d total / d head over chunks.

    For a plain linear head, two matrix products add directly to the accumulators, since autograd would allocate a
    second (V, D) array per chunk. Other heads use autograd.
    """

    def __init__(self, learner: ViewOutput, hidden: Tensor, head_parameters: tuple[Tensor, ...]) -> None:
        self.learner, self.hidden, self.head_parameters = learner, hidden.detach(), head_parameters
        self.of_hidden = torch.zeros_like(self.hidden)
        self.of_head = [torch.zeros_like(parameter) for parameter in head_parameters]
        self.is_plain = type(learner.head.linear) is nn.Linear

    def logits(self, index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Learner logits of a chunk, and the tensors to differentiate with respect to."""
        head, vocabulary = self.learner.head, self.learner.vocabulary
        hidden = self.hidden[index]
        with torch.enable_grad():
            if self.is_plain:
                raw = F.linear(hidden, head.linear.weight.detach(), _detached(head.linear.bias)).requires_grad_()
                return cut(head.finish(raw), vocabulary), (raw, hidden)
            hidden.requires_grad_()
            return cut(head(hidden), vocabulary), (hidden,)

    def add(self, index: Tensor, chunk_total: Tensor, step: tuple[Tensor, ...]) -> None:
        if not self.is_plain:
            grad_hidden, *grad_head = torch.autograd.grad(
                chunk_total, (step[0], *self.head_parameters), allow_unused=True
            )
            self.of_hidden[index] = grad_hidden.to(self.of_hidden.dtype)
            for total, grad in zip(self.of_head, grad_head, strict=True):
                if grad is not None:
                    total.add_(grad)
            return
        raw, hidden = step
        (grad_raw,) = torch.autograd.grad(chunk_total, raw)
        linear = self.learner.head.linear
        self.of_hidden[index] = (grad_raw @ linear.weight.detach()).to(self.of_hidden.dtype)
        for parameter, total in zip(self.head_parameters, self.of_head, strict=True):
            if parameter is linear.weight:
                total.addmm_(grad_raw.T.to(total.dtype), hidden.to(total.dtype))
            else:
                total.add_(grad_raw.sum(0).to(total.dtype))


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _scalars(logits: Float[Tensor, "M V"], token_ids: Int[Tensor, " M"]) -> TokenScores:
    """Log-prob, entropy, highest log-prob and rank at each position of a chunk."""
    logprob, entropy, max_logprob = logits.new_empty(3, logits.shape[0])
    scores = TokenScores(logprob, entropy, max_logprob, torch.empty_like(token_ids))
    for rows in row_slices(logits):
        logprobs = logits[rows].log_softmax(-1)
        written = logprobs.gather(-1, token_ids[rows].unsqueeze(-1))
        scores.logprob[rows] = written.squeeze(-1)
        scores.rank[rows] = (logprobs > written).sum(-1)
        scores.max_logprob[rows] = logprobs.amax(-1)
        scores.entropy[rows] = entropy_of(logprobs)
    return scores


def _joined(parts: list[TokenScores], token_ids: Tensor) -> TokenScores:
    if not parts:
        empty = torch.zeros(0, device=token_ids.device)
        return TokenScores(empty, empty, empty, empty.long())
    columns: Callable[[str], Tensor] = lambda name: torch.cat([getattr(part, name) for part in parts])  # noqa: E731
    return TokenScores(columns("logprob"), columns("entropy"), columns("max_logprob"), columns("rank"))
