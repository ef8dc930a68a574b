"""The optimiser's step: its rates, its moving average, and what it refuses."""

import pytest
import torch
from failures import raises
from small import run_config
from transformers import get_scheduler

from workbench.distill.step import NonFiniteError
from workbench.errors import ConfigError
from workbench.policies.loading import load_policy
from workbench.runs.checkpoints import open_checkpoint
from workbench.training.checkpointing import load_optimizer, save_checkpoint
from workbench.training.learner import Learner, build_learner, learning_rates


@pytest.fixture
def learner(models: dict, tmp_path) -> Learner:
    config = run_config(models, tmp_path, method={"name": "opsd", "self_policy": "student@ema", "ema_rate": 0.25})
    return build_learner(config, config.load_method())


def test_ema_follows_by_its_rate(learner: Learner) -> None:
    before = {name: value.clone() for name, value in learner.policies["student@ema"].model.named_parameters()}
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    assert learner.update(1)["learning_rate"] > 0
    student = dict(learner.student.model.named_parameters())
    for name, value in learner.policies["student@ema"].model.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * student[name], atol=1e-7)
        assert not value.requires_grad
    assert all(parameter.grad is None for parameter in learner.parameters)


def test_ema_of_half_precision_is_kept_in_float32(models: dict, tmp_path) -> None:
    """A hundredth of the distance of neighbors in bfloat16 rounds to nothing: the average would stay at the start."""
    config = run_config(
        models,
        tmp_path,
        models__dtype="bfloat16",
        method={"name": "opsd", "self_policy": "student@ema", "ema_rate": 0.01},
    )
    learner = build_learner(config, config.load_method())
    start = load_policy(models["student"], "student").model.state_dict()
    average = dict(learner.policies["student@ema"].model.named_parameters())
    before = {name: value.clone() for name, value in average.items()}
    assert all(torch.equal(value, start[name]) for name, value in before.items()), "not rounded once"
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.mul_(1.02)
            parameter.grad = torch.zeros_like(parameter)
    learner.update(1)
    save_checkpoint(tmp_path, 1, [learner])
    again = build_learner(config, config.load_method(), checkpoint=open_checkpoint(tmp_path / "checkpoint-000001"))
    loaded = dict(again.policies["student@ema"].model.named_parameters())
    for name, values in learner.student.model.named_parameters():
        assert values.dtype == torch.bfloat16 and average[name].dtype == torch.float32
        assert torch.allclose(average[name], 0.99 * before[name] + 0.01 * values.float(), atol=1e-7)
        assert torch.equal(loaded[name], average[name]) and (
            not values.any() or not torch.equal(before[name], average[name])
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_gradient_changes_no_weight(value: float, learner: Learner) -> None:
    before = [parameter.detach().clone() for parameter in learner.parameters]
    for parameter in learner.parameters:
        parameter.grad = torch.zeros_like(parameter)
    learner.parameters[3].grad.view(-1)[0] = value
    with raises(NonFiniteError, "gradient norm", "student"):
        learner.clip_gradients()
    assert all(torch.equal(first, second) for first, second in zip(before, learner.parameters, strict=True))


@pytest.mark.parametrize(("limit", "expected"), [(0.0, None), (2.0, 2.0)])
def test_clip_gradients_scales_to_limit(limit: float, expected: float | None, models: dict, tmp_path) -> None:
    config = run_config(models, tmp_path, training__max_grad_norm=limit)
    learner = build_learner(config, config.load_method())
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    whole = sum(9.0 * parameter.numel() for parameter in learner.parameters) ** 0.5
    assert learner.clip_gradients() == pytest.approx(whole, rel=1e-4)
    learner.update(1)
    moments = [learner.optimizer.state[parameter]["exp_avg"] for parameter in learner.parameters]
    used = sum(float(moment.square().sum()) for moment in moments) ** 0.5 / (1 - config.training.betas[0])
    assert used == pytest.approx(expected or whole, rel=1e-3)


def test_sgd_step_is_rate_times_gradient(models: dict, tmp_path) -> None:
    training = {"optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.1, "schedule": "constant"}
    config = run_config(models, tmp_path, training=training, method={"name": "opd"})
    learner = build_learner(config, config.load_method())
    before = [parameter.detach().clone() for parameter in learner.parameters]
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    learner.update(1)
    for start, parameter in zip(before, learner.parameters, strict=True):
        assert torch.allclose(parameter, start - 0.5 * (2.0 + 0.1 * start), atol=1e-6)
    save_checkpoint(tmp_path, 1, [learner], save_total_limit=0)
    checkpoint, again = open_checkpoint(tmp_path / "checkpoint-000001"), build_learner(config, config.load_method())
    load_optimizer(checkpoint, again.optimizer, again.student.model)
    assert not again.optimizer.state


def rates_of(models: dict, folder: object, schedule: str, steps: int, warmup: int) -> list[float]:
    """The rate of every step of a run whose highest rate is 1."""
    training = {"steps": steps, "learning_rate": 1.0, "schedule": schedule, "warmup_steps": warmup}
    rate = learning_rates(run_config(models, folder, training=training))
    return [rate(step) for step in range(1, steps + 1)]


def test_learning_rates_equal_hand_computed(models: dict, tmp_path) -> None:
    def rates(*requested: object) -> list[float]:
        return rates_of(models, tmp_path, *requested)

    assert rates("constant", 4, 0) == [1.0, 1.0, 1.0, 1.0]
    assert rates("constant_with_warmup", 4, 2) == [0.5, 1.0, 1.0, 1.0]
    assert rates("linear", 4, 0) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates("linear", 4, 2) == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert rates("linear", 2, 2) == pytest.approx([0.5, 1.0])
    assert rates("linear", 1, 1) == rates("cosine", 1, 1) == rates("cosine", 1, 0) == [1.0]
    # half of 1 + cos of 0, 60 and 120 degrees
    assert rates("cosine", 3, 0) == pytest.approx([1.0, 0.75, 0.25])
    assert rates("cosine", 5, 2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.25])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (7, 0), (7, 1), (7, 3), (7, 7), (7, 9), (60, 10)]
)
def test_learning_rates_equal_transformers(models: dict, tmp_path, schedule: str, steps: int, warmup: int) -> None:
    """An optimizer stepped through transformers' schedule, as its Trainer does; a warm-up is one step ahead of it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, warmup, steps)
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = rates_of(models, tmp_path, schedule, steps, warmup)
    assert ours[warmup:] == pytest.approx(theirs[warmup:])
    assert ours[:warmup] == pytest.approx([rate + 1 / warmup for rate in theirs[:warmup]])
    assert min(ours) > 0 and max(ours) <= 1


def test_warmup_without_effect_raises(models: dict, tmp_path) -> None:
    with raises(ConfigError, "warmup_steps=3", "training.schedule=constant", "_with_warmup"):
        rates_of(models, tmp_path, "constant", 9, 3)
