"""Routing rules and statistics that more than one method uses. A rule maps a RouteBatch to a Routing."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.types import Rollout, RouteBatch, Routing


def everywhere(batch: RouteBatch) -> Routing:
    """Regime 0 at every position, with weight 1."""
    device = batch.sequence.device
    return Routing(
        regime=torch.zeros(batch.num_positions, dtype=torch.long, device=device),
        weight=torch.ones(batch.num_positions, device=device),
    )


def trimmed_mean(values: Float[Tensor, " N"], keep: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean of the kept values; of all values if none is kept."""
    return values[keep].mean() if bool(keep.any()) else values.mean()


def below_quantile(values: Float[Tensor, " N"], share_cut: float) -> Bool[Tensor, " N"]:
    """True but for the largest `share_cut` of the values. With share_cut 0 nothing is cut."""
    if share_cut == 0.0 or values.numel() == 0:
        return torch.ones_like(values, dtype=torch.bool)
    # kthvalue instead of torch.quantile, which refuses more than 2**24 values
    kept = max(1, values.numel() - int(share_cut * values.numel()))
    return values <= values.kthvalue(kept).values


def sampler_ratio(batch: RouteBatch) -> Float[Tensor, " N"]:
    """Importance ratio of every position: the student's probability now over the sampler's. 1 where no sampler wrote."""
    student = batch.scores["student"].logprob
    sampled = [logprob for one in batch.rollouts for logprob in one.logprobs or [float("nan")] * len(one.ids)]
    return (student - torch.tensor(sampled, device=student.device)).exp().nan_to_num(1.0)


def group_advantage(rollouts: tuple[Rollout, ...], eps: float = 1e-4) -> Float[Tensor, " R"]:
    """Outcome advantage of every rollout: (reward - mean) / (deviation + eps) over the rollouts of its example.

    0 where no reward is known, and where all of a group are right or all wrong.
    Source: GRPO, arXiv 2402.03300, section 4.1.2.
    """
    groups: dict[int, list[int]] = {}
    for idx, rollout in enumerate(rollouts):
        if rollout.reward is not None:
            groups.setdefault(id(rollout.example), []).append(idx)
    advantage = torch.zeros(len(rollouts))
    for group in groups.values():
        rewards = torch.tensor([rollouts[idx].reward for idx in group])
        advantage[group] = (rewards - rewards.mean()) / (rewards.std(correction=0) + eps)
    return advantage


def draw_positions(batch: RouteBatch, share: float) -> Bool[Tensor, " N"]:
    """A random `share` of the positions, the same for the same step and batch."""
    generator = torch.Generator().manual_seed(batch.seed)
    return (torch.rand(batch.num_positions, generator=generator) < share).to(batch.sequence.device)
