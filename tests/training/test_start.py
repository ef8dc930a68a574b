"""`student@start` is the student as it started, whatever it started from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failures import raises
from small import run_config

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError
from workbench.policies.autoregressive import load_policy
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.training.run import resume, train
from workbench.training.scorer import open_scorer

peft = pytest.importorskip("peft")
PLAIN = {"name": "opsd", "privilege": "plain"}


@pytest.fixture(scope="module")
def adapters(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter folders: of peft (LoRA, DoRA, one with a head of its own), and the checkpoint of a run."""
    folder, created = tmp_path_factory.mktemp("adapters"), {}
    for name, options in {"lora": {}, "dora": {"use_dora": True}, "head": {"modules_to_save": ["lm_head"]}}.items():
        torch.manual_seed(1)
        policy = load_policy(models["student"], "student")
        adapted = peft.get_peft_model(
            policy.model, peft.LoraConfig(r=2, target_modules=r".*text_model.*(q|v)_proj", **options)
        )
        for key, value in adapted.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                value.data.add_(0.2 * torch.randn_like(value))
        created[name] = folder / name
        adapted.save_pretrained(created[name])
        policy.processor.save_pretrained(created[name])
    config = run(models["student"], models, folder, lora={"rank": 2})
    train(config)
    return created | {"checkpoint": list_checkpoints(config.run_dir)[-1].student}


def run(student: Path, models: dict, folder: Path, *, lora: dict | None = None, **values: object) -> RunConfig:
    folders = {"student": str(student), "teacher": str(models["teacher"]), "lora": lora or {}}
    values = {"training__learning_rate": 0.02, "data": {"train": "scenes:train?count=12"}, **values}
    return run_config(models, folder, **{"models": folders, "method": PLAIN, "training__steps": 2, **values})


STARTS = ("plain", "fresh", "lora", "dora", "head", "checkpoint")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("start", STARTS)
def test_frozen_start_equals_student_before_first_step(
    start: str, precision: str, models: dict, adapters: dict, tmp_path: Path
) -> None:
    config = run(adapters.get(start, models["student"]), models, tmp_path, lora={"rank": 2 if start == "fresh" else 0})
    config = replace(config, training=replace(config.training, mixed_precision=precision))
    train(config)
    first, second = RunFolder(config.run_dir).metrics("train")
    assert abs(first["loss"]) < 1e-6 < second["loss"]


@pytest.mark.parametrize("start", ["fresh", "dora", "head"])
def test_frozen_start_after_resume_is_equal(start: str, models: dict, adapters: dict, tmp_path: Path) -> None:
    lora = {"rank": 2 if start == "fresh" else 0}
    whole, halved = (
        run(adapters.get(start, models["student"]), models, tmp_path, lora=lora, name=name, training__save_every=1)
        for name in ("whole", "halved")
    )
    train(whole)
    train(halved)
    shutil.rmtree(list_checkpoints(halved.run_dir)[-1].path)
    resume(halved.run_dir)
    ends = [list_checkpoints(entry.run_dir)[-1].student / "adapter_model.safetensors" for entry in (whole, halved)]
    first, second = map(safetensors.torch.load_file, ends)
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    policies = open_scorer(whole.run_dir, ["method.self_policy=student@start"]).learner.policies
    assert open_scorer(whole.run_dir).checkpoint.step == 2
    start_of, now = policies["student@start"], policies["student"]
    ids = torch.arange(20, 40)[None]
    with torch.no_grad(), start_of._adapter_state():
        then = start_of.head(start_of.model.base_model(input_ids=ids).last_hidden_state[0])[None]
    with torch.no_grad():
        wanted = load_policy(whole.models.student, "student").model(input_ids=ids).logits
        assert torch.allclose(then, wanted, atol=1e-5)
        assert float((now.model(input_ids=ids).logits - wanted).abs().max()) > 1e-3


def test_frozen_start_shares_weights_under_adapter(models: dict, adapters: dict, tmp_path: Path) -> None:
    policies = open_scorer(run(adapters["lora"], models, tmp_path)).learner.policies
    student, start = (dict(policies[name].model.named_parameters()) for name in ("student", "student@start"))
    assert all((entry is start[key]) == ("lora_" not in key) for key, entry in student.items())
    assert not any(item.requires_grad for item in start.values())


def test_adapter_of_other_rank_raises(models: dict, adapters: dict, tmp_path: Path) -> None:
    with raises(ConfigError, "models.lora.rank=7", "models.lora.rank=2"):
        train(run(adapters["lora"], models, tmp_path, lora={"rank": 7}))


def test_adapter_of_other_kind_raises(models: dict, tmp_path: Path) -> None:
    policy = load_policy(models["student"], "student")
    folder = tmp_path / "ia3"
    kind = peft.IA3Config(target_modules=r".*text_model.*k_proj", feedforward_modules=[])
    peft.get_peft_model(policy.model, kind).save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    with raises(ConfigError, "models.student", "IA3", "LORA"):
        train(run(folder, models, tmp_path))


def test_adapter_on_head_is_trained(models: dict, tmp_path: Path) -> None:
    config = run(models["student"], models, tmp_path, lora={"rank": 2, "target_modules": r".*(q_proj|lm_head)"})
    train(config)
    first, second = RunFolder(config.run_dir).metrics("train")
    assert abs(first["loss"]) < 1e-6 < second["loss"]
    saved = safetensors.torch.load_file(list_checkpoints(config.run_dir)[-1].student / "adapter_model.safetensors")
    assert saved["base_model.model.lm_head.lora_B.weight"].any()
