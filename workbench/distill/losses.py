"""Chunked loss kernel: hidden states -> logits of a chunk -> scores per position, losses and their gradient.

A vocabulary has 150,000 entries and a batch thousands of positions, so (N, V) logits would not fit in memory. Hidden
states (N, D) become logits one chunk of positions at a time. Only per-position numbers and the gradients of hidden
states and head outlive a chunk, so peak memory depends on the chunk size and not on N.

The forward pass also computes the gradient of a chunk while its logits exist, so no chunk is computed twice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.distill.method import REWARD, Regime
from workbench.policies.view_output import ViewOutput, chunk_size, cut, entropy_of, row_slices
from workbench.types import Routing, TokenScores


@dataclass(frozen=True)
class LossResult:
    """Losses and scores of the learner.

    total   sum of loss_normalizer * loss over positions, a scalar to call backward() on
    loss    (N) weighted loss of each position in nats, before any averaging
    scores  scores of the learner
    target_scores  scores of the targets in `late_views`
    """

    total: Float[Tensor, ""]
    loss: Float[Tensor, " N"]
    scores: TokenScores
    target_scores: dict[str, TokenScores]


@torch.no_grad()
def score(output: ViewOutput, token_ids: Int[Tensor, " N"]) -> TokenScores:
    """Scores of one view at every position; NaN (rank -1) where it did not score."""
    scores = missing_scores(token_ids.numel(), token_ids.device)
    for index in output.is_scored.nonzero().squeeze(-1).split(chunk_size(output.vocabulary)):
        _write_scores(scores, index, output.logits(index), token_ids)
    return scores


def missing_scores(num_positions: int, device: torch.device | str = "cpu") -> TokenScores:
    """Scores of a view that scored nothing: NaN, rank -1."""
    logprob, entropy, max_logprob = (torch.full((num_positions,), torch.nan, device=device) for _ in range(3))
    return TokenScores(logprob, entropy, max_logprob, torch.full((num_positions,), -1, device=device))


@torch.no_grad()
def top_k_tokens(
    output: ViewOutput, index: Int[Tensor, " M"], count: int
) -> tuple[Int[Tensor, "M K"], Float[Tensor, "M K"]]:
    """Ids and log-probs of the `count` most likely tokens at some positions; -1 and NaN where the view did not
    score.
    """
    count = min(count, output.vocabulary)
    ids = index.new_full((len(index), count), -1)
    logprobs = torch.full(ids.shape, torch.nan, device=index.device)
    for chunk in output.is_scored[index].nonzero().squeeze(-1).split(chunk_size(output.vocabulary)):
        best = output.logits(index[chunk]).log_softmax(-1).topk(count, -1)
        ids[chunk], logprobs[chunk] = best.indices, best.values
    return ids, logprobs


def compute_losses(
    learner: ViewOutput,
    targets: dict[str, ViewOutput],
    token_ids: Int[Tensor, " N"],
    *,
    regimes: tuple[Regime, ...],
    routing: Routing,
    loss_normalizer: Float[Tensor, " N"],
    late_views: tuple[str, ...] = (),
) -> LossResult:
    """Losses of all regimes at their positions, with gradients for the learner's hidden states and head.

    learner          output of one policy
    targets          outputs of the views that the losses compare with, without gradient
    loss_normalizer  weight of each position's loss in the total, see scoring.loss_normalizers
    late_views       targets of all regimes, which are scored here too
    """
    (part,) = learner.parts
    head_parameters = [parameter for parameter in part.head.linear.parameters() if parameter.requires_grad]
    loss = torch.zeros(token_ids.numel(), device=learner.device)
    scores, *late = (missing_scores(token_ids.numel(), learner.device) for _ in ("learner", *late_views))
    late_scores = dict(zip(late_views, late, strict=True))
    context = _LossContext(learner, targets, token_ids, regimes, routing, loss_normalizer, loss, scores, late_scores)
    return LossResult(_FusedLoss.apply(part.hidden, context, *head_parameters), loss, scores, late_scores)


@dataclass(frozen=True)
class _LossContext:
    """Arguments of compute_losses, and its results. `index` is positions, of N, and `logits` are those there."""

    learner: ViewOutput
    targets: dict[str, ViewOutput]
    token_ids: Int[Tensor, " N"]
    regimes: tuple[Regime, ...]
    routing: Routing
    loss_normalizer: Float[Tensor, " N"]
    loss: Float[Tensor, " N"]  # results without gradient, written chunk by chunk
    scores: TokenScores
    target_scores: dict[str, TokenScores]

    def chunk(self, regime: Regime, index: Int[Tensor, " M"], gradients: "_Gradients | None") -> None:
        """Write the losses and scores of the learner at some positions of one regime.

        Only products with the head are of the whole chunk, the rest is of a few positions at a time (`row_slices`).
        """
        views = {loss.target for loss in regime.losses}.intersection(self.targets)
        targets = {view: self.targets[view].logits(index) for view in views}

        def part_total(part: slice, logits: Float[Tensor, "m V"]) -> Float[Tensor, ""]:
            positions, at_part = index[part], {view: target[part] for view, target in targets.items()}
            weighted = self.position_losses(regime, positions, logits, at_part)
            self.loss[positions] = weighted.detach()
            _write_scores(self.scores, positions, logits.detach(), self.token_ids)
            return (weighted * self.loss_normalizer[positions]).sum()

        if gradients is not None and regime.losses:
            gradients.add(index, part_total)
        else:
            logits = self.learner.logits(index)
            for part in row_slices(logits):
                part_total(part, logits[part])

    def position_losses(
        self,
        regime: Regime,
        index: Int[Tensor, " M"],
        logits: Float[Tensor, "M V"],
        targets: dict[str, Float[Tensor, "M V"]],
    ) -> Float[Tensor, " M"]:
        """Weighted sum of the regime's losses at the positions `index`, from the logits there."""
        weighted = torch.zeros(index.numel(), device=logits.device)
        for loss in regime.losses:
            target = targets.get(loss.target)
            if loss.target in self.target_scores:
                _write_scores(self.target_scores[loss.target], index, targets[loss.target], self.token_ids)
            advantage = self.routing.advantage[index] if loss.target == REWARD else None
            weighted = weighted + loss.weight * loss.divergence(logits, target, self.token_ids[index], advantage)
        return weighted * self.routing.weight[index]


class _FusedLoss(torch.autograd.Function):
    """Computes the gradient chunk by chunk in the forward pass; the backward pass returns it."""

    @staticmethod
    def forward(ctx, hidden: Tensor, context: _LossContext, *head_parameters: Tensor) -> Tensor:
        gradients = _Gradients(context.learner, hidden, head_parameters) if any(ctx.needs_input_grad) else None
        for regime_idx, regime in enumerate(context.regimes):
            positions = (context.routing.regime == regime_idx).nonzero().squeeze(-1)
            for index in positions.split(chunk_size(context.learner.vocabulary)):
                if index.numel():
                    context.chunk(regime, index, gradients)
        ctx.gradients = gradients
        return (context.loss * context.loss_normalizer).sum()

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
        self.head, self.row, self.vocabulary = learner.parts[0].head, learner.row, learner.vocabulary
        self.hidden, self.head_parameters = hidden.detach(), head_parameters
        self.of_hidden = torch.zeros_like(self.hidden)
        self.of_head = [torch.zeros_like(parameter) for parameter in head_parameters]
        self.is_plain = type(self.head.linear) is nn.Linear

    def add(self, index: Int[Tensor, " M"], part_total: Callable[[slice, Tensor], Float[Tensor, ""]]) -> None:
        """Add the gradient of a chunk's total loss.

        part_total  total loss of some positions of the chunk, from the learner's logits there
        """
        hidden = self.hidden[self.row[index]]
        if not self.is_plain:
            with torch.enable_grad():
                hidden.requires_grad_()
                total = part_total(slice(None), cut(self.head(hidden), self.vocabulary))
            grad_hidden, *grad_head = torch.autograd.grad(total, (hidden, *self.head_parameters), allow_unused=True)
            self.of_hidden[self.row[index]] = grad_hidden.to(self.of_hidden.dtype)
            for of_parameter, grad in zip(self.of_head, grad_head, strict=True):
                if grad is not None:
                    of_parameter.add_(grad)
            return
        linear = self.head.linear
        raw = F.linear(hidden, linear.weight, linear.bias)
        for part in row_slices(raw):
            with torch.enable_grad():
                of_part = raw[part].detach().requires_grad_()
                total = part_total(part, cut(self.head.finish(of_part), self.vocabulary))
            (raw[part],) = torch.autograd.grad(total, of_part)  # the gradient takes the place of the logits
        self.of_hidden[self.row[index]] = (raw @ linear.weight).to(self.of_hidden.dtype)
        for parameter, of_parameter in zip(self.head_parameters, self.of_head, strict=True):
            if parameter is linear.weight:
                of_parameter.addmm_(raw.T.to(of_parameter.dtype), hidden.to(of_parameter.dtype))
            else:
                of_parameter.add_(raw.sum(0).to(of_parameter.dtype))


def _write_scores(
    scores: TokenScores, index: Int[Tensor, " M"], logits: Float[Tensor, "M V"], token_ids: Int[Tensor, " N"]
) -> None:
    """Write log-prob, entropy, highest log-prob and rank at the positions `index`, from the logits there."""
    for chunk in row_slices(logits):
        positions, logprobs = index[chunk], logits[chunk].log_softmax(-1)
        sampled = logprobs.gather(-1, token_ids[positions].unsqueeze(-1))
        scores.logprob[positions] = sampled.squeeze(-1)
        is_above = torch.gt(logprobs, sampled, out=torch.empty_like(logprobs))  # a sum of booleans would copy them
        scores.rank[positions] = is_above.sum(-1).long()
        scores.max_logprob[positions] = logprobs.amax(-1)
        scores.entropy[positions] = entropy_of(logprobs)
