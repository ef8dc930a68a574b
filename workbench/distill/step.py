"""One training step of one batch, from rollouts to losses.

    scored_batch = score_batch(method, policies, batch)           score all views but the learner's, without gradient
    result = compute_step(method, policies, scored_batch, ...)    route, then forward (and backward) the learner

The training loop, probes, `workbench check` and the scorer all use these two functions.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.data.contexts import parse_context
from workbench.distill.losses import LossResult, compute_losses, score, top_k_tokens
from workbench.distill.method import Method
from workbench.distill.rollouts import without_special
from workbench.distill.scoring import (
    Batch,
    Positions,
    Prompts,
    forward_micro_batch,
    forward_view,
    loss_normalizers,
    of_view,
    prefetch_views,
    route,
    score_views,
    slice_routing,
    view_prompts,
)
from workbench.distributed import ALONE, ProcessGroup
from workbench.errors import RunError
from workbench.policies import Policy, prefetches
from workbench.policies.by_domain import member
from workbench.policies.fsdp import layer_by_layer, lockstep_forward, num_synced_passes
from workbench.policies.row_sizes import RowSize
from workbench.policies.view_output import ViewOutput
from workbench.types import Evidence, Rollout, Routing, TokenScores

TopTokens = tuple[Tensor, Tensor]  # ids and log-probs (M, K) of the most likely tokens; M differs by micro-batch


class NonFiniteError(RunError):
    """A loss or a gradient norm is infinite or NaN. Raised before any weight changes."""


@dataclass(frozen=True)
class TopKTokens:
    """The most likely tokens at M recorded positions: view name -> ids and log-probs."""

    index: Int[Tensor, " M"]
    top: dict[str, tuple[Int[Tensor, "M K"], Float[Tensor, "M K"]]]


@dataclass(frozen=True)
class ScoredBatch:
    """A batch with the outputs of all views but the learner's, and the scores of those that are not late.

    awaited  views whose policies compute elsewhere and are still at it; `compute_step` waits for them
    """

    batch: Batch
    prompts: dict[str, Prompts]
    outputs: dict[str, ViewOutput]
    scores: dict[str, TokenScores]
    awaited: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """Scores, routing and losses of a batch; the trace writer stores them."""

    method: Method
    batch: Batch
    prompts: dict[str, Prompts]
    scores: dict[str, TokenScores]  # of every view, in the method's order
    routing: Routing
    loss: Float[Tensor, " N"]
    loss_normalizer: Float[Tensor, " N"]
    top_k_tokens: TopKTokens | None
    scored_by: dict[str, tuple[str, ...]]  # by view, the name of the policy that scored each rollout
    of_all_ranks: "StepResult | None" = None  # of the global batch, without prompts; None: there is one rank

    @property
    def global_batch_result(self) -> "StepResult":
        """The result for the global batch, which is the batches of all ranks."""
        return self.of_all_ranks or self


def score_batch(
    method: Method,
    policies: dict[str, Policy],
    batch: Batch,
    peers: tuple[tuple[Rollout, ...], ...] = (),
    *,
    waits: bool = True,
) -> ScoredBatch:
    """Add the method's feedback to the rollouts, if any, then score them under all views but the learner's.

    peers  rollouts of each other learner for the same examples
    waits  for views whose policies compute elsewhere; otherwise these are `awaited`
    """
    if method.annotate is not None:
        batch = replace(batch, rollouts=method.annotate(batch.rollouts, *peers))
        batch = replace(batch, rollouts=tuple(_clean_feedback(method, policies, rollout) for rollout in batch.rollouts))
    prompts = view_prompts(method, batch.rollouts)
    batch = of_view(policies[method.views[method.learner_view].policy], prompts[method.learner_view], batch)
    awaited = prefetch_views(method, policies, prompts, batch)
    local = [name for name, view in method.views.items() if not view.learns and name not in awaited]
    scored_batch = ScoredBatch(batch, prompts, *score_views(method, policies, prompts, batch, local), awaited)
    return _score_awaited(method, policies, scored_batch) if waits else scored_batch


def _score_awaited(method: Method, policies: dict[str, Policy], scored_batch: ScoredBatch) -> ScoredBatch:
    """The batch with the outputs and scores of the views that it awaits."""
    if not scored_batch.awaited:
        return scored_batch
    outputs, scores = score_views(method, policies, scored_batch.prompts, scored_batch.batch, scored_batch.awaited)
    return replace(
        scored_batch, outputs=scored_batch.outputs | outputs, scores=scored_batch.scores | scores, awaited=()
    )


def _clean_feedback(method: Method, policies: dict[str, Policy], rollout: Rollout) -> Rollout:
    """Remove special tokens of the policies that score with the feedback from its text."""
    feedback = rollout.feedback
    for view in method.views.values() if feedback else ():
        if "feedback" in parse_context(view.context):
            feedback = without_special(policies[view.policy], feedback, "feedback")
    return rollout if feedback == rollout.feedback else replace(rollout, feedback=feedback)


def join_collectives(method: Method, policies: dict[str, Policy]) -> None:
    """Take part in the FSDP all-gathers while rank 0 scores the probes. Call on every other rank."""
    scoring = [policies[view.policy] for view in method.views.values() if not view.learns]
    for policy in (*sorted(scoring, key=prefetches), policies["student"]):  # awaited views come after the others
        with layer_by_layer(policy):
            pass


def compute_step(
    method: Method,
    policies: dict[str, Policy],
    scored_batch: ScoredBatch,
    *,
    seed: int,
    top_k: int = 0,
    top_k_rollouts: int = 0,
    backward: Callable[[Tensor], None] | None = None,
    during_last_pass: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    process_group: ProcessGroup = ALONE,
) -> StepResult:
    """Route the whole batch, then compute the learner's losses micro-batch by micro-batch.

    seed            of routing rules that draw at random
    top_k           most likely tokens to record per view, at positions of the first `top_k_rollouts` rollouts
    backward        called with each micro-batch's share of the total loss; None = no gradient
    during_last_pass  context of its last call
    process_group   ranks that each hold a slice of the batch; routing and loss_normalizers cover the whole batch
    Raises          NonFiniteError naming the first position
    """
    student, learner, batch = policies["student"], method.learner_view, scored_batch.batch
    num_passes = batch.num_micro_batches if backward is None else num_synced_passes(student, batch.num_micro_batches)
    passes = _LearnerPasses(method, student, scored_batch, num_passes, backward, during_last_pass)
    learner_scores, learner_output = {}, None
    with torch.set_grad_enabled(backward is not None):
        if learner in method.router_views:
            learner_scores[learner], learner_output = passes.score()
        elif scored_batch.awaited and num_passes == 1:
            learner_output = passes.forward()
        scored_batch = _score_awaited(method, policies, scored_batch)
        passes, scores = replace(passes, scored_batch=scored_batch), scored_batch.scores | learner_scores
        _require_numbers(method, scored_batch, scores)
        global_batch = _all_gather_scores(process_group, batch, scores, student.device)
        global_routing = route(
            method, global_batch.scores, global_batch.batch, seed, student.token_texts, student.device
        )
        normalizers = loss_normalizers(method, global_batch.batch, global_routing)
        global_loss_normalizer = normalizers.to(global_routing.regime.device)
        routing = slice_routing(global_routing, global_batch.positions)
        loss_normalizer = global_loss_normalizer[global_batch.positions]
        num_rollouts = max(0, top_k_rollouts - global_batch.first_rollout)
        num_recorded = sum(batch.lengths[:num_rollouts]) if top_k else 0
        losses, top_tokens = passes.forward_backward(learner_output, routing, loss_normalizer, num_recorded, top_k)
    scores |= _late_scores(method, scored_batch, losses)
    _require_finite(batch, losses, scores)
    scores[learner] = _concatenate_scores([part.scores for part in losses], batch.inverse_order)
    result = StepResult(
        method,
        batch,
        scored_batch.prompts,
        {view: scores[view] for view in method.views},
        routing,
        torch.cat([part.loss for part in losses])[batch.inverse_order],
        loss_normalizer,
        _collect_top_k(method, scored_batch, top_tokens, num_recorded, top_k),
        _scored_by(method, policies, batch),
    )
    return _with_global_batch_result(result, global_batch, global_routing, global_loss_normalizer, process_group)


@dataclass(frozen=True)
class _LearnerPasses:
    """The learner's forward passes over a batch.

    num_passes  forward passes of every rank: sharded weights need equally many, so a rank with fewer micro-batches
                adds passes of zero loss
    backward    called with each micro-batch's share of the total loss; None = no gradient
    during_last_pass  context of its call for the last micro-batch
    """

    method: Method
    student: Policy
    scored_batch: ScoredBatch
    num_passes: int
    backward: Callable[[Tensor], None] | None
    during_last_pass: Callable[[], contextlib.AbstractContextManager[None]]

    def score(self) -> tuple[TokenScores, ViewOutput | None]:
        """Scores for the routing rule, and the output if that forward pass, a single one, also serves the loss."""
        batch, prompts = self.scored_batch.batch, self.scored_batch.prompts[self.method.learner_view]
        if self.num_passes == 1:
            output = self.forward()
        else:
            with layer_by_layer(self.student):
                output = forward_view(self.student, prompts, batch)
        return score(output, batch.token_ids.to(output.device)), output if self.num_passes == 1 else None

    def forward(self) -> ViewOutput:
        """Output of the only pass over the batch."""
        with self._lockstep():
            return self._forward(next(self.scored_batch.batch.micro_batches())[0])

    def forward_backward(
        self,
        learner_output: ViewOutput | None,
        routing: Routing,
        loss_normalizer: Float[Tensor, " N"],
        num_recorded: int,
        top_k: int,
    ) -> tuple[list[LossResult], list[TopTokens]]:
        """Losses of each micro-batch, with a backward pass each, and the learner's most likely tokens.

        learner_output  output for the whole batch, if the routing rule needed it already
        num_recorded    leading positions of the batch whose most likely tokens are recorded
        """
        batch = self.scored_batch.batch
        micro_batches = list(batch.micro_batches())
        token_ids = batch.token_ids.to(loss_normalizer.device)
        is_recorded = torch.arange(batch.num_positions, device=loss_normalizer.device) < num_recorded
        losses, top_tokens = [], []
        with self._lockstep():
            for rollout_indices, positions in micro_batches:
                output = learner_output or self._forward(rollout_indices)
                result = compute_losses(
                    output,
                    self._targets(positions),
                    token_ids[positions],
                    regimes=tuple(self.method.regimes.values()),
                    routing=slice_routing(routing, positions),
                    loss_normalizer=loss_normalizer[positions],
                    late_views=self.method.late_views,
                )
                losses.append(result)
                top_tokens.append(top_k_tokens(output, is_recorded[positions].nonzero().squeeze(-1), top_k))
                if self.backward is not None:
                    is_last = len(losses) == len(micro_batches)
                    with self.during_last_pass() if is_last else contextlib.nullcontext():
                        self.backward(result.total)
            for _ in range(self.num_passes - len(micro_batches)):  # another rank has more micro-batches
                self.backward(self._forward(micro_batches[0][0]).hidden.sum() * 0.0)
        return losses, top_tokens

    def _forward(self, rollout_indices: list[int]) -> ViewOutput:
        prompts = self.scored_batch.prompts[self.method.learner_view]
        return forward_micro_batch(self.student, prompts, self.scored_batch.batch, rollout_indices)

    def _targets(self, positions: Positions) -> dict[str, ViewOutput]:
        """Outputs of the views that losses pull toward, at the positions of a micro-batch."""
        outputs = self.scored_batch.outputs
        return {target: outputs[target].select(positions) for target in self.method.targets if target in outputs}

    def _lockstep(self) -> contextlib.AbstractContextManager[None]:
        """Context of passes with gradient: with sharded weights, all ranks pass through the layers together."""
        return contextlib.nullcontext() if self.backward is None else lockstep_forward(self.student)


def _late_scores(method: Method, scored_batch: ScoredBatch, losses: list[LossResult]) -> dict[str, TokenScores]:
    """Scores of the method's late views, from the passes of the micro-batches. Raises NonFiniteError for a NaN."""
    scores = {
        view: _concatenate_scores([part.target_scores[view] for part in losses], scored_batch.batch.inverse_order)
        for view in method.late_views
    }
    _require_numbers(method, scored_batch, scores)
    return scores


def _concatenate_scores(parts: list[TokenScores], order: Positions) -> TokenScores:
    return TokenScores(*(torch.cat([getattr(part, key) for part in parts])[order] for key in vars(parts[0])))


def _collect_top_k(
    method: Method, scored_batch: ScoredBatch, top_tokens: list[TopTokens], num_recorded: int, count: int
) -> TopKTokens | None:
    """The most likely tokens of all views at the first `num_recorded` positions of the batch.

    top_tokens  those of the learner, by micro-batch
    """
    if not num_recorded:
        return None
    batch, index = scored_batch.batch, torch.arange(num_recorded, device=top_tokens[0][0].device)
    by_view = {view: top_k_tokens(output, index, count) for view, output in scored_batch.outputs.items()}
    order = torch.cat([torch.arange(batch.num_positions)[positions] for _, positions in batch.micro_batches()])
    order = order[order < num_recorded].argsort().to(index.device)  # from micro-batch order to batch order
    by_view[method.learner_view] = tuple(torch.cat(values)[order] for values in zip(*top_tokens, strict=True))
    return TopKTokens(index, {view: by_view[view] for view in method.views if view in by_view})


@dataclass(frozen=True)
class _GlobalBatch:
    """Batch and scores of all ranks, and this rank's slice of their positions."""

    batch: Batch
    scores: dict[str, TokenScores]
    positions: slice
    first_rollout: int


def _all_gather_scores(
    process_group: ProcessGroup, batch: Batch, scores: dict[str, TokenScores], device: torch.device
) -> _GlobalBatch:
    """All-gather rollouts (without images and evidence) and scores; with one rank, the batch itself."""
    if process_group.size == 1:
        return _GlobalBatch(batch, scores, slice(0, batch.num_positions), 0)
    text_examples = {
        id(rollout.example): replace(rollout.example, images=(), evidence=Evidence()) for rollout in batch.rollouts
    }
    rollouts = tuple(replace(rollout, example=text_examples[id(rollout.example)]) for rollout in batch.rollouts)
    numbers = {(name, key): value.cpu() for name, view in scores.items() for key, value in vars(view).items()}
    sizes = _named_by_rank(batch.row_sizes, process_group.rank)
    gathered = process_group.all_gather_object((rollouts, numbers, sizes))
    rollouts_by_rank, numbers_by_rank, sizes_by_rank = zip(*gathered, strict=True)
    global_batch = replace(
        batch,
        rollouts=tuple(itertools.chain.from_iterable(rollouts_by_rank)),
        row_sizes=tuple(itertools.chain.from_iterable(sizes_by_rank)),
    )
    joined = {key: value.to(device) for key, value in _concatenate(numbers_by_rank).items()}
    global_scores = {
        name: TokenScores(**{key: joined[name, key] for key in vars(view)}) for name, view in scores.items()
    }
    earlier = list(itertools.chain.from_iterable(rollouts_by_rank[: process_group.rank]))  # rollouts of lower ranks
    start = sum(len(rollout.ids) for rollout in earlier)
    return _GlobalBatch(global_batch, global_scores, slice(start, start + batch.num_positions), len(earlier))


def _named_by_rank(sizes: Sequence[RowSize], rank: int) -> list[RowSize]:
    """Rename the prompts of row sizes, so that they are unequal to those of other ranks."""
    idx = {prompt: idx for idx, prompt in enumerate(dict.fromkeys(size.prompt for size in sizes))}
    return [size._replace(prompt=(rank, idx[size.prompt])) for size in sizes]


def _with_global_batch_result(
    result: StepResult,
    global_batch: _GlobalBatch,
    routing: Routing,
    loss_normalizer: Float[Tensor, " G"],
    process_group: ProcessGroup,
) -> StepResult:
    """Attach the result for the global batch; `routing` and `loss_normalizer` cover that batch."""
    if global_batch.batch is result.batch:
        return result
    method = result.method
    with_losses = (method.learner_view, *method.late_views)
    numbers = {(view, key): value.cpu() for view in with_losses for key, value in vars(result.scores[view]).items()}
    gathered = _concatenate(process_group.all_gather_object({("", "loss"): result.loss.cpu(), **numbers}))
    loss = gathered.pop(("", "loss"))
    keys = vars(result.scores[method.learner_view])
    scores = global_batch.scores | {
        view: TokenScores(**{key: gathered[view, key] for key in keys}) for view in with_losses
    }
    scores = {view: scores[view] for view in method.views}
    global_batch_result = StepResult(method, global_batch.batch, {}, scores, routing, loss, loss_normalizer, None, {})
    return replace(result, of_all_ranks=global_batch_result)


def _concatenate(parts: Sequence[dict]) -> dict:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _scored_by(method: Method, policies: dict[str, Policy], batch: Batch) -> dict[str, tuple[str, ...]]:
    """By view, the name of the policy that scored each rollout."""
    domains = [rollout.example.domain for rollout in batch.rollouts]
    scored_by = {}
    for name, view in method.views.items():
        policy = policies[view.policy]
        members = [member(policy, domain) for domain in domains]
        scored_by[name] = tuple(view.policy if scorer is policy else scorer.name for scorer in members)
    return scored_by


def _require_numbers(method: Method, scored_batch: ScoredBatch, scores: dict[str, TokenScores]) -> None:
    """Raise NonFiniteError for a NaN log-prob, which a routing rule would silently compare as false."""
    batch = scored_batch.batch
    for name, values in scores.items():
        has_prompt = torch.tensor([prompt is not None for prompt in scored_batch.prompts[name]])[batch.sequence]
        wrong = (torch.isnan(values.logprob).cpu() & has_prompt).nonzero().squeeze(-1)
        if wrong.numel():
            idx, view = int(wrong[0]), method.views[name]
            raise NonFiniteError(
                f"view {name} ({view.policy} / {view.context}) has NaN log-probs at {wrong.numel()} of "
                f"{batch.num_positions} positions; the first is token {int(batch.position[idx])} of an answer to "
                f"{batch.rollouts[int(batch.sequence[idx])].example.id}."
            )


def _require_finite(batch: Batch, losses: list[LossResult], scores: dict[str, TokenScores]) -> None:
    """Raise NonFiniteError for an infinite or NaN loss; `losses` are those of the micro-batches."""
    for (_, positions), part in zip(batch.micro_batches(), losses, strict=True):
        wrong = (~torch.isfinite(part.loss)).nonzero().squeeze(-1)
        if not wrong.numel():
            continue
        idx = int(torch.arange(batch.num_positions)[positions][wrong[0].cpu()])
        rollout = batch.rollouts[int(batch.sequence[idx])]
        logprobs = {view: float(values.logprob[idx]) for view, values in scores.items()}
        logprobs["learner"] = float(part.scores.logprob[wrong[0]])
        values = ", ".join(f"{view} {logprob:.3g}" for view, logprob in logprobs.items())
        raise NonFiniteError(
            f"the loss is not finite at {wrong.numel()} of {part.loss.numel()} positions; the first is token "
            f"{int(batch.position[idx])} of an answer to {rollout.example.id} (log-probs: {values})."
        )
