"""A rollout engine samples with the student's current weights and prompt, and records the log-probs of its draws."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_llama, save_modernvbert
from processes import launch
from small import run_config
from torch.distributed.tensor import DTensor

import workbench.training.learner
from workbench.config.schema import RunConfig
from workbench.distributed import join
from workbench.errors import ConfigError, PolicyError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.autoregressive import load_policy
from workbench.policies.encoding import collate
from workbench.policies.fsdp import describe_shards
from workbench.policies.vllm import Generation, Request, Sampled, VllmEngine, weights_of
from workbench.runs.folder import ReadOnlyFolder, RunFolder
from workbench.traces.reader import open_traces
from workbench.training.learner import Learner, attach_engine, build_learner, check_engine
from workbench.training.loop import Trainer
from workbench.types import Prompt


class OtherModel:
    """An engine with a model of its own, whose first weights are another's; it encodes text and images itself.

    stale   keeps the weights that it was given first
    shift   reads every prompt with another end
    """

    def __init__(self, other: Path, *, stale: bool = False, shift: bool = False) -> None:
        self.policy, self.stale, self.shift, self.loads = load_policy(other, "engine"), stale, shift, 0
        self.policy.prove()  # with the model's own encoder

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.loads += 1
        given = dict(weights)
        settings = dict(weights_of(self.policy.model))
        assert given.keys() == settings.keys() and all(given[name].shape == settings[name].shape for name in settings)
        if not (self.stale and self.loads > 1):
            for name, value in settings.items():
                value.copy_(given[name])

    def generate(self, generation: Generation) -> list[list[Sampled]]:
        assert generation.stop == self.policy.stop_ids and generation.never == self.policy.placeholders
        encoded = [self._encode(request) for request in generation.requests]
        prompts = [Prompt((), "", key=str(index)) for index in range(len(encoded))]
        self.policy.encoder = _Encoder(encoded, self.policy.encoder.pad_id)
        written = self.policy.sample(prompts, generation.seeds, generation.options)
        read = [tuple(entry["input_ids"][0].tolist()) + (7,) * self.shift for entry in encoded]
        return [
            [Sampled(item.ids, item.logprobs, ids) for item in values]
            for ids, values in zip(read, written, strict=True)
        ]

    def _encode(self, request: Request) -> dict:
        pictures = {"images": [list(request.images)]} if request.images else {}
        return dict(self.policy.processor(text=[request.text], **pictures, return_tensors="pt"))


class _Encoder:
    def __init__(self, encoded: list[dict], pad_id: int) -> None:
        self.encoded, self.pad_id = encoded, pad_id

    def batch(self, prompts: list[Prompt]) -> dict:
        return collate([self.encoded[int(prompt.key)] for prompt in prompts], self.pad_id)


def steps(models: dict, folder: Path, engine: OtherModel | None) -> Trainer:
    config = run_config(
        models, folder, models__cache_image_features=False, trace__probes=0, training__learning_rate=0.01
    )
    run = RunFolder.create(config.run_dir, config.to_yaml(), seed=0, method="dopd")
    trainer = Trainer(config, run)
    trainer.learners[0].student.engine = engine
    with trainer.trace_writer:
        trainer.measured = [trainer.train_step(step) for step in (1, 2, 3)]
    return trainer


def test_engine_run_equals_run_without_and_stale_weights_show(models: dict, tmp_path: Path) -> None:
    without = steps(models, tmp_path / "without", None)
    engine = OtherModel(models["teacher"])
    result = steps(models, tmp_path / "with", engine)
    assert engine.loads == 3  # before every generation
    for values, theirs in zip(result.measured, without.measured, strict=True):
        assert values["loss"] == pytest.approx(theirs["loss"], rel=1e-4) and values["sampler_logprob_gap"] < 1e-4
    stale = steps(models, tmp_path / "stale", OtherModel(models["teacher"], stale=True)).measured
    assert stale[0]["sampler_logprob_gap"] < 1e-4 < 1e-3 < stale[2]["sampler_logprob_gap"]
    traced = open_traces(tmp_path / "stale" / "run").sql(
        "SELECT step, avg(abs(logprob_student - sampler_logprob)) AS gap FROM tokens GROUP BY step ORDER BY step"
    )
    assert [row["gap"] for row in traced.to_pylist()] == pytest.approx(
        [item["sampler_logprob_gap"] for item in stale], abs=1e-5
    )


def work(student: str, teacher: str, folder: str) -> None:
    """One of the ranks of a sharded run: three steps and an evaluation whose answers an engine samples."""

    class InParts(OtherModel):
        whole = 0  # most layers of the student that were whole as a weight came

        def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
            super().load(self.counted(weights))

        def counted(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
            for pair in weights:
                layers = trainer.learners[0].student.shards.layers
                sharded = [isinstance(next(layer.parameters()), DTensor) for layer in layers]
                self.whole = max(self.whole, sharded.count(False))
                yield pair

    torch.set_num_threads(1)
    group = join()
    config = sharded_config({"student": student, "teacher": teacher}, Path(folder) / "ranks")
    group.broadcast_from_main(lambda: RunFolder.create(config.run_dir, config.to_yaml(), seed=0, method="dopd"))
    run = RunFolder(config.run_dir) if group.is_main else ReadOnlyFolder(config.run_dir)
    trainer = Trainer(config, run, process_group=group)
    engine = trainer.learners[0].student.engine = InParts(Path(teacher))
    with trainer.trace_writer:
        losses = [trainer.train_step(step)["loss"] for step in (1, 2, 3)]
        evaluated = trainer.evaluation(3)
    assert "each has a vllm" in describe_shards([trainer.learners[0].student], "float32")
    result = {"losses": losses, "evaluated": evaluated, "whole": engine.whole, "loads": engine.loads}
    (Path(folder) / f"out.{group.rank}").write_text(json.dumps(result))


def sharded_config(models: dict, folder: Path) -> RunConfig:
    rule = {"trace__probes": 0, "training__learning_rate": 0.1, "training__optimizer": "sgd", "evaluation__every": 0}
    return run_config(models, folder, models__cache_image_features=False, **rule)


@pytest.mark.subprocess
def test_engine_of_sharded_run_gets_weights_a_layer_at_a_time(models: dict, tmp_path: Path) -> None:
    code = "import sys; from test_engine import work; work(*sys.argv[1:])"
    arguments = str(models["student"]), str(models["teacher"]), str(tmp_path)
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    ended = launch(tmp_path / "ranks", code, *arguments, environment=sharded)
    assert not any(item.returncode for item in ended), [item.stderr[-3000:] for item in ended]
    ranks = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in range(2)]
    config = sharded_config(models, tmp_path / "alone")
    trainer = Trainer(config, RunFolder.create(config.run_dir, config.to_yaml(), seed=0, method="dopd"))
    trainer.learners[0].student.engine = OtherModel(models["teacher"])
    with trainer.trace_writer:
        losses = [trainer.train_step(step)["loss"] for step in (1, 2, 3)]
        evaluated = trainer.evaluation(3)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(losses, abs=2e-6)
        assert rank["evaluated"] == pytest.approx(evaluated, abs=1e-5)
        assert rank["whole"] == 1 and rank["loads"] == 4  # before each generation, on each rank


def test_engine_with_other_prompt_raises(models: dict, prompts: list) -> None:
    student = load_policy(models["student"], "student")
    student.engine = OtherModel(models["teacher"], shift=True)
    with raises(PolicyError, "one|plain"):
        student.sample(prompts[:1], [[1]], SamplingOptions(3))


@pytest.mark.parametrize("dora", [False, True])
def test_engine_gets_merged_adapters(dora: bool, models: dict) -> None:
    peft = pytest.importorskip("peft")
    student, plain = (load_policy(models["student"], "student") for _ in range(2))
    student.add_adapter(peft.LoraConfig(r=2, target_modules=r".*text_model.*q_proj", use_dora=dora))
    for name, value in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    merged = dict(weights_of(student.model))
    assert merged.keys() == dict(weights_of(plain.model)).keys()
    moved = [name for name, value in weights_of(plain.model) if not torch.equal(value, merged[name])]
    assert moved and all(name.endswith("q_proj.weight") for name in moved)
    text = student.tokenizer("which of the two", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = student.model(input_ids=text).logits
        plain.model.load_state_dict(merged, strict=False)
        assert torch.allclose(plain.model(input_ids=text).logits, wanted, atol=1e-4)


def test_engine_end_tokens_become_the_common_end(models: dict, prompts: list) -> None:
    class EndsOtherwise(OtherModel):
        def generate(self, generation: Generation) -> list:
            read = [tuple(self._encode(request)["input_ids"][0].tolist()) for request in generation.requests]
            return [
                [Sampled((5, other), (-1.0, -2.0), ids) for _ in values]
                for ids, values in zip(read, generation.seeds, strict=True)
            ]

    student = load_policy(models["student"], "student")
    end, other = student.end_id, 6
    student.stop_ids, student.head = frozenset({end, other}), replace(student.head, eos_ids=(end, other))
    student.engine = EndsOtherwise(models["teacher"])
    ((written,),) = student.sample(prompts[:1], [[1]], SamplingOptions(3))
    assert written == Completion((5, end), (-1.0, -2.0), True)


def test_engine_has_its_own_precision(models: dict, prompts: list) -> None:
    class Asks(OtherModel):
        def generate(self, generation: Generation) -> list:
            assert not torch.is_autocast_enabled("cpu")
            return super().generate(generation)

    student = load_policy(models["student"], "student")
    student.engine = Asks(models["teacher"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert student.sample(prompts[:1], [[1]], SamplingOptions(2))[0][0].ids


def test_engine_never_draws_unused_rows_of_head(models: dict, prompts: list) -> None:
    class Listens(OtherModel):
        def generate(self, generation: Generation) -> list:
            self.never = generation.never
            return super().generate(replace(generation, never=self.policy.placeholders))

    student = load_policy(models["student"], "student")
    rows, student.vocabulary = student.vocabulary, student.vocabulary - 3
    student.engine = Listens(models["teacher"])
    student.sample(prompts[:1], [[1]], SamplingOptions(2))
    assert student.engine.never == [*student.placeholders, rows - 3, rows - 2, rows - 1]


def test_engine_with_unsupported_option_raises(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, method={"name": "spd"}, sampling__backend="vllm")
    method = config.load_method()
    with raises(ConfigError, "sampling.backend=transformers"):
        check_engine(config, method)


def given(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> tuple[list[Learner], list[dict]]:
    """A run's learners, and what engines were made of to write for them."""
    requests: list[dict] = []

    class Made:
        def __init__(self, path: str, **options: object) -> None:
            requests.append({"path": path, **options})

    monkeypatch.setattr(workbench.training.learner, "VllmEngine", Made)
    method = config.load_method()
    learners = [build_learner(config, method, name) for name in config.models.learners]
    attach_engine(learners, config)
    return learners, requests


def test_engine_is_shared_by_students(models: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of = {"student": str(models["student"]), "peers": {"ann": str(models["teacher"])}}
    config = run_config(models, tmp_path, method={"name": "opcod"}, models=of, sampling__backend="vllm")
    learners, requested = given(monkeypatch, config)
    assert len(learners) == 2 and learners[0].student.engine is learners[1].student.engine
    (item,) = requested
    assert item["path"] == of["student"] and item["dtype"] == "float32"
    of["peers"] = {"ann": str(save_llama(tmp_path / "other"))}
    other = run_config(models, tmp_path, method={"name": "opcod"}, models=of, sampling__backend="vllm")
    with raises(ConfigError, "ann", "student", "architecture"):
        given(monkeypatch, other)


def test_engine_precision_is_that_of_scoring(models: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, sampling__backend="vllm", training__mixed_precision="bf16")
    assert given(monkeypatch, config)[1][0]["dtype"] == "bfloat16"


def test_engine_for_masked_diffusion_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = str(save_modernvbert(tmp_path / "masked"))
    of = {"student": folder, "teacher": folder}
    config = run_config(of, tmp_path, method={"name": "opd"}, sampling__backend="vllm")
    with raises(ConfigError, "sampling.backend=vllm"):
        given(monkeypatch, config)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_engine_without_vllm_names_the_package(models: dict) -> None:
    with raises(ConfigError, "package vllm"):
        VllmEngine(str(models["student"]), dtype="float32", memory=0.1, trust_remote_code=False)
