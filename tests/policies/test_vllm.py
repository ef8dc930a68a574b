"""vLLM samples with the student's current weights: every token's log-prob equals the student's.

Run where vllm is installed: `pytest tests/policies/test_vllm.py`. On a CPU its own builds do (docs/devices.md).
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
import video_families
from failures import raises
from processes import launch
from small import run_config

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.vllm import VllmEngine
from workbench.runs.folder import RunFolder
from workbench.training.loop import Trainer
from workbench.training.run import train
from workbench.types import Prompt

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed: its engine cannot be run here", allow_module_level=True)

CODE = "import sys; from workbench.training.run import main; sys.exit(main(sys.argv[1:]))"
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def as_vllm_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention lacks heads as small as the suite's; on a CPU its memory is counted with the tests' own."""
    for name, value in {"hidden_size": 128, "head_dim": 32}.items():
        monkeypatch.setitem(families.TEXT, name, value)
    monkeypatch.setitem(families.VISION, "hidden_size", 64)
    monkeypatch.setattr(video_families, "MROPE", [8, 4, 4])
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def gap(policy: AutoregressivePolicy, prompts: list[Prompt]) -> float:
    """Largest distance in nats between a token's log-probs under the engine that drew it and under its student."""
    written = policy.sample(prompts, [[1, 2], [3], [4]], SamplingOptions(8))
    rows = [(prompt, element) for prompt, values in zip(prompts, written, strict=True) for element in values]
    with torch.no_grad():
        output = policy.forward([prompt for prompt, _ in rows], [each.ids for _, each in rows])
        logprobs = output.logits(torch.arange(len(output.hidden))).log_softmax(-1)
    drawn = torch.tensor([token for _, entry in rows for token in entry.ids])
    engine = torch.tensor([logprob for _, item in rows for logprob in item.logprobs])
    return float((logprobs.gather(-1, drawn.unsqueeze(-1)).squeeze(-1) - engine).abs().max())


@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "qwen3"])
def test_vllm_samples_with_weights_of_student(
    family: str, as_vllm_takes_them: None, prompts: list, tmp_path: Path
) -> None:
    every = families.FAMILIES | families.TEXT_FAMILIES | video_families.VIDEO_FAMILIES
    policy = load_policy(every[family](tmp_path), "student")
    if family in families.TEXT_FAMILIES:
        prompts = [replace(prompt, images=()) for prompt in prompts]
    ends = (policy.end_id, 20, 21)  # as Qwen has several
    policy.stop_ids, policy.head = frozenset(ends), replace(policy.head, eos_ids=ends)
    policy.engine = VllmEngine(str(tmp_path), dtype="float32", memory=0.1, trust_remote_code=False)
    assert gap(policy, prompts) < 1e-3
    with torch.no_grad():
        for parameter in policy.model.parameters():  # those that look at pictures too
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert gap(policy, prompts) < 1e-3


@pytest.mark.parametrize(
    "options, most", [({}, 1e-4), ({"models__lora": {"rank": 4}}, 1e-4), ({"training__mixed_precision": "bf16"}, 0.1)]
)
def test_vllm_run_has_small_sampler_logprob_gap(
    options: dict, most: float, as_vllm_takes_them: None, tmp_path: Path
) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    options = options | {"sampling__backend": "vllm", "training__learning_rate": 0.01}
    config = run_config(models, tmp_path, trace__probes=0, **options)
    trainer = Trainer(config, RunFolder.create(config.run_dir, config.to_yaml(), seed=0, method="dopd"))
    with trainer.trace_writer:
        for step in (1, 2, 3):
            assert trainer.train_step(step)["sampler_logprob_gap"] < most


def losses_of(config: RunConfig) -> list[float]:
    return [line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")]


@pytest.mark.parametrize(
    "environment, options",
    [({}, {}), (SHARDED, {}), (SHARDED, {"models__lora": {"rank": 4}, "training__learning_rate": 1.0})],
)
def test_vllm_in_each_of_two_processes_equals_one(
    environment: dict, options: dict, as_vllm_takes_them: None, tmp_path: Path
) -> None:
    save = video_families.save_qwen3_vl
    models = {name: save(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    rule = {"training__optimizer": "sgd", "training__learning_rate": 0.1, "method": {"name": "opd"}, **options}
    values = {"sampling__backend": "vllm", "sampling__max_completion_length": 8, "trace__probes": 2, **rule}
    alone, launched = (run_config(models, tmp_path, name=name, **values) for name in ("alone", "launched"))
    (tmp_path / "config.yaml").write_text(launched.to_yaml())
    ended = launch(tmp_path / "ranks", CODE, str(tmp_path / "config.yaml"), environment=environment)
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    train(alone)
    assert losses_of(launched) == pytest.approx(losses_of(alone), abs=1e-5)
    assert abs(losses_of(alone)[-1] - losses_of(alone)[0]) > 0.1  # stale weights would show
    run = RunFolder.open(launched.run_dir)
    assert max(line["sampler_logprob_gap"] for line in run.metrics("train")) < 1e-4
    of_both = [each.metrics("eval") for each in (run, RunFolder.open(alone.run_dir))]
    for theirs, mine in zip(*of_both, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4)


def test_vllm_that_starts_in_one_process_alone_ends_both(as_vllm_takes_them: None, tmp_path: Path) -> None:
    models = {name: families.save_idefics3(tmp_path / name, seed) for seed, name in enumerate(("student", "teacher"))}
    config = run_config(models, tmp_path, sampling__backend="vllm")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    lacks = "import os; os.environ['VLLM_CPU_KVCACHE_SPACE'] = ('1', '1000')[int(os.environ['RANK'])]; "
    ended = launch(tmp_path / "ranks", lacks + CODE, str(tmp_path / "config.yaml"))
    assert [item.returncode for item in ended] == [2, 2]
    assert "a worker process exited" in ended[0].stderr and "1000.0 GiB" in ended[1].stderr


def test_vllm_unsupported_model_raises(tmp_path: Path) -> None:
    with raises(ConfigError, "sampling.backend=transformers"):
        VllmEngine(str(tmp_path), dtype="float32", memory=0.1, trust_remote_code=False)
