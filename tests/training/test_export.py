"""What leaves the workbench is read without it: the student by transformers, the traces by datasets."""

import json
import os
from pathlib import Path

import datasets as hf_datasets
import pytest
import torch
from failures import raises
from PIL import Image
from small import example, run_config
from transformers import AutoModelForImageTextToText, AutoProcessor

from workbench.data.contexts import build_prompt
from workbench.errors import ConfigError, RunError
from workbench.policies.adapters import merged_weights
from workbench.policies.autoregressive import load_policy
from workbench.runs.checkpoints import list_checkpoints
from workbench.traces.reader import open_traces
from workbench.training.export import export_student, export_traces
from workbench.training.run import train


def trained(models: dict, folder: Path, rank: int) -> Path:
    folders = {name: str(folder) for name, folder in models.items()} | {"lora": {"rank": rank}}
    quick = {"training__steps": 2, "evaluation__every": 2 if rank == 0 else 0, "trace__probes": 2 if rank == 0 else 0}
    config = run_config(models, folder, models=folders, **quick | ({"data__eval": None} if rank else {}))
    train(config)
    return config.run_dir


@pytest.fixture(scope="module")
def run(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(models, tmp_path_factory.mktemp("whole"), 0)


@pytest.fixture(scope="module")
def adapted(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained a LoRA adapter."""
    return trained(models, tmp_path_factory.mktemp("lora"), 2)


def logits_of(model: torch.nn.Module, policy) -> torch.Tensor:
    inputs, start, _ = policy.model_inputs([build_prompt(example(), "plain")], [(300, 301)])
    with torch.no_grad():
        return model.eval()(**inputs).logits[:, start - 1 :]


@pytest.mark.parametrize("which", ["run", "adapted"])
def test_exported_student_loads_with_auto_classes(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = request.getfixturevalue(which)
    exported = export_student(run, tmp_path / "model")
    files = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "chat_template.jinja", "tokenizer.json"} <= files
    assert not any(word in name for name in files for word in ("adapter", "optimizer", "ema", "state"))
    assert "auto_map" not in json.loads((tmp_path / "model/config.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert exported.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    trained = load_policy(list_checkpoints(run)[-1].student, "student")
    assert torch.allclose(logits_of(model, trained), logits_of(trained.model, trained), atol=1e-5)
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": example().images[0]}, {"type": "text", "text": "what?"}],
        }
    ]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_export_card_names_training_and_accuracy(run: Path, tmp_path: Path) -> None:
    export_student(run, tmp_path / "model", step=2)
    card = (tmp_path / "model/README.md").read_text()
    front, body = card.split("---\n", 2)[1:]
    assert "pipeline_tag: image-text-to-text" in front and "- dopd" in front
    assert "after 2 steps of `dopd`" in body and "arXiv 2606.30626" in body
    assert (
        "| `teacher` | teacher | crop | scoring only |" in body and "| `student` | student | plain | trained |" in body
    )
    assert "`plain`: the images and the question, and nothing else" in body
    assert "also had the `crop` of each question" in body
    assert "| plain (in use) | 2 | 6 |" in body and "| crop (not in use) | 2 | 6 |" in body
    assert os.sep + "tmp" not in card and "torchvision" not in card  # no path of this machine, and no videos


def test_export_card_without_evaluation_says_so(adapted: Path, tmp_path: Path) -> None:
    export_student(adapted, tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    assert "LoRA of rank 2, merged" in card and "Not evaluated under `plain`" in card


def test_exported_traces_are_a_dataset_with_images(run: Path, tmp_path: Path) -> None:
    exported = export_traces(run, tmp_path / "traces")
    traces = open_traces(run)
    for table in ("rollouts", "tokens", "aggregates", "probe_rollouts", "probe_tokens"):
        loaded = hf_datasets.load_dataset(
            str(tmp_path / "traces"), table, split="train", cache_dir=str(tmp_path / "cache")
        )
        assert len(loaded) == exported.rows[table] == len(traces.sql(f"SELECT step FROM {table}"))
    rollouts, images = (
        hf_datasets.load_dataset(str(tmp_path / "traces"), name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("rollouts", "images")
    )
    pictures = {row["name"]: row["image"] for row in images}
    assert len(pictures) == len(images)
    row = rollouts[0]
    assert set(row["images"]) | set(row["images_teacher"]) <= pictures.keys() and len(row["images_teacher"]) == 2
    (first,) = traces.rollout(row["step"], row["rollout_idx"]).images()
    assert pictures[row["images"][0]].tobytes() == Image.open(first).tobytes()
    assert {entry["key"] for entry in row["regime_counts"]} <= traces.regimes.keys()
    positions = hf_datasets.load_dataset(
        str(tmp_path / "traces"), "tokens", split="train", cache_dir=str(tmp_path / "cache")
    )
    mine = traces.sql("SELECT * FROM tokens ORDER BY step, process_rank, rollout_idx, position")
    for column in ("token_id", "regime", "capability_gap", "information_gap", "loss"):
        assert positions[column][:] == mine[column].to_pylist()


def test_export_error_is_one_sentence_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for export in (export_student, export_traces):
        with raises(ConfigError, "exists", "new folder"):
            export(run, tmp_path / "there")
    with raises(RunError, "ann", "student"):
        export_student(run, tmp_path / "model", learner="ann")
    with raises(RunError, "checkpoint"):
        export_student(run, tmp_path / "model", step=7)
    with raises(RunError, "hf:nobody/nothing"):
        export_student(run, "hf:nobody/nothing")
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


TIED = {
    "embeddings": {"target_modules": r".*text_model.*(q_proj|embed_tokens)"},
    "head": {"target_modules": r".*(q_proj|lm_head)"},
}


@pytest.fixture(scope="module")
def tied(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with one matrix for embeddings and head."""
    policy = load_policy(models["student"], "student")
    config = policy.model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    policy.model.tie_weights()
    folder = tmp_path_factory.mktemp("tied")
    policy.model.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    assert load_policy(folder, "student").model.lm_head.weight.shape == policy.model.lm_head.weight.shape
    return folder


def differences(exported: Path, *others: Path) -> list[float]:
    """How far logits of a plain transformers model are from those of other folders, in nats."""
    policies = [load_policy(folder, "student") for folder in others]
    plain = logits_of(AutoModelForImageTextToText.from_pretrained(exported), policies[0])
    return [float((logits_of(policy.model, policy) - plain).abs().max()) for policy in policies]


@pytest.mark.filterwarnings("error:.*tie_word_embeddings")
@pytest.mark.parametrize("where", TIED)
def test_export_adapter_on_tied_embeddings_equals_trained(where: str, tied: Path, tmp_path: Path) -> None:
    folders = {"student": str(tied), "lora": {"rank": 2, **TIED[where]}}
    quick = {"training__steps": 2, "training__learning_rate": 0.05, "trace__probes": 0, "data__eval": None}
    config = run_config({"student": tied, "teacher": tied}, tmp_path, models=folders, method={"name": "opsd"}, **quick)
    train(config)
    checkpoint = list_checkpoints(config.run_dir)[-1].student
    export_student(config.run_dir, tmp_path / "model")
    values, start = differences(tmp_path / "model", checkpoint, tied)
    assert values < 1e-4 and start > 0.1
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_export_adapters_on_both_uses_of_a_matrix_raise(tied: Path, tmp_path: Path) -> None:
    folders = {"student": str(tied), "lora": {"rank": 2, "target_modules": r".*(embed_tokens|lm_head)"}}
    with raises(ConfigError, "target_modules"):
        train(run_config({"student": tied, "teacher": tied}, tmp_path, models=folders, method={"name": "opsd"}))


@pytest.mark.parametrize("options", [TIED["embeddings"], {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_export_peft_adapter_equals_trained(options: dict, models: dict, tied: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = tied if "target_modules" in options else models["student"]
    policy = load_policy(base, "student")
    options = {"r": 2, "target_modules": r".*text_model.*q_proj", **options}
    adapted = peft.get_peft_model(policy.model, peft.LoraConfig(**options))
    for value in adapted.parameters():
        if value.requires_grad:
            value.data.add_(0.3 * torch.randn_like(value))
    adapted.save_pretrained(tmp_path / "adapter")
    policy.processor.save_pretrained(tmp_path / "adapter")
    folders = {"student": str(tmp_path / "adapter"), "teacher": str(models["teacher"])}
    quick = {"training__steps": 1, "trace__probes": 0, "data__eval": None, "training__learning_rate": 1e-2}
    config = run_config(models, tmp_path, models=folders, **quick)
    train(config)
    export_student(config.run_dir, tmp_path / "model")
    values, start = differences(tmp_path / "model", list_checkpoints(config.run_dir)[-1].student, base)
    assert values < 1e-4 and start > 0.1
    assert "LoRA of rank 2, merged" in (tmp_path / "model/README.md").read_text()


def test_export_with_other_logits_raises(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: value * 1.1 for name, value in merged_weights(model).items()}

    monkeypatch.setattr("workbench.training.export.merged_weights", wrong)
    with raises(RunError, "student", "nats"):
        export_student(adapted, tmp_path / "model")
    assert not list(tmp_path.iterdir())
