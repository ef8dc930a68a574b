"""A model whose weights are not all there is refused, and names them; an adapter is loaded as peft itself loads it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failures import raises
from transformers import AutoModelForImageTextToText

from workbench.errors import PolicyError
from workbench.policies.autoregressive import load_policy
from workbench.policies.average import average_models
from workbench.policies.loading import load_policies

peft = pytest.importorskip("peft")
LAYER = "model.text_model.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(20, 40)[None]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(models: dict[str, Path], tmp_path: Path) -> Path:
    """An own copy of the small model, to damage."""
    return shutil.copytree(models["student"], tmp_path / "model")


def rewrite(folder: Path, change: Callable[[Weights], Weights], name: str = "model.safetensors") -> None:
    file = folder / name
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, {"format": "pt"})


DAMAGES = {
    "a prefix": (
        lambda weights: {f"base_model.model.{key}": value for key, value in weights.items()},
        r"are missing \(.*have no place in the model \(base_model\.model\.",
    ),
    "no vision tower": (
        lambda weights: {key: value for key, value in weights.items() if "vision" not in key},
        r"would be random, since they are missing \(model\.vision_model\.",
    ),
    "no head": (
        lambda weights: {key: value for key, value in weights.items() if key != "lm_head.weight"},
        r"1 would be random, since they are missing \(lm_head\.weight\)",
    ),
    "one matrix": (
        lambda weights: {key: value for key, value in weights.items() if key != LAYER},
        rf"1 would be random, since they are missing \({LAYER}\)",
    ),
    "one too many": (
        lambda weights: weights | {"model.other.weight": torch.ones(2, 2)},
        r"1 have no place in the model \(model\.other\.weight\)",
    ),
    "an adapter left in": (
        lambda weights: weights | {LAYER.replace("weight", "lora_A.default.weight"): torch.ones(2, 32)},
        r"1 have no place in the model \(.*lora_A",
    ),
    "another shape": (
        lambda weights: weights | {LAYER: torch.ones(16, 32)},
        rf"1 have another shape \({LAYER}: \[16, 32\] in the file, \[32, 32\] in the model\)",
    ),
    "not a number": (
        lambda weights: weights | {LAYER: weights[LAYER] * float("nan")},
        rf"1 weights of .* are infinite or NaN \({LAYER}\)",
    ),
    "infinite": (
        lambda weights: weights | {LAYER: weights[LAYER].index_fill(0, torch.tensor([3]), float("inf"))},
        rf"1 weights of .* are infinite or NaN \({LAYER}\)",
    ),
    "quantized": (
        lambda weights: weights | {LAYER: (weights[LAYER] * 127).to(torch.int8)},
        rf"1 weights of .* are integers \({LAYER}: I8\)",
    ),
    "zeros": (lambda weights: {key: value * 0 for key, value in weights.items()}, "every matrix of .* is zero"),
}


def test_missing_weights_raise_one_sentence_only(folder: Path) -> None:
    rewrite(folder, DAMAGES["no vision tower"][0])
    logger, records = logging.getLogger("transformers.modeling_utils"), []
    logger.setLevel(logging.WARNING)
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        with raises(PolicyError, "random"):
            load_policy(folder, "student")
        assert not any("LOAD REPORT" in record.getMessage() for record in records)
        AutoModelForImageTextToText.from_pretrained(folder)  # of others' loading it is still logged
        assert any("LOAD REPORT" in record.getMessage() for record in records)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("damage", DAMAGES)
def test_missing_weights_are_named(damage: str, models: dict, folder: Path) -> None:
    change, sentence = DAMAGES[damage]
    rewrite(folder, change)
    with pytest.raises(PolicyError, match=f"(?s)teacher: .*{sentence}"):
        load_policies(("teacher",), student=models["student"], teacher=folder)
    with pytest.raises(PolicyError, match=f"(?s)student: .*{sentence}"):
        load_policies((), student=folder)


def test_tied_head_may_be_absent_from_file(models: dict, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    rewrite(folder, DAMAGES["no head"][0])
    model = load_policy(folder, "student").model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def save_adapter(base: Path, folder: Path, *, scale: float = 0.3, **options: object) -> Path:
    """An adapter with random weights, written by peft; the processor beside it."""
    torch.manual_seed(len(options))
    model = AutoModelForImageTextToText.from_pretrained(base)
    options = {"r": 2, "target_modules": r".*text_model.*(q_proj|v_proj)", **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    for name, value in adapted.named_parameters():
        if value.requires_grad:
            value.data.add_(scale * torch.randn_like(value)) if "lora" in name else value.data.mul_(1.5)
    adapted.save_pretrained(folder)
    load_policy(base, "base").processor.save_pretrained(folder)
    return folder


def logits_of_peft(base: Path, folder: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 4},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": r".*(q_proj|embed_tokens|lm_head)"},
        {"target_modules": r".*(q_proj|embed_tokens)", "use_dora": True},
        {"rank_pattern": {"q_proj": 3}},
    ],
    ids=str,
)
def test_adapter_logits_equal_peft(options: dict, models: dict, tmp_path: Path) -> None:
    folder = save_adapter(models["student"], tmp_path / "adapter", **options)
    wanted = logits_of_peft(models["student"], folder)
    model = load_policy(folder, "teacher").model
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, wanted, atol=1e-5)
        plain = load_policy(models["student"], "student").model(input_ids=IDS).logits
    assert float((plain - wanted).abs().max()) > 0.1


def test_adapter_with_older_names_is_loaded(folders: dict, tmp_path: Path) -> None:
    """Qwen2-VL's decoder was `model` before it became `model.language_model`."""
    folder = save_adapter(folders["qwen2_vl"], tmp_path / "adapter", target_modules=r".*language_model.*q_proj")
    wanted = logits_of_peft(folders["qwen2_vl"], folder)

    def older(weights: Weights) -> Weights:
        return {key.replace(".language_model.", "."): value for key, value in weights.items()}

    rewrite(folder, older, "adapter_model.safetensors")
    with torch.no_grad():
        assert torch.allclose(load_policy(folder, "student").model(input_ids=IDS).logits, wanted, atol=1e-5)


def test_adapter_missing_or_unused_weights_are_named(models: dict, tmp_path: Path) -> None:
    folder, file = save_adapter(models["student"], tmp_path / "adapter"), "adapter_model.safetensors"
    whole = safetensors.torch.load_file(folder / file)
    name = next(iter(whole))
    changes = {
        r"1 are missing \(.*lora_A": {key: value for key, value in whole.items() if key != name},
        r"1 have no place in the model \(.*other": whole | {"base_model.model.other.lora_A.weight": torch.ones(2, 2)},
        r"size mismatch for .*lora_A": whole | {name: torch.ones(3, 32)},
        r"1 are the model's own and not the adapter's \(lm_head": whole
        | {"base_model.model.lm_head.weight": torch.ones(401, 32)},
        r"infinite or NaN \(.*lora_A": whole | {name: whole[name] * float("nan")},
    }
    for sentence, weights in changes.items():
        safetensors.torch.save_file(weights, folder / file, {"format": "pt"})
        with pytest.raises(PolicyError, match=f"(?s)teacher: .*{sentence}"):
            load_policy(folder, "teacher")


def test_adapter_without_base_model_raises(models: dict, tmp_path: Path) -> None:
    folder = save_adapter(models["student"], tmp_path / "adapter")
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    second = shutil.copytree(folder, tmp_path / "second")
    for base, sentence in (
        (None, "an adapter without a base model"),
        (str(second), "is also an adapter"),
        (str(tmp_path / "gone"), r'folder ".*gone \(the model of the adapter .*adapter\)" does not exist'),
    ):
        file.write_text(json.dumps(values | {"base_model_name_or_path": base}))
        with pytest.raises(PolicyError, match=sentence):
            load_policy(folder, "teacher")
    file.write_text(json.dumps(values))
    shutil.copy(models["student"] / "model.safetensors", folder)
    with raises(PolicyError, "full weights", "adapter"):
        load_policy(folder, "teacher")


def test_adapter_on_half_precision_model_stays_float32(models: dict, tmp_path: Path) -> None:
    folder = save_adapter(models["student"], tmp_path / "adapter", use_dora=True)
    saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    model = load_policies((), student=folder, dtype="bfloat16")["student"].model
    values = peft.get_peft_model_state_dict(model)
    assert {f"base_model.model.{key}": value for key, value in values.items()}.keys() == saved.keys()
    assert all(torch.equal(value, saved[f"base_model.model.{key}"]) for key, value in values.items())


def test_adapters_cannot_be_averaged(models: dict, tmp_path: Path) -> None:
    folder = save_adapter(models["student"], tmp_path / "adapter")
    with raises(PolicyError, "adapter", "workbench export"):
        average_models([models["student"], folder], tmp_path / "mean")


def test_weights_are_aligned_to_cache_lines(folder: Path) -> None:
    """Sums over a matrix may be taken in another order where it begins elsewhere: a resumed run's last digits."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for padding in ("", "x" * 8, "x" * 24):
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt", "padding": padding})
        model = load_policy(folder, "student").model
        assert not any(weight.data_ptr() % 64 for weight in model.parameters())
        assert torch.equal(model.state_dict()[LAYER], weights[LAYER])
