"""Reading: every view of a method scores the same rollouts.

rollouts -> Batch (positions end to end) -> forward_view, score_views -> RouteBatch -> Routing
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.data.contexts import build_prompt, depends_on_rollout, is_missing_rollout_data
from workbench.distill.losses import missing_scores, score
from workbench.distill.method import Method
from workbench.policies import Policy
from workbench.policies.fsdp import unsharded
from workbench.policies.view_output import MixedViewOutput, ViewOutput, join_outputs
from workbench.types import Prompt, Rollout, RouteBatch, Routing, TokenScores

Positions = slice | Int[Tensor, " M"]


@dataclass(frozen=True)
class Batch:
    """Rollouts with their positions laid end to end, cut into micro-batches of `micro_batch_size` rollouts (0 = one).

    bucket  micro-batches are made of rollouts of like length, those of one example next to each other
    """

    rollouts: tuple[Rollout, ...]
    micro_batch_size: int = 0
    bucket: bool = False

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
    def rollout_order(self) -> list[int] | None:
        """The order in which rollouts fill micro-batches; None: as they are."""
        if not self.bucket or not 0 < self.micro_batch_size < len(self.rollouts):
            return None
        longest: dict[int, int] = {}  # of an example's
        for rollout, length in zip(self.rollouts, self.lengths, strict=True):
            longest[id(rollout.example)] = max(length, longest.get(id(rollout.example), 0))
        rank = {example: idx for idx, example in enumerate(longest)}
        ids = [id(rollout.example) for rollout in self.rollouts]
        return sorted(range(len(ids)), key=lambda row: (longest[ids[row]], rank[ids[row]], self.lengths[row]))

    def micro_batches(self) -> Iterator[tuple[list[int], Positions]]:
        """Per micro-batch: its rollouts and its positions."""
        size = self.micro_batch_size or max(1, len(self.rollouts))
        order = self.rollout_order or range(len(self.rollouts))
        ends = list(itertools.accumulate(self.lengths))
        for first in range(0, len(self.rollouts), size):
            rows = list(order[first : first + size])
            if self.rollout_order is None:
                yield rows, slice(ends[rows[0]] - self.lengths[rows[0]], ends[rows[-1]])
            else:
                yield rows, torch.cat([torch.arange(ends[row] - self.lengths[row], ends[row]) for row in rows])

    @cached_property
    def inverse_order(self) -> Positions:
        """Where the batch's positions are when those of its micro-batches are laid end to end."""
        return (
            slice(None)
            if self.rollout_order is None
            else torch.cat([positions for _, positions in self.micro_batches()]).argsort()
        )

    @cached_property
    def micro_batch(self) -> Int[Tensor, " N"]:
        which = torch.zeros(len(self.rollouts), dtype=torch.long)
        for number, (rows, _) in enumerate(self.micro_batches()):
            which[rows] = number
        return which[self.sequence]


Prompts = tuple[Prompt | None, ...]  # one per rollout; None: the view does not read it


def view_prompts(method: Method, rollouts: tuple[Rollout, ...]) -> dict[str, Prompts]:
    """What every view is shown, one prompt per rollout; None where it reads nothing, since the rollout lacks what its
    context shows. Rollouts of one example that are shown the same share one Prompt object.
    """
    built: dict[tuple, Prompt | None] = {}

    def prompt_of(rollout: Rollout, context: str) -> Prompt | None:
        key = (id(rollout.example), context)
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
    assert None not in prompts[method.learner], f"the learner of {method.name} must read every rollout"
    return prompts


def forward_micro_batch(
    policy: Policy, prompts: Prompts, batch: Batch, rows: list[int]
) -> ViewOutput | MixedViewOutput:
    """One micro-batch under one view that reads all of it."""
    rollouts = [batch.rollouts[row] for row in rows]
    return policy.forward(
        [prompts[row] for row in rows],
        [rollout.ids for rollout in rollouts],
        [rollout.denoising for rollout in rollouts],
    )


@torch.no_grad()
def forward_view(policy: Policy, prompts: Prompts, batch: Batch) -> ViewOutput | MixedViewOutput | None:
    """The whole batch under one view, without gradient: hidden states of completion positions and nothing else.

    Positions of rollouts that the view does not read are NaN, see ViewOutput.is_scored; None if it reads nothing at all.
    """
    is_read = [prompt is not None for prompt in prompts]
    part = replace(batch, rollouts=tuple(itertools.compress(batch.rollouts, is_read)))
    if not part.rollouts and batch.rollouts:
        return None
    read_prompts = tuple(prompt for prompt in prompts if prompt is not None)
    output = join_outputs([forward_micro_batch(policy, read_prompts, part, rows) for rows, _ in part.micro_batches()])
    output = output if part.rollout_order is None else output.part(part.inverse_order)
    return output if all(is_read) else output.spread(torch.tensor(is_read)[batch.sequence].to(output.device))


def score_views(
    method: Method, policies: dict[str, Policy], prompts: dict[str, Prompts], batch: Batch
) -> tuple[dict[str, ViewOutput | MixedViewOutput], dict[str, TokenScores]]:
    """Readouts and scalars of the views that do not learn; a view that reads nothing of the batch has no output."""
    outputs, scores = {}, {}
    for name, view in method.views.items():
        if not view.learns:
            with unsharded(policies[view.policy]):
                output = forward_view(policies[view.policy], prompts[name], batch)
            if output is None:
                scores[name] = missing_scores(batch.num_positions)
            else:
                outputs[name] = output
                scores[name] = score(output, batch.token_ids.to(output.device))
    return outputs, scores


def route(
    method: Method,
    scores: dict[str, TokenScores],
    batch: Batch,
    seed: int,
    token_texts: Callable[[tuple[int, ...]], list[str]] | None = None,
) -> Routing:
    """The method's own rule on the whole batch; every position gets exactly one regime."""
    device = next(iter(scores.values())).logprob.device if scores else torch.device("cpu")
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
            unread = view_scores[target].logprob.isnan() & (routing.regime == regime_idx)
            assert not unread.any(), f"{method.name} sends positions to {regime_name} that {target} did not read"
    return routing


def slice_routing(routing: Routing, positions: Positions) -> Routing:
    """A micro-batch's positions of a whole batch's routing."""
    advantage = None if routing.advantage is None else routing.advantage[positions]
    return replace(routing, regime=routing.regime[positions], weight=routing.weight[positions], advantage=advantage)


def coefficients(method: Method, batch: Batch, routing: Routing) -> Float[Tensor, " N"]:
    """What each position's loss counts in the step's total: the one division, for all micro-batches together."""
    counts = torch.ones(batch.num_positions)
    if method.average_over == "supervised":
        has_losses = torch.tensor([bool(regime.losses) for regime in method.regimes.values()])
        counts = (has_losses[routing.regime.cpu()] & (routing.weight.cpu() != 0)).float()
    if method.average == "position":
        return counts / counts.sum().clamp(min=1.0)
    if method.average == "domain":
        domains = [rollout.example.domain for rollout in batch.rollouts]
        numbers = {domain: number for number, domain in enumerate(dict.fromkeys(domains))}
        domain_of = torch.tensor([numbers[domain] for domain in domains], dtype=torch.long)[batch.sequence]
        sizes = torch.zeros(len(numbers)).index_add(0, domain_of, counts)
        return counts / (sizes.clamp(min=1.0) * max(1, int((sizes > 0).sum())))[domain_of]
    lengths = torch.zeros(len(batch.rollouts)).index_add(0, batch.sequence, counts)
    num_sequences = int((lengths > 0).sum())
    return counts / (lengths.clamp(min=1.0) * max(1, num_sequences))[batch.sequence]
