"""Sampler and learner compute the same log-probs: dropout is off by default, and both compute in one precision."""

import json
from pathlib import Path

import pytest
import torch
from families import save_model, small_tokenizer
from small import run_config
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from workbench.runs.folder import RunFolder
from workbench.training.learner import build_learner
from workbench.training.run import train

SMALL = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 512,
    },
}


def save(name: str, folder: Path) -> Path:
    """A family whose own configuration drops a tenth of the activations."""
    tokenizer = small_tokenizer({})
    kinds = {"gpt2": (GPT2Config, GPT2LMHeadModel), "opt": (OPTConfig, OPTForCausalLM)}
    config_class, model_class = kinds[name]
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = config_class(vocab_size=len(tokenizer), **SMALL[name], **ends)
    assert 0.1 in (getattr(config, "resid_pdrop", None), getattr(config, "dropout", None))
    return save_model(folder, model_class, config, tokenizer, 0)


def gaps(folder: Path, output: Path, **values: object) -> list[float]:
    models = {"student": str(folder), **values.pop("models", {})}
    output.mkdir()
    rows = [{"question": f"what is {n}?", "answer": str(n), "hint": f"below {n + 2}"} for n in range(6)]
    (output / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "method": {"name": "opsd", "privilege": "hint"},
        "data": {"train": str(output / "data.jsonl"), "eval": None},
    }
    settings |= {"evaluation": {"contexts": ["plain"]}, "training__steps": 2, "models": models, "trace__probes": 0}
    config = run_config({"student": folder, "teacher": folder}, output, **settings, **values)
    train(config)
    return [line["sampler_logprob_gap"] for line in RunFolder(config.run_dir).metrics("train")]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_dropout_of_model_is_off_by_default(family: str, recompute: bool, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "model")
    models = {"gradient_checkpointing": recompute}
    assert max(gaps(folder, tmp_path / "off", models=models)) < 1e-5
    assert min(gaps(folder, tmp_path / "on", models=models, training__dropout=True)) > 1e-2


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_sampling_precision_is_that_of_scoring(precision: str, models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, training__mixed_precision=precision)
    train(config)
    steps = [line["sampler_logprob_gap"] for line in RunFolder(config.run_dir).metrics("train")]
    # in bfloat16 a pass of one token may round otherwise than one of several; two precisions would differ in every step
    assert min(steps) < 1e-6 and max(steps) < (1e-5 if precision == "no" else 3e-3)


def test_gradient_checkpointing_gives_equal_gradient(models: dict, tmp_path: Path) -> None:
    """And are recomputed: layers see their inputs twice."""
    gradients, passes = [], []
    for recompute in (False, True):
        settings = {name: str(folder) for name, folder in models.items()} | {"gradient_checkpointing": recompute}
        config = run_config(models, tmp_path, models=settings)
        learner = build_learner(config, config.load_method())
        model, count = learner.student.model, []
        layer = model.model.text_model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        with learner.training_mode():
            model(input_ids=torch.arange(20, 40)[None], use_cache=False).logits.sum().backward()
        assert not any(module.training for module in model.modules())
        gradients.append(layer.self_attn.q_proj.weight.grad.clone())
        passes.append(len(count))
    assert passes == [1, 2] and torch.allclose(*gradients, rtol=1e-5)


def test_dropout_of_adapter_follows_key(models: dict, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    from workbench.policies.autoregressive import load_policy  # noqa: PLC0415

    policy = load_policy(models["student"], "student")
    adapted = peft.get_peft_model(policy.model, peft.LoraConfig(r=2, target_modules=r".*q_proj", lora_dropout=0.5))
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    adapted.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    assert max(gaps(folder, tmp_path / "off")) < 1e-5
    assert max(gaps(folder, tmp_path / "on", models={"lora": {"rank": 2, "alpha": 8, "dropout": 0.5}})) > 1e-3
