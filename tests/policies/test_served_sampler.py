"""A served sampler: a real server samples with the student's weights of each step; the run equals one without it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_llama
from servers import Server
from small import picture, run_config

from workbench.config.schema import SamplingConfig
from workbench.errors import ConfigError, PolicyError, RunError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.loading import load_policy
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.sampler import ServedSampler, require_same_start, sample_together
from workbench.policies.serving.served import load_served
from workbench.runs.folder import RunFolder
from workbench.training.learner import check_engine
from workbench.training.run import resume, train
from workbench.types import Prompt

QUICK = Patience(timeout=60.0, wait=0.0)
PROMPTS = [Prompt((picture(1),), "what is this?", key="a"), Prompt((), "red?", key="b")]
OPTIONS = SamplingOptions(max_completion_length=6)


@pytest.fixture(scope="module")
def server(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A sampler that starts with the teacher's weights: those of the student must be sent."""
    started = Server(tmp_path_factory.mktemp("sampler"), models["teacher"], command="sampler")
    yield started
    assert started.stop() == -15


@pytest.fixture
def student(models: dict) -> AutoregressivePolicy:
    return load_policy(models["student"], "student")


def sampled(student: AutoregressivePolicy, seeds: list[list[int]]) -> list[list[Completion]]:
    """By the server, or by the student itself."""
    return sample_together([student], lambda: student.sample(PROMPTS[: len(seeds)], seeds, OPTIONS))


def attached(student: AutoregressivePolicy, server: Server, run: str) -> ServedSampler:
    student.sampler = ServedSampler(server.address, QUICK, run=run, image_options={})
    return student.sampler


def test_samples_equal_those_of_the_student_after_each_update(student: AutoregressivePolicy, server: Server) -> None:
    seeds, sampler = [[1, 2], [3]], attached(student, server, "run")
    for _ in range(3):
        student.sampler = None
        expected = sampled(student, seeds)
        student.sampler = sampler
        assert sampled(student, seeds) == expected
        with torch.no_grad():
            for weight in student.model.parameters():
                weight.mul_(1.1)  # in place, as an optimizer does
        sampler.weights_changed()


def test_runs_that_share_a_sampler_send_their_weights_again(models: dict, server: Server) -> None:
    pair = [load_policy(models[name], "student") for name in ("student", "teacher")]
    expected = [sampled(policy, [[1], [2]]) for policy in pair]
    for idx, policy in enumerate(pair):
        attached(policy, server, f"shared {idx}")
    for _ in range(2):
        assert [sampled(policy, [[1], [2]]) for policy in pair] == expected
    assert expected[0] != expected[1]


def test_run_with_served_sampler_equals_local_run_and_resumes(
    server: Server, models: dict, trained: Path, tmp_path: Path
) -> None:
    first = Server(tmp_path / "first", models["student"], command="sampler")
    values = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}
    config = run_config(
        models, tmp_path, name="run", sampling__server=first.address, sampling__server_wait=0.0, **values
    )
    with raises(RunError, "step 3", first.address, "workbench sampler", "workbench resume"):
        train(config, on_step=lambda step, _: first.kill() if step == 2 else None)
    resume(config.run_dir, [f"sampling.server={server.address}"])
    lines = [RunFolder.open(path).metrics("train") for path in (config.run_dir, trained / "dopd")]
    for pair in zip(*lines, strict=True):
        names = [name for name in pair[1] if "second" not in name and "padding" not in name]
        assert [pair[0][name] for name in names] == [pair[1][name] for name in names]


def test_stale_weights_stop_run(server: Server, models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedSampler, "weights_changed", lambda self: None)
    config = run_config(models, tmp_path, training__learning_rate=0.1, sampling__server=server.address)
    with raises(RunError, "step 2", "sampler_logprob_gap", "float32", "checkpoint-000001"):
        train(config)


def test_sampler_in_place_of_teacher_and_another_model_are_refused(
    student: AutoregressivePolicy, server: Server, models: dict, tmp_path: Path
) -> None:
    with raises(PolicyError, server.address, "workbench teacher"):
        load_served(server.address, "teacher", device="cpu", patience=QUICK)
    other = Server(tmp_path, save_llama(tmp_path / "llama"), command="sampler")
    with raises(PolicyError, other.address, "LlamaForCausalLM", "Idefics3ForConditionalGeneration"):
        require_same_start(student, ServedSampler(other.address, QUICK, run="", image_options={}))
    with raises(PolicyError, "400", "weight"):
        attached(student, other, "run").send_weights(student)
    other.kill()


def test_unsupported_settings_raise(models: dict, tmp_path: Path) -> None:
    address = "http://127.0.0.1:8001"
    with raises(ConfigError, "sampling.server", "sampling.backend=vllm"):
        SamplingConfig(server=address, backend="vllm")
    with raises(ConfigError, "sampling.server", "spd"):
        config = run_config(models, tmp_path, sampling__server=address, method={"name": "spd"})
        check_engine(config, config.load_method())
    with raises(ConfigError, "sampling.server", "2 servers"):
        ServedSampler(f"{address},http://127.0.0.1:8002", QUICK, run="", image_options={})
