"""One batch from rollouts to losses: read by every view, routed, supervised. The loop, probes, `check` and the API use it.

readings = read_batch(method, policies, batch)               every view that does not learn, without gradient
scored = supervise_batch(method, policies, readings, ...)    route, then the learner; with gradient if asked for
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.distributed import ALONE, Group
from workbench.errors import RunError
from workbench.losses import Supervision, alternatives, score, supervise
from workbench.method import Method
from workbench.policies import Policy
from workbench.policies.by_domain import member
from workbench.policies.readout import MixedReadout, Readout
from workbench.scoring import (
    Batch,
    Prompts,
    coefficients,
    part_of_routing,
    read_part,
    read_view,
    route,
    score_views,
    view_prompts,
)
from workbench.sharding import entangled, rounds, together
from workbench.types import Evidence, Rollout, Routing, TokenScores


class NotFinite(RunError):
    """A position's loss or the gradient is infinite or not a number; raised before any weight was changed by it."""


@dataclass(frozen=True)
class Alternatives:
    """The most likely tokens of some views at M recorded positions: view name -> ids and log-probs."""

    index: Int[Tensor, " M"]
    top: dict[str, tuple[Int[Tensor, "M K"], Float[Tensor, "M K"]]]


@dataclass(frozen=True)
class Readings:
    """A batch as the views that do not learn read it."""

    batch: Batch
    prompts: dict[str, Prompts]
    readouts: dict[str, Readout | MixedReadout]
    scores: dict[str, TokenScores]


@dataclass(frozen=True)
class Scored:
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
    everybody: "Scored | None" = None  # the batch of all processes: numbers only, None = this is it

    @property
    def whole(self) -> "Scored":
        """The batch of all processes that train the run."""
        return self.everybody or self


def read_batch(
    method: Method, policies: dict[str, Policy], batch: Batch, peers: tuple[tuple[Rollout, ...], ...] = ()
) -> Readings:
    """Every view that does not learn, after the method has written its feedback, if it writes any.

    peers  what the run's other learners wrote about the same examples
    """
    if method.annotate is not None:
        batch = replace(batch, rollouts=method.annotate(batch.rollouts, *peers))
    prompts = view_prompts(method, batch.rollouts)
    readouts, scores = score_views(method, policies, prompts, batch)
    return Readings(batch, prompts, readouts, scores)


def attend(method: Method, policies: dict[str, Policy]) -> None:
    """What a process does while another alone reads and supervises a batch without gradient: it gives its parts of weights."""
    for view in method.views.values():
        if not view.learns:
            with together(policies[view.policy]):
                pass
    with together(policies["student"]):
        pass


def supervise_batch(
    method: Method,
    policies: dict[str, Policy],
    readings: Readings,
    *,
    seed: int,
    num_alternatives: int = 0,
    alternatives_of: int = 0,
    backward: Callable[[Tensor], None] | None = None,
    group: Group = ALONE,
) -> Scored:
    """Route the whole batch, then the learner's pass, a micro-batch at a time.

    backward          called with each micro-batch's share of the total loss; None: no gradient is computed
    num_alternatives  most likely tokens kept per view, at positions of the first `alternatives_of` rollouts
    group             processes that each have a part of the batch: routing and coefficients are of all of it

    Raises: NotFinite naming the position.
    """
    batch, name, own = readings.batch, method.learner, policies["student"]
    prompts, scores, parts = readings.prompts[name], dict(readings.scores), list(batch.parts())
    whole = None  # the learner's readout, where one forward pass serves both the rule and the loss
    passes = len(parts) if backward is None else rounds(own, len(parts))
    passing = contextlib.nullcontext if backward is None else functools.partial(entangled, own)
    with torch.set_grad_enabled(backward is not None):
        if name in method.reads:
            if passes == 1:
                with passing():
                    whole = reading = read_part(own, prompts, batch, parts[0][0])
            else:
                with together(own):
                    reading = read_view(own, prompts, batch)
            scores[name] = score(reading, batch.token_ids.to(reading.device))
        _require_numbers(method, readings, scores)
        everybody = _gather(group, batch, scores)
        whole_routing = route(method, everybody.scores, everybody.batch, seed, own.token_texts)
        device, here = whole_routing.regime.device, everybody.positions
        whole_coefficient = coefficients(method, everybody.batch, whole_routing).to(device)
        routing, coefficient = part_of_routing(whole_routing, here), whole_coefficient[here]
        token_ids, first = batch.token_ids.to(device), max(0, alternatives_of - everybody.first_rollout)
        recorded = torch.arange(sum(batch.lengths[:first]) if num_alternatives else 0, device=device)
        places, back = torch.arange(batch.num_positions, device=device), batch.back
        results, likely = [], []
        with passing():
            for rows, positions in parts:
                readout = whole or read_part(own, prompts, batch, rows)
                result = supervise(
                    readout,
                    {
                        target: readings.readouts[target].part(positions)
                        for target in method.targets
                        if target in readings.readouts
                    },
                    token_ids[positions],
                    regimes=tuple(method.regimes.values()),
                    routing=part_of_routing(routing, positions),
                    coefficient=coefficient[positions],
                )
                inside = (places[positions] < recorded.numel()).nonzero().squeeze(-1)
                likely.append(alternatives(readout, inside, num_alternatives))
                results.append(result)
                if backward is not None:
                    backward(result.total)
            for _ in range(passes - len(parts)):  # others have more: all go through the layers together
                backward(read_part(own, prompts, batch, parts[0][0]).hidden.sum() * 0.0)
    for (_, positions), result in zip(parts, results, strict=True):
        _require_finite(batch, places[positions], result, scores)
    scores[name] = TokenScores(
        *(torch.cat([getattr(r.scores, key) for r in results])[back] for key in vars(results[0].scores))
    )
    kept = None
    if recorded.numel():
        found = {view: alternatives(readout, recorded, num_alternatives) for view, readout in readings.readouts.items()}
        there = torch.cat([places[positions] for _, positions in parts])
        order = there[there < recorded.numel()].argsort()
        found[name] = tuple(torch.cat(values)[order] for values in zip(*likely, strict=True))
        kept = Alternatives(recorded, {view: found[view] for view in method.views if view in found})
    scores = {view: scores[view] for view in method.views}
    loss = torch.cat([result.loss for result in results])[back]
    readers = {view: _readers(policies[one.policy], one.policy, batch) for view, one in method.views.items()}
    found = Scored(method, batch, readings.prompts, scores, routing, loss, coefficient, kept, readers)
    if everybody.batch is batch:
        return found
    learned = _concatenated(
        group.exchange({"loss": loss.cpu(), **{key: value.cpu() for key, value in vars(scores[name]).items()}})
    )
    whole_loss = learned.pop("loss")
    whole_scores = {view: TokenScores(**learned) if view == name else everybody.scores[view] for view in method.views}
    return replace(
        found,
        everybody=Scored(
            method, everybody.batch, {}, whole_scores, whole_routing, whole_loss, whole_coefficient, None, {}
        ),
    )


@dataclass(frozen=True)
class _Everybody:
    """The batch and the scores of all processes, and where this one's are in them."""

    batch: Batch
    scores: dict[str, TokenScores]
    positions: slice
    first_rollout: int


def _gather(group: Group, batch: Batch, scores: dict[str, TokenScores]) -> _Everybody:
    if group.size == 1:
        return _Everybody(batch, scores, slice(0, batch.num_positions), 0)
    device = next(iter(scores.values())).logprob.device if scores else torch.device("cpu")
    light = {id(one.example): replace(one.example, images=(), evidence=Evidence()) for one in batch.rollouts}
    rollouts = tuple(replace(one, example=light[id(one.example)]) for one in batch.rollouts)
    numbers = {(view, key): value.cpu() for view, own in scores.items() for key, value in vars(own).items()}
    received = group.exchange((rollouts, numbers))
    everyone = replace(batch, rollouts=tuple(one for own, _ in received for one in own))
    joined = {key: value.to(device) for key, value in _concatenated([own for _, own in received]).items()}
    views = {view: TokenScores(**{key: joined[view, key] for key in vars(own)}) for view, own in scores.items()}
    before = [own for own, _ in received[: group.rank]]
    start = sum(len(one.ids) for own in before for one in own)
    return _Everybody(everyone, views, slice(start, start + batch.num_positions), sum(map(len, before)))


def _concatenated(parts: list[dict]) -> dict:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _readers(policy: Policy, name: str, batch: Batch) -> tuple[str, ...]:
    domains = [rollout.example.domain for rollout in batch.rollouts]
    return tuple(name if (own := member(policy, domain)) is policy else own.name for domain in domains)


def _require_numbers(method: Method, readings: Readings, scores: dict[str, TokenScores]) -> None:
    """A rule would compare what is no number as false, and send the token somewhere without a word."""
    batch = readings.batch
    for name, values in scores.items():
        is_read = torch.tensor([prompt is not None for prompt in readings.prompts[name]])[batch.sequence]
        wrong = (torch.isnan(values.logprob).cpu() & is_read).nonzero().squeeze(-1)
        if wrong.numel():
            place, view = int(wrong[0]), method.views[name]
            raise NotFinite(
                f"view {name} ({view.policy} / {view.context}) has no number for {wrong.numel()} of {batch.num_positions} "
                f"positions; the first is token {int(batch.position[place])} of an answer to "
                f"{batch.rollouts[int(batch.sequence[place])].example.id}."
            )


def _require_finite(batch: Batch, places: Tensor, result: Supervision, scores: dict[str, TokenScores]) -> None:
    """places  of the result's positions in the batch"""
    wrong = (~torch.isfinite(result.loss)).nonzero().squeeze(-1)
    if not wrong.numel():
        return
    place = int(places[wrong[0]])
    rollout = batch.rollouts[int(batch.sequence[place])]
    said = {view: float(values.logprob[place]) for view, values in scores.items()}
    said["learner"] = float(result.scores.logprob[wrong[0]])
    values = ", ".join(f"{view} {logprob:.3g}" for view, logprob in said.items())
    raise NotFinite(
        f"the loss of {wrong.numel()} of {result.loss.numel()} positions is not a finite number; the first is token "
        f"{int(batch.position[place])} of an answer to {rollout.example.id} (log-probs: {values})."
    )
