"""What is prepared and written once: kept, used again, the same after a kill, and named when it is gone."""

import os
import signal
from pathlib import Path

import pytest
import torch
from failures import raises
from small import run_config

from workbench.analysis.summary import summarize_run
from workbench.config.schema import RunConfig
from workbench.errors import ConfigError, RunError
from workbench.policies.autoregressive import load_policy
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.check import check_config
from workbench.training.loop import Trainer
from workbench.training.rollout_source import PREPARED, RolloutSource
from workbench.training.run import train

METHOD = {"name": "spd", "calibration": 3}
WRITTEN = "SELECT step, example_id, sample_idx, completion, sampled_by FROM rollouts ORDER BY step, rollout_idx"


def config_of(models: dict, folder: Path, **values: object) -> RunConfig:
    """Four steps of three of six examples: two epochs."""
    return run_config(
        models,
        folder,
        **{
            "method": METHOD,
            "data": {"train": "scenes:train?count=6"},
            "trace__probes": 0,
            "trace__top_k": 0,
            **values,
        },
    )


@pytest.fixture(scope="module")
def whole(models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = config_of(models, tmp_path_factory.mktemp("runs"))
    train(config)
    return config


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_policy(list_checkpoints(config.run_dir)[-1].student, "student").model.state_dict()


def test_stored_sequences_are_equal_in_every_epoch(whole: RunConfig) -> None:
    rows = open_traces(whole.run_dir).sql(WRITTEN).to_pylist()
    assert {row["sampled_by"] for row in rows} == {"student+projection"}
    key = ("example_id", "sample_idx", "completion")
    first, second = (sorted(tuple(r[k] for k in key) for r in rows if r["step"] in steps) for steps in ((1, 2), (3, 4)))
    assert first == second and len(set(first)) == len(first) == 12
    kept = RunFolder.open(whole.run_dir).sequences()
    assert {row["text"] for row in kept} == {row["completion"] for row in rows}


def test_summary_shows_prepared_subspace(whole: RunConfig) -> None:
    prepared = RunFolder.open(whole.run_dir).status["prepared"]
    assert prepared["calibration examples"] == 3 and prepared["rank"].startswith("1.k_proj 8, 1.v_proj 8")
    text = summarize_run(whole.run_dir)
    assert "rank: 1.k_proj 8" in text
    assert "student+projection" in text


def test_killed_run_resumes_with_stored_sequences(whole: RunConfig, models: dict, tmp_path: Path) -> None:
    half = config_of(models, tmp_path)
    stop = lambda step, metrics: step == 1 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    assert train(half, on_step=stop).steps == 2
    (half.run_dir / PREPARED).rename(tmp_path / "aside")
    with raises(RunError, "prepared.safetensors"):
        train(half, resume=True)
    (tmp_path / "aside").rename(half.run_dir / PREPARED)
    train(half, resume=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(half)[name], value)
    assert open_traces(half.run_dir).sql(WRITTEN) == open_traces(whole.run_dir).sql(WRITTEN)


def test_run_killed_before_writing_samples_same_sequences(
    whole: RunConfig, models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(models, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(
            RolloutSource, "_stored_rollouts", lambda *arguments: os.kill(os.getpid(), signal.SIGINT) or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            train(config)
    assert (config.run_dir / PREPARED).is_file()
    trainer = Trainer(config, RunFolder.open(config.run_dir), resume=True)
    assert trainer.folder.sequences() == RunFolder.open(whole.run_dir).sequences()
    assert not any(module._forward_hooks for module in trainer.learners[0].student.model.modules())


def test_sequences_of_full_rank_equal_those_of_student(models: dict, tmp_path: Path) -> None:
    values = {"training__steps": 1}
    completions, sources = [], []
    for name, options in (
        ("none", {"subspace": "none"}),
        ("full", {"fraction": 1.0}),
        ("random", {"subspace": "random"}),
    ):
        config = config_of(models, tmp_path, name=name, method={**METHOD, **options}, **values)
        train(config)
        rows = open_traces(config.run_dir).sql(WRITTEN).to_pylist()
        completions.append([row["completion"] for row in rows])
        sources.append({row["sampled_by"] for row in rows})
    assert sources == [{"student"}, {"student+projection"}, {"student+random projection"}]
    assert completions[0] == completions[1] != completions[2]


def test_subspace_above_layer_width_raises_before_first_step(models: dict, tmp_path: Path) -> None:
    config = config_of(models, tmp_path, method={**METHOD, "rank": 17})
    for begin in (train, check_config):
        with raises(ConfigError, "method.rank=17", "model.text_model.layers.1.self_attn.k_proj"):
            begin(config)


def test_check_shows_what_would_be_prepared(whole: RunConfig) -> None:
    result = {check.name: check.finding for check in check_config(whole)}
    assert result["prepared, of 4 examples"].startswith("calibration examples: 3, answer tokens: 3")


def test_stored_sequences_of_more_examples_raise(whole: RunConfig, models: dict) -> None:
    fewer = config_of(models, whole.run_dir.parent, data={"train": "scenes:train?count=5"})
    with raises(RunError, "data.train", "6 examples", "has 5"):
        Trainer(fewer, RunFolder.open(whole.run_dir), resume=True)
