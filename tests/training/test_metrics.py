from dataclasses import replace

import pytest
from small import rollouts, table_policies

from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.methods import load_method
from workbench.training.metrics import StepTimer, rollout_metrics, step_metrics


def test_rollout_metrics_equal_hand_computed() -> None:
    item, two, three, four = rollouts(2, 4, 4, 2)
    twin = replace(two, example=item.example, ids=item.ids)
    other = replace(three, example=item.example, finished=False, reward=0.0)
    given = replace(four, sampled_by="dataset", logprobs=None, reward=None)
    assert rollout_metrics((item, twin, other, given)) == pytest.approx(
        {
            "completion_length": (2 + 2 + 4 + 2) / 4,
            "truncated": 0.25,
            "dataset_share": 0.25,
            "distinct_tokens": len({*item.ids, *other.ids, *given.ids}),
            "duplicate_rate": 1 / 3,  # of the three pairs of answers to the first example
            "accuracy": 2 / 3,
        }
    )


def test_rollout_metrics_of_nothing_are_zero() -> None:
    assert rollout_metrics(())["completion_length"] == 0
    assert "accuracy" not in rollout_metrics(tuple(replace(rollout, reward=None) for rollout in rollouts(1, 2)))


def test_step_metrics_shares_sum_to_one_and_gaps_add_up() -> None:
    method, policies = load_method("dopd"), table_policies()
    batch = Batch(rollouts(3, 5, 7))
    scored = compute_step(method, policies, score_batch(method, policies, batch), seed=0)
    metrics = step_metrics(method, scored)
    assert sum(metrics[f"share/{name}"] for name in method.regimes) == pytest.approx(1.0)
    assert sum(metrics[f"loss_share/{name}"] for name in method.regimes) == pytest.approx(1.0)
    assert metrics["teacher_share"] == pytest.approx(metrics["share/LH"] + metrics["share/HT"])
    assert metrics["total_gap"] == pytest.approx(metrics["capability_gap"] + metrics["information_gap"], abs=1e-6)
    assert metrics["loss"] == pytest.approx(float((scored.loss * scored.loss_normalizer).sum()), abs=1e-6)
    assert metrics["abs_capability_gap"] >= abs(metrics["capability_gap"])


def test_step_timer_phases_sum_to_step() -> None:
    clock = StepTimer()
    for name in ("sample", "score"):
        clock.mark(name)
    seconds = clock.seconds()
    assert seconds["seconds/step"] == pytest.approx(seconds["seconds/sample"] + seconds["seconds/score"])
