"""GRPO: the gradient by hand, and groups that say nothing."""

from dataclasses import replace

import pytest
import torch
from small import groups, table_policies

from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.methods import load_method


def graded(*rewards: float | None) -> tuple:
    """Two answers to each question, graded so."""
    lengths = (3, 2, 4, 5)[: len(rewards)]
    return tuple(replace(item, reward=reward) for item, reward in zip(groups(*lengths), rewards, strict=True))


def gradient(rollouts: tuple) -> tuple[torch.Tensor, list[int]]:
    policies, method = table_policies(), load_method("grpo")
    batch = score_batch(method, policies, Batch(rollouts))
    scored = compute_step(method, policies, batch, seed=0, backward=lambda total: total.backward())
    return policies["student"].tables["plain"].grad, scored.routing.regime.tolist()


def test_grpo_gradient_equals_hand_computed() -> None:
    result, regimes = gradient(graded(0.0, 1.0))
    assert regimes == [1] * 3 + [0] * 2
    table = table_policies()["student"].tables["plain"].detach().requires_grad_()
    wrong, right = (group.ids for group in groups(3, 2))
    means = [table.log_softmax(-1)[range(len(ids)), list(ids)].mean() for ids in (wrong, right)]
    ((means[0] - means[1]) / 2 * 0.5 / (0.5 + 1e-4)).backward()  # two answers, half the deviation each way
    assert torch.allclose(result, table.grad, atol=1e-6)


@pytest.mark.parametrize("rewards", [(0.0, 0.0), (1.0, 1.0), (None, None)])
def test_grpo_group_of_equal_rewards_has_no_gradient(rewards: tuple) -> None:
    result, regimes = gradient(graded(*rewards))
    assert regimes == [2] * 5 and not result.any()
