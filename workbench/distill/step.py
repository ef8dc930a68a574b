"""One batch from rollouts to losses: read by every view, routed, supervised. The loop, probes, `check` and the API use it.

scored_batch = score_batch(method, policies, batch)               every view that does not learn, without gradient
scored = compute_step(method, policies, scored_batch, ...)    route, then the learner; with gradient if asked for
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.data.contexts import parse_context
from workbench.distill.losses import LossResult, alternatives, compute_losses, score
from workbench.distill.method import Method
from workbench.distill.rollouts import without_special
from workbench.distill.scoring import (
    Batch,
    Positions,
    Prompts,
    coefficients,
    forward_micro_batch,
    forward_view,
    route,
    score_views,
    slice_routing,
    view_prompts,
)
from workbench.distributed import ALONE, Group
from workbench.errors import RunError
from workbench.policies import Policy
from workbench.policies.by_domain import member
from workbench.policies.fsdp import lockstep_forward, num_synced_passes, unsharded
from workbench.policies.view_output import MixedViewOutput, ViewOutput
from workbench.types import Evidence, Rollout, Routing, TokenScores


class NonFiniteError(RunError):
    """A position's loss or the gradient is infinite or not a number; raised before any weight was changed by it."""


@dataclass(frozen=True)
class Alternatives:
    """The most likely tokens of some views at M recorded positions: view name -> ids and log-probs."""

    index: Int[Tensor, " M"]
    top: dict[str, tuple[Int[Tensor, "M K"], Float[Tensor, "M K"]]]


@dataclass(frozen=True)
class ScoredBatch:
    """A batch as the views that do not learn read it."""

    batch: Batch
    prompts: dict[str, Prompts]
    outputs: dict[str, ViewOutput | MixedViewOutput]
    scores: dict[str, TokenScores]


@dataclass(frozen=True)
class StepResult:
    """A routed and supervised batch: all that is recorded about it."""

    method: Method
    batch: Batch
    prompts: dict[str, Prompts]
    scores: dict[str, TokenScores]  # of every view, in the method's order
    routing: Routing
    loss: Float[Tensor, " N"]
    coefficient: Float[Tensor, " N"]
    alternatives: Alternatives | None
    readers: dict[str, tuple[str, ...]]  # by view, the name of the policy that read each rollout
    across_ranks: "StepResult | None" = None  # the batch of all processes: numbers only, None = this is it

    @property
    def global_result(self) -> "StepResult":
        """The batch of all processes that train the run."""
        return self.across_ranks or self


def score_batch(
    method: Method, policies: dict[str, Policy], batch: Batch, peers: tuple[tuple[Rollout, ...], ...] = ()
) -> ScoredBatch:
    """Every view that does not learn, after the method has written its feedback, if it writes any.

    peers  what the run's other learners wrote about the same examples
    """
    if method.annotate is not None:
        batch = replace(batch, rollouts=method.annotate(batch.rollouts, *peers))
        batch = replace(
            batch, rollouts=tuple(_with_encodable_feedback(rollout, method, policies) for rollout in batch.rollouts)
        )
    prompts = view_prompts(method, batch.rollouts)
    outputs, scores = score_views(method, policies, prompts, batch)
    return ScoredBatch(batch, prompts, outputs, scores)


def _with_encodable_feedback(rollout: Rollout, method: Method, policies: dict[str, Policy]) -> Rollout:
    """The rollout, its feedback without special tokens of the policies that are shown it."""
    feedback = rollout.feedback
    for view in method.views.values() if feedback else ():
        if "feedback" in parse_context(view.context):
            feedback = without_special(policies[view.policy], feedback, "feedback")
    return rollout if feedback == rollout.feedback else replace(rollout, feedback=feedback)


def join_collectives(method: Method, policies: dict[str, Policy]) -> None:
    """What a process does while another alone reads and supervises a batch without gradient: it gives its parts of weights."""
    for view in method.views.values():
        if not view.learns:
            with unsharded(policies[view.policy]):
                pass
    with unsharded(policies["student"]):
        pass


def compute_step(
    method: Method,
    policies: dict[str, Policy],
    scored_batch: ScoredBatch,
    *,
    seed: int,
    num_alternatives: int = 0,
    alternatives_of: int = 0,
    backward: Callable[[Tensor], None] | None = None,
    group: Group = ALONE,
) -> StepResult:
    """Route the whole batch, then the learner's pass, a micro-batch at a time.

    backward          called with each micro-batch's share of the total loss; None: no gradient is computed
    num_alternatives  most likely tokens kept per view, at positions of the first `alternatives_of` rollouts
    group             processes that each have a part of the batch: routing and coefficients are of all of it

    Raises: NonFiniteError naming the position.
    """
    batch, name, student = scored_batch.batch, method.learner, policies["student"]
    prompts, scores, parts = scored_batch.prompts[name], dict(scored_batch.scores), list(batch.micro_batches())
    whole = None  # the learner's output, where one forward pass serves both the rule and the loss
    passes = len(parts) if backward is None else num_synced_passes(student, len(parts))
    passing = contextlib.nullcontext if backward is None else functools.partial(lockstep_forward, student)
    with torch.set_grad_enabled(backward is not None):
        if name in method.router_views:
            whole, reading = _forward_learner(student, prompts, batch, passing if passes == 1 else None)
            scores[name] = score(reading, batch.token_ids.to(reading.device))
        _require_numbers(method, scored_batch, scores)
        everybody = _gather(group, batch, scores)
        whole_routing = route(method, everybody.scores, everybody.batch, seed, student.token_texts)
        device, here = whole_routing.regime.device, everybody.positions
        whole_coefficient = coefficients(method, everybody.batch, whole_routing).to(device)
        routing, coefficient = slice_routing(whole_routing, here), whole_coefficient[here]
        token_ids, first = batch.token_ids.to(device), max(0, alternatives_of - everybody.first_rollout)
        recorded = torch.arange(sum(batch.lengths[:first]) if num_alternatives else 0, device=device)
        places, back = torch.arange(batch.num_positions, device=device), batch.inverse_order
        results, likely = [], []
        with passing():
            for rows, positions in parts:
                output = whole or forward_micro_batch(student, prompts, batch, rows)
                result = _micro_batch_losses(method, scored_batch, output, positions, token_ids, routing, coefficient)
                inside = (places[positions] < recorded.numel()).nonzero().squeeze(-1)
                likely.append(alternatives(output, inside, num_alternatives))
                results.append(result)
                if backward is not None:
                    backward(result.total)
            for _ in range(passes - len(parts)):  # others have more: all go through the layers together
                backward(forward_micro_batch(student, prompts, batch, parts[0][0]).hidden.sum() * 0.0)
    for (_, positions), result in zip(parts, results, strict=True):
        _require_finite(batch, places[positions], result, scores)
    scores[name] = _join_scores([result.scores for result in results], back)
    order = torch.cat([places[positions] for _, positions in parts])
    order = order[order < recorded.numel()].argsort()
    kept = _recorded_alternatives(method, scored_batch, recorded, likely, order, num_alternatives)
    scores = {view: scores[view] for view in method.views}
    loss = torch.cat([result.loss for result in results])[back]
    policy_of = {view: method.views[view].policy for view in method.views}
    readers = {view: _scored_by(policies[policy], policy, batch) for view, policy in policy_of.items()}
    scored = StepResult(method, batch, scored_batch.prompts, scores, routing, loss, coefficient, kept, readers)
    return _with_global_result(scored, everybody, whole_routing, whole_coefficient, group)


def _forward_learner(
    learner: Policy, prompts: Prompts, batch: Batch, passing: Callable | None
) -> tuple[ViewOutput | MixedViewOutput | None, ViewOutput | MixedViewOutput]:
    """What the rule is told of the learner, twice if its one forward pass, inside `passing`, is also the one of the loss."""
    if passing is None:
        with unsharded(learner):
            return None, forward_view(learner, prompts, batch)
    with passing():
        output = forward_micro_batch(learner, prompts, batch, next(batch.micro_batches())[0])
    return output, output


def _join_scores(parts: list[TokenScores], back: Positions) -> TokenScores:
    return TokenScores(*(torch.cat([getattr(part, key) for part in parts])[back] for key in vars(parts[0])))


def _micro_batch_losses(
    method: Method,
    scored_batch: ScoredBatch,
    output: ViewOutput | MixedViewOutput,
    positions: Positions,
    token_ids: Int[Tensor, " N"],
    routing: Routing,
    coefficient: Float[Tensor, " N"],
) -> LossResult:
    """The losses of one micro-batch; token ids, routing and coefficient are of the whole batch."""
    targets = {
        target: scored_batch.outputs[target].part(positions)
        for target in method.targets
        if target in scored_batch.outputs
    }
    return compute_losses(
        output,
        targets,
        token_ids[positions],
        regimes=tuple(method.regimes.values()),
        routing=slice_routing(routing, positions),
        coefficient=coefficient[positions],
    )


def _recorded_alternatives(
    method: Method,
    scored_batch: ScoredBatch,
    recorded: Tensor,
    likely: list[tuple[Tensor, Tensor]],
    order: Tensor,
    count: int,
) -> Alternatives | None:
    """The most likely tokens of all views at the recorded positions.

    likely  the learner's, by micro-batch; `order` brings them into the batch's
    """
    if not recorded.numel():
        return None
    by_view = {view: alternatives(output, recorded, count) for view, output in scored_batch.outputs.items()}
    by_view[method.learner] = tuple(torch.cat(values)[order] for values in zip(*likely, strict=True))
    return Alternatives(recorded, {view: by_view[view] for view in method.views if view in by_view})


def _with_global_result(
    scored: StepResult, everybody: "_GlobalBatch", routing: Routing, coefficient: Tensor, group: Group
) -> StepResult:
    """The batch with the numbers of all processes' batches; routing and coefficient are of those."""
    if everybody.batch is scored.batch:
        return scored
    method = scored.method
    learner_scores = {key: value.cpu() for key, value in vars(scored.scores[method.learner]).items()}
    learned = _concatenated(group.all_gather_object({"loss": scored.loss.cpu(), **learner_scores}))
    loss = learned.pop("loss")
    scores = {
        view: TokenScores(**learned) if view == method.learner else everybody.scores[view] for view in method.views
    }
    whole = StepResult(method, everybody.batch, {}, scores, routing, loss, coefficient, None, {})
    return replace(scored, across_ranks=whole)


@dataclass(frozen=True)
class _GlobalBatch:
    """The batch and the scores of all processes, and where this one's are in them."""

    batch: Batch
    scores: dict[str, TokenScores]
    positions: slice
    first_rollout: int


def _gather(group: Group, batch: Batch, scores: dict[str, TokenScores]) -> _GlobalBatch:
    if group.size == 1:
        return _GlobalBatch(batch, scores, slice(0, batch.num_positions), 0)
    device = next(iter(scores.values())).logprob.device if scores else torch.device("cpu")
    light = {
        id(rollout.example): replace(rollout.example, images=(), evidence=Evidence()) for rollout in batch.rollouts
    }
    rollouts = tuple(replace(rollout, example=light[id(rollout.example)]) for rollout in batch.rollouts)
    numbers = {(name, key): value.cpu() for name, view in scores.items() for key, value in vars(view).items()}
    rollouts_by_rank, numbers_by_rank = zip(*group.all_gather_object((rollouts, numbers)), strict=True)
    global_batch = replace(batch, rollouts=tuple(itertools.chain.from_iterable(rollouts_by_rank)))
    joined = {key: value.to(device) for key, value in _concatenated(numbers_by_rank).items()}
    global_scores = {
        name: TokenScores(**{key: joined[name, key] for key in vars(view)}) for name, view in scores.items()
    }
    earlier = list(itertools.chain.from_iterable(rollouts_by_rank[: group.rank]))  # rollouts of lower ranks
    start = sum(len(rollout.ids) for rollout in earlier)
    return _GlobalBatch(global_batch, global_scores, slice(start, start + batch.num_positions), len(earlier))


def _concatenated(parts: Sequence[dict]) -> dict:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _scored_by(policy: Policy, name: str, batch: Batch) -> tuple[str, ...]:
    domains = [rollout.example.domain for rollout in batch.rollouts]
    return tuple(name if (reader := member(policy, domain)) is policy else reader.name for domain in domains)


def _require_numbers(method: Method, scored_batch: ScoredBatch, scores: dict[str, TokenScores]) -> None:
    """A rule would compare what is no number as false, and send the token somewhere without a word."""
    batch = scored_batch.batch
    for name, values in scores.items():
        is_read = torch.tensor([prompt is not None for prompt in scored_batch.prompts[name]])[batch.sequence]
        wrong = (torch.isnan(values.logprob).cpu() & is_read).nonzero().squeeze(-1)
        if wrong.numel():
            idx, view = int(wrong[0]), method.views[name]
            raise NonFiniteError(
                f"view {name} ({view.policy} / {view.context}) has no number for {wrong.numel()} of {batch.num_positions} "
                f"positions; the first is token {int(batch.position[idx])} of an answer to "
                f"{batch.rollouts[int(batch.sequence[idx])].example.id}."
            )


def _require_finite(batch: Batch, places: Tensor, result: LossResult, scores: dict[str, TokenScores]) -> None:
    """places  of the result's positions in the batch"""
    wrong = (~torch.isfinite(result.loss)).nonzero().squeeze(-1)
    if not wrong.numel():
        return
    idx = int(places[wrong[0]])
    rollout = batch.rollouts[int(batch.sequence[idx])]
    logprobs = {view: float(values.logprob[idx]) for view, values in scores.items()}
    logprobs["learner"] = float(result.scores.logprob[wrong[0]])
    values = ", ".join(f"{view} {logprob:.3g}" for view, logprob in logprobs.items())
    raise NonFiniteError(
        f"the loss of {wrong.numel()} of {result.loss.numel()} positions is not a finite number; the first is token "
        f"{int(batch.position[idx])} of an answer to {rollout.example.id} (log-probs: {values})."
    )
