"""d-OPSD's own arithmetic, its filter of right answers, and a real, tiny run."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_idefics3, save_modernvbert
from small import rollouts, run_config, table_policies, write_without_answer

from workbench.config.schema import RunConfig, load_config
from workbench.data.examples import load_examples
from workbench.distill.divergences import Divergence
from workbench.distill.rollouts import sample_rollouts
from workbench.distill.scoring import Batch
from workbench.distill.step import StepResult, compute_step, score_batch
from workbench.errors import ConfigError, DataError
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.loading import load_policy
from workbench.policies.view_output import ViewOutput
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.health import HealthMonitor
from workbench.training.learner import build_learner
from workbench.training.run import train

FUTURE, LAST, WRONG = range(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_modernvbert(tmp_path_factory.mktemp("modernvbert"))


def config(folder: Path, output_dir: object, **values: object) -> RunConfig:
    values = {"method": {"name": "d_opsd", "right_only": False}, "sampling__max_completion_length": 16, **values}
    values |= {"evaluation__contexts": ["plain"], "evaluation__teacher": False}
    return run_config({"student": folder, "teacher": folder}, output_dir, **values)


def scored(folder: Path, *, seed: int = 3, **options: object) -> tuple[StepResult, torch.nn.Module]:
    method = load_method("d_opsd", {"right_only": False, **options})
    learner = build_learner(config(folder, "runs"), method)
    written = sample_rollouts(
        learner.student,
        load_examples("scenes:train?count=2"),
        context="plain",
        sampling=SamplingOptions(16),
        num_generations=2,
        seed=(seed,),
    )
    scored_batch = score_batch(method, learner.policies, Batch(tuple(written)))
    result = compute_step(method, learner.policies, scored_batch, seed=0, backward=lambda total: total.backward())
    return result, learner.student.model


def largest_gradient(model: torch.nn.Module) -> float:
    return max(float(parameter.grad.abs().max()) for parameter in model.parameters() if parameter.grad is not None)


def test_divergence_clip_limits_each_entry() -> None:
    learner, target = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.1, 0.3, 0.6]]).log()
    terms = [0.7 * math.log(7), 0.2 * math.log(2 / 3), 0.1 * math.log(1 / 6)]
    ids = torch.zeros(1, dtype=torch.long)
    whole = Divergence("reverse_kl")(learner, target, ids)
    assert float(whole) == pytest.approx(sum(terms), abs=1e-6)
    clipped = Divergence("reverse_kl", clip=0.05)
    assert float(clipped(learner, target, ids)) == pytest.approx(0.05 + terms[1] + terms[2], abs=1e-6)
    assert "entries at most 0.05" in clipped.label
    equal = target.clone().requires_grad_()
    (grad,) = torch.autograd.grad(clipped(equal, target, ids).sum(), equal)
    assert float(grad.abs().max()) < 1e-7
    assert torch.allclose(
        Divergence("forward_kl", clip=9.0)(learner, target, ids), Divergence("forward_kl")(learner, target, ids)
    )


@pytest.mark.parametrize("options", [{"kind": "jensen_shannon"}, {"kind": "reverse_kl", "support": "sampled"}])
def test_divergence_clip_of_sampled_kind_raises(options: dict) -> None:
    with raises(ConfigError, "clip="):
        Divergence(**options, clip=0.05)


def test_d_opsd_supervises_right_answers_with_blocks_left() -> None:
    method, policies = load_method("d_opsd"), table_policies()
    right, wrong, unknown, long = rollouts(3, 3, 3, 7)
    batch = Batch((right, replace(wrong, reward=0.0), replace(unknown, reward=None), long))
    result = compute_step(method, policies, score_batch(method, policies, batch), seed=0)
    # blocks of two on a canvas of eight: the seventh token is in the last block
    assert result.routing.regime.tolist() == [FUTURE] * 3 + [WRONG] * 6 + [FUTURE] * 6 + [LAST]


def test_d_opsd_step_without_right_answer_changes_nothing() -> None:
    method, policies = load_method("d_opsd"), table_policies()
    batch = Batch(tuple(replace(rollout, reward=0.0) for rollout in rollouts(3, 4)))
    result = compute_step(
        method, policies, score_batch(method, policies, batch), seed=0, backward=lambda total: total.backward()
    )
    assert result.loss.abs().sum() == 0.0
    assert all(table.grad is None or not table.grad.any() for table in policies["student"].tables.values())
    watch, seen = HealthMonitor(), []
    for step in range(1, 21):
        seen += watch.update(step, {"supervised": 0.0 if step > 5 else 0.4})
    assert len(seen) == 1 and seen[0].startswith("step 20: no token had supervision in the last 10 steps")
    assert "raise sampling.num_generations" in seen[0]


def test_health_monitor_names_collapse() -> None:
    watch = HealthMonitor()
    for step in range(1, 31):
        fraction = 1.0 if step <= 10 else 0.3
        watch.update(step, {"accuracy": 0.8 * fraction, "distinct_tokens": 60 * fraction, "supervised": 1.0})
    assert "from 80% to 24%" in watch.warnings["accuracy"]
    assert "from 60 to 18" in watch.warnings["distinct_tokens"]


def test_d_opsd_without_future_has_zero_loss(folder: Path) -> None:
    nothing, model = scored(folder, fraction=0.0)
    assert float(nothing.loss.abs().max()) < 1e-6
    assert largest_gradient(model) < 1e-6
    something, model = scored(folder, fraction=1.0)
    supervised = something.routing.regime == FUTURE
    assert bool((something.loss[supervised] != 0).all()) and not bool(something.loss[~supervised].any())
    assert largest_gradient(model) > 1e-5


def test_d_opsd_shipped_model_uses_its_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """arXiv 2606.18195, section 3: the more of the suffix the teacher sees, the surer it is of the student's tokens."""
    monkeypatch.chdir(Path(__file__).parents[2])
    recipe, nats = load_config("configs/d_opsd.yaml"), []
    for fraction in (0.0, 0.5, 1.0):
        method = load_method("d_opsd", {"context": "caption", "fraction": fraction, "right_only": False})
        learner = build_learner(recipe, method)
        examples = load_examples("scenes:eval?count=48")
        written = sample_rollouts(
            learner.student, examples, context="caption", sampling=SamplingOptions(24), num_generations=1, seed=(1,)
        )
        result = compute_step(
            method, learner.policies, score_batch(method, learner.policies, Batch(tuple(written))), seed=0
        )
        nats.append(float(-result.scores["self"].logprob[result.routing.regime == FUTURE].mean()))
    assert nats[0] - nats[1] > 0.02 and nats[1] - nats[2] > 0.02, nats


def test_d_opsd_gradient_is_at_selected_positions_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, hidden = DiffusionPolicy.forward, []

    def watched(self: DiffusionPolicy, *args: object) -> ViewOutput:
        output = forward(self, *args)
        if output.hidden.requires_grad:
            output.hidden.retain_grad()
            hidden.append(output.hidden)
        return output

    monkeypatch.setattr(DiffusionPolicy, "forward", watched)
    result, _ = scored(folder, fraction=1.0)
    (learned,) = hidden  # of all that is read, the learner's pass alone has a gradient
    assert set(result.routing.regime.tolist()) == {FUTURE, LAST}
    assert torch.equal(learned.grad.abs().sum(-1) > 0, result.routing.regime == FUTURE)


def test_d_opsd_run_records_denoising_and_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    whole = config(folder, tmp_path / "whole")
    train(whole)
    rows = open_traces(whole.run_dir).sql("SELECT * FROM tokens").to_pylist()
    assert {row["regime"] for row in rows} >= {"FUTURE"}
    for row in rows:
        assert row["denoising_step"] // 2 == row["position"] // 4  # blocks of four in two steps
        assert row["sampler_logprob"] == pytest.approx(row["logprob_student"], abs=1e-3)
    stopped = config(folder, tmp_path / "part")
    train(stopped, on_step=lambda step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)
    assert RunFolder.open(stopped.run_dir).status["steps_done"] == 2
    train(stopped, resume=True)
    ends = [
        load_policy(list_checkpoints(entry.run_dir)[-1].student, "end").model.state_dict() for entry in (whole, stopped)
    ]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    probes = [
        open_traces(item.run_dir).sql("SELECT * FROM probe_tokens ORDER BY ALL").to_pylist()
        for item in (whole, stopped)
    ]
    assert probes[0] == probes[1]


def test_d_opsd_autoregressive_student_raises(tmp_path: Path) -> None:
    with raises(ConfigError, "masked diffusion"):
        build_learner(config(save_idefics3(tmp_path), tmp_path), load_method("d_opsd"))


def test_d_opsd_examples_without_answer_are_skipped(folder: Path, tmp_path: Path) -> None:
    data = write_without_answer(tmp_path / "rows.jsonl")
    with raises(DataError, "no answer"):
        train(config(folder, tmp_path, method={"name": "d_opsd"}, data__train=str(data), data__eval=None))
