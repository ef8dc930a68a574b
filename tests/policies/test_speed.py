"""What saves memory or time changes no number: each of these options against the same without it."""

import contextlib
import dataclasses
import functools
import importlib.util
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from failures import raises
from small import example, run_config, step_with_gradients
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModelOutput

import workbench.policies.sampling
from workbench.data.contexts import build_prompt
from workbench.data.scenes import make_examples
from workbench.distill.losses import score
from workbench.distill.rollouts import sample_rollouts
from workbench.distill.scoring import Batch
from workbench.distill.step import StepResult
from workbench.errors import ConfigError
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.compiling import compile_parts
from workbench.policies.image_features import cached_image_features
from workbench.policies.loading import load_policies
from workbench.policies.sampling import ROW_BYTES
from workbench.runs.folder import RunFolder
from workbench.training.loop import Trainer
from workbench.types import Prompt

IDS = (300, 301, 302, 303)


def logprobs(policy: AutoregressivePolicy, prompts: list[Prompt]) -> torch.Tensor:
    return score(policy.forward(prompts, [IDS] * len(prompts)), torch.tensor(IDS * len(prompts))).logprob.detach()


def teacher(models: dict[str, Path], **options: object) -> AutoregressivePolicy:
    return load_policies(("teacher",), student=models["student"], teacher=models["teacher"], **options)["teacher"]


def test_offloaded_teacher_scores_equal_and_leaves_device(models: dict, prompts: list) -> None:
    resident, offloaded = teacher(models), teacher(models, offload_teachers=True)
    head = offloaded.model.get_output_embeddings().weight
    at_home = {name: element.data_ptr() for name, element in offloaded.model.named_parameters()}
    abroad = {}
    offloaded.model.base_model.register_forward_hook(
        lambda *_: abroad.update({name: each.data_ptr() for name, each in offloaded.model.named_parameters()})
    )
    assert torch.allclose(logprobs(offloaded, prompts), logprobs(resident, prompts), atol=2e-5)
    written = [policy.sample(prompts[:1], [[1]], SamplingOptions(4))[0][0].ids for policy in (offloaded, resident)]
    assert written[0] == written[1]
    assert {name: entry.data_ptr() for name, entry in offloaded.model.named_parameters()} == at_home
    moved = {name for name, position in abroad.items() if position != at_home[name]}
    assert moved == {name for name, item in offloaded.model.named_parameters() if item is not head}


def test_attn_implementation_is_passed_to_model(models: dict, prompts: list) -> None:
    plain, eager = teacher(models), teacher(models, attn_implementation="eager")
    assert (plain.model.config._attn_implementation, eager.model.config._attn_implementation) == ("sdpa", "eager")
    assert torch.allclose(logprobs(eager, prompts), logprobs(plain, prompts), atol=2e-5)


def test_compiled_run_equals_uncompiled(models: dict, tmp_path: Path) -> None:
    """Teacher, learner and its moving average, a copy of its weights: three steps, each depends on the last."""
    lost = {}
    for compiler in (None, "aot_eager"):
        method = {"name": "dopd", "privilege": "crop", "self_policy": "student@ema"}
        config = run_config(models, tmp_path / str(compiler), method=method, models__compile=compiler, trace__probes=0)
        trainer = Trainer(config, RunFolder.create(config.run_dir, config.to_yaml(), seed=0, method="dopd"))
        with trainer.trace_writer:
            lost[compiler] = [trainer.train_step(step)["loss"] for step in (1, 2, 3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 4
    assert lost["aot_eager"] == pytest.approx(lost[None], rel=1e-4) and len(set(lost[None])) == 3
    average, live = (trainer.learners[0].policies[name].model for name in ("student@ema", "student"))
    parts = {name: part for name, part in average.named_modules() if "forward" in vars(part)}
    assert len(parts) > 6 and all(part.forward.__self__ is part for part in parts.values())
    assert average.state_dict().keys() == live.state_dict().keys()


def test_compile_model_without_layers_raises() -> None:
    with raises(ConfigError, "models.compile=eager"):
        compile_parts(torch.nn.Linear(2, 2), "eager", "peer")


def test_unavailable_compiler_or_attention_raises(models: dict) -> None:
    with raises(ConfigError, "models.compile=nonsense"):
        teacher(models, compiler="nonsense")
    if importlib.util.find_spec("tvm") is None:
        with raises(ConfigError, "models.compile=tvm", "ImportError", "models.compile=inductor"):
            teacher(models, compiler="tvm")
    if importlib.util.find_spec("flash_attn") is None:
        with raises(ConfigError, "models.attn_implementation=flash_attention_2", "models.attn_implementation=sdpa"):
            teacher(models, attn_implementation="flash_attention_2")


def test_image_features_are_cached_per_weights(models: dict) -> None:
    """dopd shown boxes: the student looks once to write and to read as `self`, and once more to learn."""
    method = load_method("dopd", {"privilege": "boxes"})
    policies = load_policies(method.policies, **models)
    looks = []
    for name, policy in policies.items():
        policy.model.model.vision_model.register_forward_hook(lambda *_, name=name: looks.append(name))
    examples = [example(0), example(1)]

    def step(enabled: bool) -> StepResult:
        looks.clear()
        with cached_image_features() if enabled else contextlib.nullcontext():
            settings = sample_rollouts(
                policies["student"],
                examples,
                context="plain",
                sampling=SamplingOptions(5),
                num_generations=2,
                seed=(0,),
            )
            return step_with_gradients(method, policies, Batch(tuple(settings)))

    with_memory, seen = step(True), sorted(looks)
    without, seen_without = step(False), sorted(looks)
    assert seen == ["student", "student", "teacher"] and seen_without == ["student"] * 3 + ["teacher"]
    assert with_memory.batch.rollouts == without.batch.rollouts
    assert torch.equal(with_memory.loss, without.loss)
    for view, values in with_memory.scores.items():
        assert torch.equal(values.logprob, without.scores[view].logprob)


def test_image_features_of_other_prompt_are_its_own(idefics3: AutoregressivePolicy, prompts: list) -> None:
    alone = [logprobs(idefics3, [prompt]) for prompt in prompts]
    with cached_image_features(), torch.no_grad():
        logprobs(idefics3, prompts[:1])
        again = logprobs(idefics3, [dataclasses.replace(prompts[0], text="red"), *prompts])
        assert torch.allclose(again[len(IDS) :], torch.cat(alone), atol=2e-5)


def test_image_features_serve_every_prompt_of_the_image(policy: AutoregressivePolicy, prompts: list) -> None:
    """Of every family: a prompt of one picture, then one with another beside it, then both as rows of one batch."""
    first, second = prompts[0], dataclasses.replace(prompts[1], images=(*prompts[0].images, prompts[2].images[0]))
    looks, look = [], policy.model.get_image_features
    with torch.no_grad():
        alone = [logprobs(policy, [each]) for each in (first, second, prompts[2])]
        counted = lambda **inputs: looks.append(len(inputs["pixel_values"])) or look(**inputs)  # noqa: E731
        policy.model.get_image_features = functools.wraps(look)(counted)  # the policy inspects its signature
        try:
            with cached_image_features():
                again = [logprobs(policy, [entry]) for entry in (first, second, prompts[2])]
                seen = len(looks)
                both = logprobs(policy, [second, first])
        finally:
            del policy.model.get_image_features
    for item_value, other_value in zip(alone, again, strict=True):
        torch.testing.assert_close(item_value, other_value, rtol=0, atol=5e-5)
    torch.testing.assert_close(both, torch.cat((alone[1], alone[0])), rtol=0, atol=5e-5)
    assert len(looks) == seen <= 3
    if policy.model.config.model_type in ("idefics3", "llava", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        assert seen == 2  # the third prompt's picture was the second's other one


def test_image_features_of_a_timm_tower_are_cached(idefics3: AutoregressivePolicy, prompts: list) -> None:
    """Its output class has a required field."""
    look = idefics3.model.get_image_features

    def features(**inputs: torch.Tensor) -> TimmWrapperModelOutput:
        output = look(**inputs)
        return TimmWrapperModelOutput(last_hidden_state=output.last_hidden_state, pooler_output=output.pooler_output)

    with torch.no_grad():
        alone = logprobs(idefics3, prompts[:2])
        idefics3.model.get_image_features = functools.wraps(look)(features)
        try:
            with cached_image_features():
                assert torch.equal(logprobs(idefics3, prompts[:2]), alone)
        finally:
            del idefics3.model.get_image_features


def test_sampling_in_row_chunks_is_equal(
    idefics3: AutoregressivePolicy, prompts: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, rows = [[1, 2], [3, 4], [5, 6]], []
    whole = idefics3.sample(prompts, seeds, SamplingOptions(5))
    monkeypatch.setattr(workbench.policies.sampling, "CHUNK_BYTES", 2 * ROW_BYTES * idefics3.vocabulary)
    hook = idefics3.head.linear.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    cut = idefics3.sample(prompts, seeds, SamplingOptions(5))
    hook.remove()
    assert set(rows) == {2}
    for first, second in zip(chain(*whole), chain(*cut), strict=True):
        assert first.ids == second.ids and first.logprobs == pytest.approx(second.logprobs, abs=1e-5)


def test_group_by_length_changes_no_number(models: dict) -> None:
    method = load_method("dopd", {"privilege": "boxes"})
    policies = load_policies(method.policies, **models)
    prompt = build_prompt(example(0), "plain")
    settings = policies["student"].sample([prompt], [[1, 2, 3, 4, 5]], SamplingOptions(9))[0]
    shaped = [
        dataclasses.replace(each, ids=written.ids[:length], logprobs=written.logprobs[:length])
        for each, written, length in zip(
            sample_rollouts(
                policies["student"],
                [example(idx) for idx in range(5)],
                context="plain",
                sampling=SamplingOptions(3),
                num_generations=1,
                seed=(0,),
            ),
            settings,
            (9, 2, 7, 1, 4),
            strict=True,
        )
    ]
    matches = []
    for group_by_length in (False, True):
        policies["student"].model.zero_grad()
        result = step_with_gradients(method, policies, Batch(tuple(shaped), 2, group_by_length))
        matches.append(
            (
                result,
                [
                    parameter.grad.clone()
                    for parameter in policies["student"].model.parameters()
                    if parameter.grad is not None
                ],
            )
        )
    (plain, of_plain), (bucketed, of_bucketed) = matches
    assert torch.allclose(plain.loss, bucketed.loss, atol=1e-5)
    assert torch.equal(plain.routing.regime, bucketed.routing.regime)
    for view, values in plain.scores.items():
        assert torch.allclose(values.logprob, bucketed.scores[view].logprob, atol=2e-5)
        for first, second in zip(plain.top_k_tokens.top[view], bucketed.top_k_tokens.top[view], strict=True):
            assert torch.allclose(first.float(), second.float(), atol=2e-5)
    assert all(
        torch.allclose(entry_value, other_value, atol=1e-5)
        for entry_value, other_value in zip(of_plain, of_bucketed, strict=True)
    )


def test_eight_bit_teacher_scores_are_close() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra quantized is not installed")
    examples = make_examples("eval", count=8)
    values, small = (load_policy("data/models/teacher", "teacher", dtype=dtype) for dtype in ("float32", "int8"))
    prompts = [build_prompt(example, "plain") for example in examples]
    written = [tuple(values.tokenizer.encode(example.reference, add_special_tokens=False)) for example in examples]
    ids = torch.tensor([token for item in written for token in item])
    with torch.no_grad():
        first, second = (score(policy.forward(prompts, written), ids).logprob for policy in (values, small))
    assert not torch.equal(first, second) and float((first - second).abs().median()) < 0.05


def test_eight_bits_without_package_raise(models: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with raises(ConfigError, "package bitsandbytes"):
        teacher(models, teacher_options={"dtype": "int8"})
