"""Policies that do not fit together are refused before anything is compared."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from failures import raises
from small import example

from workbench.data.contexts import build_prompt
from workbench.errors import ConfigError, PolicyError
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.loading import load_policies


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """An own copy of the small model, to damage."""
    return shutil.copytree(folders["idefics3"], tmp_path / "model")


def edit(file: Path, change) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_load_policies_are_keyed_by_name(models: dict[str, Path]) -> None:
    names = ("student", "student@start", "student@ema", "teacher", "teacher:ocr")
    policies = load_policies(names, **models, teachers={"ocr": str(models["teacher"])}, max_completion_length=12)
    assert tuple(policies) == names
    assert {policy.name for policy in policies.values()} == set(names)
    assert not any(p.requires_grad for policy in policies.values() for p in policy.model.parameters())
    assert {policy.encoder.max_prompt_length for policy in policies.values()} == {500}  # 512 less the completion
    weights = [next(iter(policies[name].model.parameters())) for name in names]
    assert torch.equal(weights[0], weights[1]) and weights[0] is not weights[1]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])


def test_load_policies_equal_encoders_are_shared(folder: Path, models: dict[str, Path]) -> None:
    policies = load_policies(("teacher",), **models)
    assert policies["student"].encoder is policies["teacher"].encoder
    edit(folder / "processor_config.json", lambda values: values["image_processor"].update(rescale_factor=0.5))
    policies = load_policies(("teacher",), student=folder, teacher=models["teacher"])
    assert policies["student"].encoder is not policies["teacher"].encoder


def test_load_policies_missing_teacher_raises(models: dict[str, Path]) -> None:
    for name in ("teacher", "teacher:ocr"):
        with raises(ConfigError, f'"{name}"'):
            load_policies((name,), student=models["student"])


def test_load_policies_too_long_completion_raises(models: dict[str, Path]) -> None:
    with raises(ConfigError, "sampling.max_completion_length=512"):
        load_policies((), student=models["student"], max_completion_length=512)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.json", "as a model"),
        ("model.safetensors", "as a model"),
        ("tokenizer.json", "Save the processor"),
        ("processor_config.json", "Save the processor"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
def test_load_policies_damaged_folder_is_named(name: str, sentence: str, damage: str, folder: Path) -> None:
    file = folder / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[: file.stat().st_size // 2])
    if name == "processor_config.json" and damage == "missing":
        (folder / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(PolicyError, match=f'teacher: .*".*model".* {sentence}'):
        load_policy(folder, "teacher")


def test_load_policies_weights_of_other_size_are_named(folder: Path) -> None:
    edit(folder / "config.json", lambda values: values["text_config"].update(hidden_size=64))
    with raises(PolicyError, "[401"):
        load_policy(folder, "teacher")


def test_load_policies_other_token_ids_raise(models: dict, folder: Path) -> None:
    def swap(values: dict) -> None:
        vocabulary = values["model"]["vocab"]
        vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]

    edit(folder / "tokenizer.json", swap)
    with raises(PolicyError, "teacher", "student", "token"):
        load_policies(("teacher",), student=models["student"], teacher=folder)
    with raises(PolicyError, "teacher:count"):
        load_policies(
            ("teacher",),
            student=models["student"],
            teachers={"color": str(models["teacher"]), "count": str(folder)},
        )


def test_load_policies_teachers_by_domain_load_each_model_once(models: dict) -> None:
    first, second = str(models["teacher"]), str(models["student"])
    policies = load_policies(
        ("teacher",), student=second, teacher=second, teachers={"color": first, "count": second, "shape": first}
    )
    assert set(policies) == {"student", "teacher:color+shape", "teacher:count", "teacher:other", "teacher"}
    teacher = policies["teacher"]
    assert teacher.of("shape") is policies["teacher:color+shape"] and teacher.of("tag") is policies["teacher:other"]
    alone = load_policies(("teacher",), student=second, teachers={"color": first})["teacher"]
    with raises(PolicyError, "tag"):
        alone.check_prompt(build_prompt(example(domain="tag"), "plain"))


def resized(folder: Path, extra: int, target: Path) -> Path:
    """The model with a padded vocabulary, as families pad theirs to another multiple."""
    policy = load_policy(folder, "teacher")
    policy.model.resize_token_embeddings(policy.vocabulary + extra, mean_resizing=False)
    policy.model.save_pretrained(target)
    policy.processor.save_pretrained(target)
    return target


def test_load_policies_padded_head_is_cut_to_shared_entries(models: dict, tmp_path: Path) -> None:
    padded = resized(models["teacher"], 13, tmp_path / "padded")
    for student, teacher in ((models["student"], padded), (padded, models["student"])):
        policies = load_policies(("teacher",), student=student, teacher=teacher)
        sizes = {policy.vocabulary for policy in policies.values()}
        assert sizes == {len(policies["student"].tokenizer)}
        prompt = build_prompt(example(), "plain")
        for policy in policies.values():
            logits = policy.forward([prompt], [(300, 301)]).logits(torch.arange(2))
            assert logits.shape == (2, sizes.copy().pop())
            assert torch.allclose(logits.softmax(-1).sum(-1), torch.ones(2))


def test_load_policies_head_smaller_than_tokenizer_raises(models: dict, tmp_path: Path) -> None:
    small = resized(models["teacher"], -3, tmp_path / "small")
    with raises(PolicyError, "head", "entries"):
        load_policies(("teacher",), student=models["student"], teacher=small)


def test_load_policies_end_token_may_come_from_model(folder: Path) -> None:
    policy = load_policy(folder, "student")
    policy.tokenizer.eos_token = None
    policy.tokenizer.pad_token = None
    bare = AutoregressivePolicy(policy.model, policy.processor, "student")
    prompts = [build_prompt(example(0), "plain"), build_prompt(example(1), "caption")]
    assert bare.answer_ids("red")[-1] in bare.stop_ids
    assert bare.forward(prompts, [(300,), (301, 302)]).hidden.shape[0] == 3
