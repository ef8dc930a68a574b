"""Scoring: every view of a method scores the same rollouts; the routing rule then sees the scores.

rollouts -> Batch (positions end to end) -> score_views -> route -> loss_normalizers
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.data.contexts import build_prompt, depends_on_rollout, is_missing_rollout_data
from workbench.distill.losses import missing_scores, score
from workbench.distill.method import Method
from workbench.distill.micro_batches import PassTokens, split_by_tokens
from workbench.policies import Policy, prefetches
from workbench.policies.fsdp import layer_by_layer
from workbench.policies.pass_counts import add_pass
from workbench.policies.row_sizes import RowSize, padded_tokens
from workbench.policies.view_output import ViewOutput, join_outputs
from workbench.types import Prompt, Rollout, RouteBatch, Routing, TokenScores

Positions = slice | Int[Tensor, " M"]


@dataclass(frozen=True)
class Batch:
    """Rollouts whose N completion positions are laid end to end, split into micro-batches.

    micro_batch_size  rollouts per micro-batch, 0 = all
    group_by_length   sort rollouts by length first, keeping those of one example together
    tokens_per_micro_batch  padded tokens per micro-batch, in place of a number of rollouts; 0 = no such limit
    row_sizes, pass_tokens  of one view's rows and passes, by which tokens are counted; see `of_view`
    """

    rollouts: tuple[Rollout, ...]
    micro_batch_size: int = 0
    group_by_length: bool = False
    tokens_per_micro_batch: int = 0
    row_sizes: tuple[RowSize, ...] = ()
    pass_tokens: PassTokens = padded_tokens

    @cached_property
    def lengths(self) -> list[int]:
        return [len(rollout.ids) for rollout in self.rollouts]

    @property
    def num_positions(self) -> int:
        return sum(self.lengths)

    @cached_property
    def token_ids(self) -> Int[Tensor, " N"]:
        return torch.tensor([token for rollout in self.rollouts for token in rollout.ids], dtype=torch.long)

    @cached_property
    def sequence(self) -> Int[Tensor, " N"]:
        return torch.repeat_interleave(torch.arange(len(self.rollouts)), torch.tensor(self.lengths, dtype=torch.long))

    @cached_property
    def position(self) -> Int[Tensor, " N"]:
        return torch.tensor([column for length in self.lengths for column in range(length)], dtype=torch.long)

    @cached_property
    def rows(self) -> list[list[int]]:
        """Rollout indices of each micro-batch."""
        if self.tokens_per_micro_batch and self.rollouts:
            return split_by_tokens(self.row_sizes, self.tokens_per_micro_batch, self.pass_tokens)
        size = self.micro_batch_size or max(1, len(self.rollouts))
        order = self._order()
        return [list(order[first : first + size]) for first in range(0, len(order), size)]

    def _order(self) -> Sequence[int]:
        """Order in which rollouts fill micro-batches of equal numbers."""
        if not self.group_by_length or not 0 < self.micro_batch_size < len(self.rollouts):
            return range(len(self.rollouts))
        longest: dict[int, int] = {}  # completion length by example
        for rollout, length in zip(self.rollouts, self.lengths, strict=True):
            longest[id(rollout.example)] = max(length, longest.get(id(rollout.example), 0))
        rank = {example: idx for idx, example in enumerate(longest)}
        ids = [id(rollout.example) for rollout in self.rollouts]
        return sorted(range(len(ids)), key=lambda row: (longest[ids[row]], rank[ids[row]], self.lengths[row]))

    @cached_property
    def is_in_order(self) -> bool:
        """Whether the micro-batches, laid end to end, are the rollouts in their own order."""
        return list(itertools.chain.from_iterable(self.rows)) == list(range(len(self.rollouts)))

    @property
    def num_micro_batches(self) -> int:
        return len(self.rows)

    def micro_batches(self) -> Iterator[tuple[list[int], Positions]]:
        """Yield the rollout indices and the positions of each micro-batch."""
        ends = list(itertools.accumulate(self.lengths))
        for indices in self.rows:
            if self.is_in_order:
                yield indices, slice(ends[indices[0]] - self.lengths[indices[0]], ends[indices[-1]])
            else:
                yield indices, torch.cat([torch.arange(ends[idx] - self.lengths[idx], ends[idx]) for idx in indices])

    @cached_property
    def inverse_order(self) -> Positions:
        """Index from the micro-batches' positions, laid end to end, to batch order."""
        return (
            slice(None)
            if self.is_in_order
            else torch.cat([positions for _, positions in self.micro_batches()]).argsort()
        )

    @cached_property
    def micro_batch(self) -> Int[Tensor, " N"]:
        micro_batch_idx = torch.zeros(len(self.rollouts), dtype=torch.long)
        for idx, (rollout_indices, _) in enumerate(self.micro_batches()):
            micro_batch_idx[rollout_indices] = idx
        return micro_batch_idx[self.sequence]


Prompts = tuple[Prompt | None, ...]  # one per rollout; None: the view does not score it


def view_prompts(method: Method, rollouts: tuple[Rollout, ...]) -> dict[str, Prompts]:
    """Build the prompts of every view, one per rollout; None if the rollout lacks what the view's context needs.

    Rollouts of one example with equal prompts share one Prompt object, so that its encoding can be shared too.
    """
    built: dict[tuple, Prompt | None] = {}

    def prompt_of(rollout: Rollout, context: str) -> Prompt | None:
        key: tuple = (id(rollout.example), context)
        if depends_on_rollout(context):
            key += (rollout.replies, rollout.feedback, rollout.ids, rollout.denoising)
        if key not in built:
            built[key] = (
                None if is_missing_rollout_data(rollout, context) else build_prompt(rollout.example, context, rollout)
            )
        return built[key]

    prompts = {
        name: tuple(prompt_of(rollout, view.context) for rollout in rollouts) for name, view in method.views.items()
    }
    assert None not in prompts[method.learner_view], f"the learner of {method.name} must score every rollout"
    return prompts


def of_view(policy: Policy, prompts: Prompts, batch: Batch) -> Batch:
    """The rollouts that a view scores, those with a prompt, in the view's own micro-batches."""
    has_prompt = [prompt is not None for prompt in prompts]
    rollouts = tuple(itertools.compress(batch.rollouts, has_prompt))
    sizes: tuple[RowSize, ...] = ()
    if batch.tokens_per_micro_batch:
        present = [prompt for prompt in prompts if prompt is not None]
        sizes = tuple(policy.row_sizes(present, [rollout.ids for rollout in rollouts]))
    return replace(batch, rollouts=rollouts, row_sizes=sizes, pass_tokens=policy.pass_tokens)


def forward_micro_batch(policy: Policy, prompts: Prompts, batch: Batch, rollout_indices: list[int]) -> ViewOutput:
    """Forward pass of some rollouts of the batch under one view, all of which have a prompt."""
    rollouts = [batch.rollouts[idx] for idx in rollout_indices]
    if batch.tokens_per_micro_batch:
        size = batch.pass_tokens([batch.row_sizes[idx] for idx in rollout_indices])
        add_pass(oversized=int(size > batch.tokens_per_micro_batch))
    return policy.forward(
        [prompts[idx] for idx in rollout_indices],
        [rollout.ids for rollout in rollouts],
        [rollout.denoising for rollout in rollouts],
    )


@torch.no_grad()
def forward_view(policy: Policy, prompts: Prompts, batch: Batch) -> ViewOutput | None:
    """Forward pass of the whole batch under one view, without gradient; keeps hidden states of completions only.

    Rollouts without a prompt are not scored (ViewOutput.is_scored). None if no rollout has a prompt.
    """
    has_prompt = [prompt is not None for prompt in prompts]
    scored = of_view(policy, prompts, batch)
    if not scored.rollouts and batch.rollouts:
        return None
    scored_prompts = tuple(prompt for prompt in prompts if prompt is not None)
    outputs = [forward_micro_batch(policy, scored_prompts, scored, indices) for indices in scored.rows]
    output = join_outputs(outputs)
    output = output if scored.is_in_order else output.select(scored.inverse_order)
    return output if all(has_prompt) else output.spread(torch.tensor(has_prompt)[batch.sequence].to(output.device))


def prefetch_views(
    method: Method, policies: dict[str, Policy], prompts: dict[str, Prompts], batch: Batch
) -> tuple[str, ...]:
    """Begin the passes of all views whose policies compute elsewhere, such as a served teacher; return their names."""
    begun = []
    for name, view in method.views.items():
        policy = policies[view.policy]
        if not view.learns and prefetches(policy):
            scored = of_view(policies[view.policy], prompts[name], batch)
            completions = [rollout.ids for rollout in scored.rollouts]
            policy.prefetch([prompt for prompt in prompts[name] if prompt is not None], completions, scored.rows)
            begun.append(name)
    return tuple(begun)


def score_views(
    method: Method,
    policies: dict[str, Policy],
    prompts: dict[str, Prompts],
    batch: Batch,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, ViewOutput], dict[str, TokenScores]]:
    """Outputs and scores of views; a view that scores no rollout has scores of NaN only.

    `Method.late_views` have an output alone.

    names  of views; None = all but the learner's
    """
    outputs, scores = {}, {}
    for name in [name for name, view in method.views.items() if not view.learns] if names is None else names:
        policy = policies[method.views[name].policy]
        with layer_by_layer(policy):
            output = forward_view(policy, prompts[name], batch)
        if output is None:
            scores[name] = missing_scores(batch.num_positions, policies["student"].device)
            continue
        outputs[name] = output
        if name not in method.late_views:
            scores[name] = score(output, batch.token_ids.to(output.device))
    return outputs, scores


def route(
    method: Method,
    scores: dict[str, TokenScores],
    batch: Batch,
    seed: int,
    token_texts: Callable[[tuple[int, ...]], list[str]] | None = None,
    device: torch.device | str = "cpu",
) -> Routing:
    """Apply the method's routing rule to the whole batch; every position gets exactly one regime.

    token_texts  decodes token ids for the rule
    device       of the routing
    """
    view_scores = {name: scores[name] for name in method.views if name in scores}
    routing = method.route(
        RouteBatch(
            view_scores,
            batch.sequence.to(device),
            batch.position.to(device),
            batch.micro_batch.to(device),
            batch.rollouts,
            seed,
            *(() if token_texts is None else (token_texts,)),
        )
    )
    allowed = (routing.regime >= 0) & (routing.regime < len(method.regimes))
    assert routing.regime.shape == (batch.num_positions,) and bool(allowed.all()), (method.name, routing.regime)
    for regime_idx, (regime_name, regime) in enumerate(method.regimes.items()):
        for target in {loss.target for loss in regime.losses}.intersection(view_scores):
            missing = view_scores[target].logprob.isnan() & (routing.regime == regime_idx)
            assert not missing.any(), f"{method.name} routes positions to {regime_name} that {target} did not score"
    return routing


def slice_routing(routing: Routing, positions: Positions) -> Routing:
    """Select positions of a routing, such as those of a micro-batch."""
    advantage = None if routing.advantage is None else routing.advantage[positions]
    return replace(routing, regime=routing.regime[positions], weight=routing.weight[positions], advantage=advantage)


def loss_normalizers(method: Method, batch: Batch, routing: Routing) -> Float[Tensor, " N"]:
    """Weight of each position's loss in the step's total: 1 / (count of its mean), over all micro-batches.

    The counts are of positions (token_mean), of positions per sequence times sequences (sequence_mean), or of positions
    per domain times domains (domain_mean); with `normalize_by` supervised, of positions with a loss only.
    """
    counts = torch.ones(batch.num_positions)
    if method.normalize_by == "supervised":
        has_losses = torch.tensor([bool(regime.losses) for regime in method.regimes.values()])
        counts = (has_losses[routing.regime.cpu()] & (routing.weight.cpu() != 0)).float()
    if method.loss_aggregation == "token_mean":
        return counts / counts.sum().clamp(min=1.0)
    if method.loss_aggregation == "domain_mean":
        domains = [rollout.example.domain for rollout in batch.rollouts]
        indices = {domain: idx for idx, domain in enumerate(dict.fromkeys(domains))}
        domain_idx = torch.tensor([indices[domain] for domain in domains], dtype=torch.long)[batch.sequence]
        sizes = torch.zeros(len(indices)).index_add(0, domain_idx, counts)
        return counts / (sizes.clamp(min=1.0) * max(1, int((sizes > 0).sum())))[domain_idx]
    lengths = torch.zeros(len(batch.rollouts)).index_add(0, batch.sequence, counts)
    num_sequences = int((lengths > 0).sum())
    return counts / (lengths.clamp(min=1.0) * max(1, num_sequences))[batch.sequence]
