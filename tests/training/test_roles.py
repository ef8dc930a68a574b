"""Parts of a model are trained, and have learning rates, by role."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from failures import raises
from families import FAMILIES, TEXT_FAMILIES
from safetensors.torch import load_file
from small import run_config
from transformers import AutoModelForCausalLM, LlamaConfig
from video_families import VIDEO_FAMILIES

from workbench.config.schema import LoraConfig
from workbench.errors import ConfigError
from workbench.policies.adapters import add_adapter
from workbench.policies.autoregressive import load_policy
from workbench.policies.roles import describe_trained, roles, set_trained
from workbench.runs.folder import checkpoint_path
from workbench.training.check import check_config
from workbench.training.learner import adapter_config
from workbench.training.run import train

ONE_STEP = {
    "method": {"name": "opd"},
    "training__steps": 1,
    "training__optimizer": "sgd",
    "training__learning_rate": 0.5,
    "training__schedule": "constant",
    "training__max_grad_norm": 0.0,
}
CONNECTORS = {  # one weight of each family's connector, from its published layout
    "llava": "model.multi_modal_projector.linear_1.weight",
    "gemma3": "model.multi_modal_projector.mm_input_projection_weight",
    "qwen3_vl": "model.visual.merger.linear_fc1.weight",
    "smolvlm": "model.connector.modality_projection.proj.weight",
}


def steps(models: dict, folder: Path, name: str, **values: object) -> dict[str, torch.Tensor]:
    """How far one step of SGD moves each weight."""
    config = run_config(models, folder, name=name, **{**ONE_STEP, **values})
    train(config)
    after = load_file(checkpoint_path(config.run_dir, 1) / "student" / "model.safetensors")
    before = load_file(Path(models["student"]) / "model.safetensors")
    return {name: after[name] - before[name] for name in before}


@pytest.fixture(scope="module")
def by_name(models: dict) -> dict[str, str]:
    return roles(load_policy(models["student"], "student").model)


@pytest.fixture(scope="module")
def everything(models: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return steps(models, tmp_path_factory.mktemp("all"), "all")


@pytest.mark.parametrize("family", CONNECTORS)
def test_roles_families_have_all_three(family: str, tmp_path: Path) -> None:
    model = load_policy((FAMILIES | VIDEO_FAMILIES)[family](tmp_path), "student").model
    by_name = roles(model)
    assert set(by_name.values()) == {"language", "connector", "vision"}
    assert by_name[CONNECTORS[family]] == "connector"
    assert {role for name, role in by_name.items() if "embed_tokens" in name or "lm_head" in name} == {"language"}
    assert {role for name, role in by_name.items() if "patch_embed" in name} == {"vision"}


def test_roles_text_model_is_language(tmp_path: Path) -> None:
    model = load_policy(TEXT_FAMILIES["llama"](tmp_path), "student").model
    assert set(roles(model).values()) == {"language"}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert describe_trained(model) == f"language 0 of {total:,}"


@pytest.mark.parametrize("trained", [["language"], ["connector", "vision"]])
def test_train_roles_moves_only_them(
    trained: list[str], models: dict, tmp_path: Path, by_name: dict, everything: dict
) -> None:
    moved = steps(models, tmp_path, "some", models__train=trained)
    for name, step in moved.items():
        if by_name[name] in trained:
            torch.testing.assert_close(step, everything[name], rtol=1e-4, atol=1e-7)
        else:
            assert not step.any()
    assert all(any(moved[name].any() for name in moved if by_name[name] == role) for role in trained)


def test_frozen_embeddings_stay_and_all_else_moves_as_before(models: dict, tmp_path: Path, everything: dict) -> None:
    moved = steps(models, tmp_path, "frozen", models__freeze_embeddings=True)
    (embeddings,) = (name for name in moved if "embed_tokens" in name)
    assert not moved.pop(embeddings).any() and everything[embeddings].any()
    for name, step in moved.items():
        torch.testing.assert_close(step, everything[name], rtol=1e-4, atol=1e-7)


def test_frozen_embeddings_keep_a_tied_head(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=16,
            tie_word_embeddings=True,
        )
    )
    set_trained(model, (), (), "student", freeze_embeddings=True)
    assert not model.lm_head.weight.requires_grad and model.model.norm.weight.requires_grad
    total = model.num_parameters()
    assert describe_trained(model) == f"language {total - 16 * 8:,} of {total:,}"
    add_adapter(model, adapter_config(LoraConfig(rank=2, target_modules=".*embed_tokens")))
    with raises(ConfigError, "models.freeze_embeddings", "models.lora.target_modules"):
        set_trained(model, (), (), "student", freeze_embeddings=True)


def test_learning_rate_of_a_role_scales_its_step_alone(
    models: dict, tmp_path: Path, by_name: dict, everything: dict
) -> None:
    moved = steps(models, tmp_path, "rates", training__learning_rates={"vision": 0.125, "connector": 0.0})
    factors = {"language": 1.0, "vision": 0.25, "connector": 0.0}
    for name, step in moved.items():
        torch.testing.assert_close(step, factors[by_name[name]] * everything[name], rtol=1e-3, atol=1e-7)


def test_lora_of_a_role_leaves_other_adapters_at_their_start(models: dict, tmp_path: Path) -> None:
    values = {"models__lora": {"rank": 2}, "models__train": ["language"]}
    config = run_config(models, tmp_path, name="lora", **{**ONE_STEP, **values})
    train(config)
    adapter = load_file(checkpoint_path(config.run_dir, 1) / "student" / "adapter_model.safetensors")
    moved = {name for name, weight in adapter.items() if "lora_B" in name and weight.any()}  # B starts at 0
    assert moved and all("text_model" in name or "lm_head" in name for name in moved)


def test_check_lora_of_a_role_beside_its_start_trains_that_role_alone(models: dict, tmp_path: Path) -> None:
    """student@start is the student with its adapters off for a pass, which must not let all of them learn."""
    values = {
        "models__lora": {"rank": 2},
        "models__train": ["language"],
        "method": {"name": "dopd", "self_policy": "student@start"},
    }
    findings = {
        check.name: check.finding for check in check_config(run_config(models, tmp_path, name="lora", **values))
    }
    assert ", vision 0 of " in findings["weights that are trained"]
    assert findings["adapters"] == "in 14 layers: language 14"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"models": {"train": ["tower"]}}, ("models.train", "tower", "vision")),
        ({"training": {"learning_rates": {"vison": 1.0}}}, ("training.learning_rates", 'mean "vision"')),
        ({"training": {"learning_rates": {"vision": -1.0}}}, ("training.learning_rates.vision", "-1.0")),
        (
            {"models": {"train": ["language"]}, "training": {"learning_rates": {"vision": 1.0}}},
            ("vision", "models.train=['language']"),
        ),
    ],
)
def test_roles_faulty_values_are_refused_before_loading(values: dict, names: tuple[str, ...], tmp_path: Path) -> None:
    nowhere = {"student": tmp_path / "none", "teacher": tmp_path / "none"}
    flat = {f"{section}__{key}": value for section, entries in values.items() for key, value in entries.items()}
    with raises(ConfigError, *names):
        run_config(nowhere, tmp_path, **flat)


LACKING = {  # what a model without weights of it answers
    "role": ("llama", {"models__train": ["vision"]}, ("models.train", "vision", "LlamaForCausalLM", "of language.")),
    "rate": ("llama", {"training__learning_rates": {"vision": 1e-4}}, ("training.learning_rates", "of language.")),
    "adapter of a role": (  # gemma3's connector is a matrix without a linear layer
        "gemma3",
        {"models__train": ["language", "connector"], "models__lora": {"rank": 2}},
        ("models.train", "connector", "no adapters", "of language, vision.", "models.lora.rank=0", "no linear layer"),
    ),
    "rate of an adapter": (
        "gemma3",
        {
            "training__learning_rates": {"vision": 1e-4},
            "models__lora": {"rank": 2, "target_modules": ".*language.*q_proj"},
        },
        ("training.learning_rates", "vision", "no adapters", "of language.", "models.lora.target_modules"),
    ),
    "target modules": (
        "llama",
        {"models__lora": {"rank": 2, "target_modules": "q_porj"}},
        ("models.lora.target_modules", "q_porj", "models.student"),
    ),
    "faulty expression": ("llama", {"models__lora": {"rank": 2, "target_modules": "(q_proj"}}, ("(q_proj",)),
}


@pytest.mark.parametrize("start", [train, check_config])
@pytest.mark.parametrize("case", LACKING)
def test_part_without_weights_is_refused_before_loading(case: str, start: Callable, tmp_path: Path) -> None:
    family, values, names = LACKING[case]
    folder = (FAMILIES | TEXT_FAMILIES)[family](tmp_path / "model")
    (folder / "model.safetensors").unlink()  # loading it would be another error
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    config = run_config(
        {"student": folder, "teacher": folder},
        tmp_path,
        method={"name": "opd", "privilege": "plain"},
        data={"train": str(tmp_path / "rows.jsonl"), "eval": None},
        **values,
    )
    with raises(ConfigError, *names):
        start(config)
    assert not config.run_dir.exists()


def test_role_of_adapter_folder_is_that_of_its_layers(models: dict, tmp_path: Path) -> None:
    first = run_config(
        models, tmp_path, name="first", **ONE_STEP, models__lora={"rank": 2, "target_modules": ".*text_model.*q_proj"}
    )
    train(first)
    folders = {**models, "student": checkpoint_path(first.run_dir, 1) / "student"}
    with raises(ConfigError, "vision", "no adapters", "of language."):
        train(run_config(folders, tmp_path, name="second", **ONE_STEP, models__train=["vision"]))
