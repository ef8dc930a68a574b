"""The ends of a model, loaded with its first decoder layers: what they give equals the whole model's."""

import shutil
from pathlib import Path

import families
import pytest
import torch
import video_families
from failures import raises
from safetensors.torch import load_file, save_file

from workbench.errors import PolicyError
from workbench.policies.loading import load_policy
from workbench.policies.serving.engine import head_weights, unique_weights
from workbench.policies.serving.trunk import folder_fingerprint, load_trunk, require_divisible, weight_shapes


@pytest.mark.parametrize("save", [families.save_aya_vision, video_families.save_qwen3_vl])
def test_trunk_has_facts_of_whole_model(save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.TEXT, "num_hidden_layers", 4)
    whole = load_policy(save(tmp_path), "teacher")
    whole.prove()
    trunk, head, precision = load_trunk(tmp_path, dtype="float32")
    expected = head_weights(whole)
    assert head.keys() == expected.keys() and all(torch.equal(head[name], expected[name]) for name in head)
    assert precision == torch.float32 and trunk.proof.head == whole.proof.head
    for name in ("vocabulary", "stop_ids", "placeholders", "head_width", "context_length"):
        assert getattr(trunk, name) == getattr(whole, name), name
    assert trunk.model.config.get_text_config().num_hidden_layers == 4
    assert not [name for name, value in trunk.model.named_parameters() if not value.is_meta]
    shapes = {name: value.shape for name, value in unique_weights(whole.model).items()}
    assert weight_shapes(tmp_path) == shapes


def test_fingerprint_tells_weights_precision_and_engine_apart(models: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["teacher"], tmp_path / "copy"))
    first = folder_fingerprint(models["teacher"], torch.float32, "vllm")
    assert folder_fingerprint(folder, torch.float32, "vllm") == first
    weights = load_file(folder / "model.safetensors")
    weights[min(weights)] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    others = [(folder, torch.float32, "vllm"), (models["teacher"], torch.bfloat16, "vllm")]
    others += [(models["teacher"], torch.float32, "other"), (models["student"], torch.float32, "vllm")]
    assert len({first, *(folder_fingerprint(*arguments) for arguments in others)}) == 5


def test_models_that_vllm_does_not_serve_raise(models: dict, tmp_path: Path) -> None:
    require_divisible(models["teacher"], 2)
    with raises(PolicyError, "--tensor-parallel 3", "4 attention heads", "1, 2, 4"):
        require_divisible(models["teacher"], 3)
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{models["teacher"]}"}}')
    with raises(PolicyError, "adapter", "--engine transformers"):
        load_trunk(tmp_path, dtype="float32")
    folder = Path(shutil.copytree(models["teacher"], tmp_path / "torn"))
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "layers.0" in name)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with raises(PolicyError, "missing", str(folder)):
        load_trunk(folder, dtype="float32")
