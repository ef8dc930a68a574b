"""Weights of 4 bits under adapters, and an optimizer of 8 bits: trained, saved, resumed, exported (bitsandbytes)."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from failures import raises
from small import run_config

from workbench.errors import ConfigError
from workbench.policies.autoregressive import load_policy
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.training.export import export_student
from workbench.training.run import train

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra quantized is not installed"
)


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in RunFolder.open(run_dir).metrics("train")]


def resumed(config: object, directory: Path) -> list[float]:
    """Losses of a run without its last checkpoint, resumed."""
    shutil.rmtree(list_checkpoints(directory)[-1].path)
    train(config, resume=True)
    return losses(directory)


@needs_package
def test_four_bit_student_trains_adapters_and_resumes(tmp_path: Path) -> None:
    models = {name: f"data/models/{name}" for name in ("student", "teacher")}
    config = run_config(models, tmp_path, models__dtype="nf4", models__lora={"rank": 2})
    train(config)
    first = losses(config.run_dir)
    assert resumed(config, config.run_dir) == first
    student = list_checkpoints(config.run_dir)[-1].student
    assert {file.name for file in student.glob("*.safetensors")} == {"adapter_model.safetensors"}
    policy = load_policy(student, "student", dtype="nf4")
    kinds = {parameter.dtype for parameter in policy.model.parameters()}
    assert torch.uint8 in kinds and torch.float32 in kinds
    export_student(config.run_dir, tmp_path / "exported")
    assert load_policy(tmp_path / "exported", "student").model.dtype == torch.float32


@needs_package
def test_eight_bit_optimizer_resumes_to_equal_losses(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, training__optimizer="adamw_8bit")
    train(config)
    first = losses(config.run_dir)
    assert len(set(first)) == len(first)
    assert resumed(config, config.run_dir) == first


@pytest.mark.parametrize("values", [{"models__teacher_dtype": "nf4"}, {"training__optimizer": "adamw_8bit"}])
def test_missing_package_is_named_before_models_load(
    values: dict, models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with raises(ConfigError, "package bitsandbytes"):
        train(run_config(models, tmp_path, **values))


def test_four_bits_without_adapters_raise(models: dict, tmp_path: Path) -> None:
    with raises(ConfigError, "models.lora.rank"):
        run_config(models, tmp_path, models__dtype="nf4")


def test_update_mask_with_eight_bit_moments_raises(models: dict, tmp_path: Path) -> None:
    with raises(ConfigError, "adamw_8bit"):
        run_config(models, tmp_path, training__optimizer="adamw_8bit", training__update_mask="mask.safetensors")
