"""The optimiser's step: its rates, its moving average, and what it refuses."""

import pytest
import torch
from small import run_config

from workbench.checkpoints import open_checkpoint
from workbench.learner import Learner, build_learner, learning_rates
from workbench.policies.loading import load_policy
from workbench.saving import load_optimizer, save_checkpoint
from workbench.supervision import NotFinite


@pytest.fixture
def learner(models: dict, tmp_path) -> Learner:
    config = run_config(models, tmp_path, method={"name": "opsd", "self_policy": "student@ema", "ema_rate": 0.25})
    return build_learner(config, config.load_method())


def test_the_moving_average_follows_by_its_rate(learner: Learner) -> None:
    before = {name: value.clone() for name, value in learner.policies["student@ema"].model.named_parameters()}
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    assert learner.step(1)["learning_rate"] > 0
    student = dict(learner.student.model.named_parameters())
    for name, value in learner.policies["student@ema"].model.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * student[name], atol=1e-7)
        assert not value.requires_grad
    assert all(parameter.grad is None for parameter in learner.parameters)


def test_a_moving_average_of_half_precision_is_kept_in_float32(models: dict, tmp_path) -> None:
    """A hundredth of what separates two neighbours of bfloat16 is no step in bfloat16: the average would stay at the start."""
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
    learner.step(1)
    save_checkpoint(tmp_path, 1, [learner])
    again = build_learner(config, config.load_method(), checkpoint=open_checkpoint(tmp_path / "checkpoint-000001"))
    loaded = dict(again.policies["student@ema"].model.named_parameters())
    for name, own in learner.student.model.named_parameters():
        assert own.dtype == torch.bfloat16 and average[name].dtype == torch.float32
        assert torch.allclose(average[name], 0.99 * before[name] + 0.01 * own.float(), atol=1e-7)
        assert torch.equal(loaded[name], average[name]) and (
            not own.any() or not torch.equal(before[name], average[name])
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_no_weight(value: float, learner: Learner) -> None:
    before = [parameter.detach().clone() for parameter in learner.parameters]
    for parameter in learner.parameters:
        parameter.grad = torch.zeros_like(parameter)
    learner.parameters[3].grad.view(-1)[0] = value
    with pytest.raises(NotFinite, match="the norm of student's gradient is"):
        learner.clip()
    assert all(torch.equal(one, other) for one, other in zip(before, learner.parameters, strict=True))


@pytest.mark.parametrize(("limit", "expected"), [(0.0, None), (2.0, 2.0)])
def test_gradients_are_scaled_down_to_the_limit_and_with_limit_0_left_alone(
    limit: float, expected: float | None, models: dict, tmp_path
) -> None:
    config = run_config(models, tmp_path, training__max_grad_norm=limit)
    learner = build_learner(config, config.load_method())
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    whole = sum(9.0 * parameter.numel() for parameter in learner.parameters) ** 0.5
    assert learner.clip()["grad_norm"] == pytest.approx(whole, rel=1e-4)
    learner.step(1)
    moments = [learner.optimizer.state[parameter]["exp_avg"] for parameter in learner.parameters]
    used = sum(float(moment.square().sum()) for moment in moments) ** 0.5 / (1 - config.training.betas[0])
    assert used == pytest.approx(expected or whole, rel=1e-3)


def test_sgd_steps_by_rate_times_gradient_and_keeps_nothing_to_resume(models: dict, tmp_path) -> None:
    training = {"optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.1, "schedule": "constant"}
    config = run_config(models, tmp_path, training=training, method={"name": "opd"})
    learner = build_learner(config, config.load_method())
    before = [parameter.detach().clone() for parameter in learner.parameters]
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    learner.step(1)
    for start, parameter in zip(before, learner.parameters, strict=True):
        assert torch.allclose(parameter, start - 0.5 * (2.0 + 0.1 * start), atol=1e-6)
    save_checkpoint(tmp_path, 1, [learner], keep=0)
    checkpoint, again = open_checkpoint(tmp_path / "checkpoint-000001"), build_learner(config, config.load_method())
    load_optimizer(checkpoint, again.optimizer, again.student.model)
    assert not again.optimizer.state


def test_learning_rates_are_functions_of_the_step(models: dict, tmp_path) -> None:
    def rates(**values: object) -> list[float]:
        config = run_config(models, tmp_path, training__steps=4, training__learning_rate=1.0, **values)
        return [learning_rates(config)(step) for step in range(1, 5)]

    def training(**values: object) -> dict:
        return {"training": {"steps": 4, "learning_rate": 1.0, **values}}

    assert rates(**training(schedule="constant")) == [1.0, 1.0, 1.0, 1.0]
    assert rates(**training(schedule="linear")) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(**training(schedule="linear", warmup_steps=2)) == pytest.approx([0.5, 1.0, 0.5, 0.0])
    cosine = rates(**training(schedule="cosine"))
    assert cosine[0] == 1.0 and cosine == sorted(cosine, reverse=True) and cosine[-1] > 0


def test_no_schedule_is_at_zero_in_its_first_step(models: dict, tmp_path) -> None:
    for schedule in ("constant", "linear", "cosine", "constant_with_warmup"):
        for warmup in (0, 3):
            values = {"steps": 9, "learning_rate": 1.0, "schedule": schedule, "warmup_steps": warmup}
            assert learning_rates(run_config(models, tmp_path, training=values))(1) > 0
