"""What is advised for real models: the model in bfloat16, adapters in float32."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from small import run_config

from workbench.runs.checkpoints import list_checkpoints
from workbench.training.families.build import save_family
from workbench.training.run import train


@pytest.mark.parametrize("model_type", ["gemma3", "internvl", "idefics3", "qwen2_vl", "qwen3_vl"])
def test_adapters_learn_over_half_precision(model_type: str, tmp_path: Path) -> None:
    folders = {name: save_family(tmp_path / name, model_type, seed) for seed, name in enumerate(("student", "teacher"))}
    settings = {name: str(folder) for name, folder in folders.items()} | {"dtype": "bfloat16", "lora": {"rank": 2}}
    quick = {"training__steps": 1, "training__batch_size": 1, "trace__probes": 0, "sampling__max_completion_length": 4}
    config = run_config(folders, tmp_path, models=settings, method__privilege="crop+boxes", data__eval=None, **quick)
    result = train(config)
    saved = safetensors.torch.load_file(list_checkpoints(config.run_dir)[-1].student / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any(value.any() for name, value in saved.items() if "lora_B" in name) and not result.warnings
