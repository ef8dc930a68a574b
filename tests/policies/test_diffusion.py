"""The masked diffusion policy: sampler and learner agree, and every position is scored before its own step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_idefics3, save_modernvbert
from small import example
from transformers import EuroBertConfig, EuroBertForMaskedLM, PreTrainedTokenizerFast

from workbench.data.contexts import (
    build_prompt,
    dummy_rollout,
    is_missing_rollout_data,
    parse_context,
    require_promptable,
)
from workbench.distill.losses import score
from workbench.errors import ConfigError, DataError, PolicyError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.loading import load_policies, load_policy
from workbench.training.pretraining.tokenizer import EOS
from workbench.types import DenoisingTrace, Prompt, Rollout

OPTIONS = SamplingOptions(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_modernvbert(tmp_path_factory.mktemp("modernvbert"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> DiffusionPolicy:
    return load_policy(folder, "student")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [
        build_prompt(example(0), "plain"),
        build_prompt(example(1, images=()), "caption"),
        build_prompt(example(2), "crop"),
    ]


@pytest.fixture(scope="module")
def written(policy: DiffusionPolicy, prompts: list[Prompt]) -> list[Completion]:
    return [item for values in policy.sample(prompts, [[1, 2], [3], [4, 5]], OPTIONS) for item in values]


def logprobs(policy: DiffusionPolicy, prompts: list[Prompt], written: list[Completion]) -> torch.Tensor:
    output = policy.forward(prompts, [each.ids for each in written], [entry.denoising for entry in written])
    return score(output, torch.tensor([token for item in written for token in item.ids])).logprob


def test_diffusion_samples_and_scores_equal_log_probs(policy, prompts, written) -> None:
    rows = [prompts[row] for row in (0, 0, 1, 2, 2)]
    sampled = torch.tensor([value for entry in written for value in entry.logprobs])
    assert torch.allclose(logprobs(policy, rows, written), sampled, atol=1e-4)
    alone = torch.cat([logprobs(policy, [row], [item]) for row, item in zip(rows, written, strict=True)])
    assert torch.allclose(alone, sampled, atol=1e-4)


def test_diffusion_commits_two_tokens_per_step_by_block(written) -> None:
    for item in written:
        steps = item.denoising.steps
        assert sorted(set(steps)) == list(range(item.denoising.num_steps))
        assert all(1 <= steps.count(step) <= 2 for step in steps)
        blocks = [max(steps[start : start + 4]) for start in range(0, len(steps), 4)]
        assert blocks == sorted(blocks)
        assert [step // 2 for step in steps[: 4 * (len(steps) // 4)]] == [
            at // 4 for at in range(4 * (len(steps) // 4))
        ]


def test_diffusion_answer_depends_on_its_own_seed(policy, prompts, written) -> None:
    (again,) = policy.sample([prompts[0]], [[2]], OPTIONS)[0]
    assert (again.ids, again.denoising) == (written[1].ids, written[1].denoising)
    greedy = [policy.sample([prompts[0]], [[seed]], replace(OPTIONS, temperature=0.0))[0][0].ids for seed in (1, 2)]
    assert greedy[0] == greedy[1] != written[0].ids


def test_diffusion_end_closes_canvas_without_padding(policy, prompts) -> None:
    eager = policy.copy("eager")
    end = eager.tokenizer.eos_token_id
    with torch.no_grad():  # a head that likes the end token at every position
        eager.model.lm_head.bias[end] += 4.0
    ended = [element for element in eager.sample([prompts[0]], [list(range(24))], OPTIONS)[0] if element.finished]
    assert len(ended) > 12
    assert len({len(each.ids) for each in ended}) > 1
    for item in ended:
        assert item.ids.count(end) == 1 == item.ids[::-1].index(end) + 1
        assert not {eager.mask_id, eager.pad_id} & set(item.ids)
    sampled = torch.tensor([value for entry in ended for value in entry.logprobs])
    assert torch.allclose(logprobs(eager, [prompts[0]] * len(ended), ended), sampled, atol=1e-4)


def test_diffusion_scores_token_before_its_step(policy, prompts, written) -> None:
    item = max(written, key=lambda entry: len(entry.ids))
    before = logprobs(policy, [prompts[0]], [item])
    steps, changed = torch.tensor(item.denoising.steps), item.denoising.num_steps - 3
    ids = tuple(token if step < changed else 40 for token, step in zip(item.ids, item.denoising.steps, strict=True))
    other = replace(item, ids=ids)
    output = [policy.forward([prompts[0]], [each.ids], [each.denoising]).hidden for each in (item, other)]
    same = (output[0] - output[1]).abs().amax(-1) < 1e-5
    assert bool(same[steps <= changed].all())
    assert not bool(same[steps > changed].any())
    assert before.shape == (len(item.ids),)


def rollout(item: Completion) -> Rollout:
    return Rollout(example(0), 0, item.ids, "", item.finished, item.logprobs, 1.0, denoising=item.denoising)


def test_diffusion_future_shows_fraction_of_later_blocks(policy, written) -> None:
    item = rollout(written[0])
    displayed = build_prompt(example(0), "future:0.5", item).future
    assert displayed == build_prompt(example(0), "future:0.5", item).future
    order = item.denoising
    for step, places in enumerate(displayed):
        later = order.canvas - 4 * (order.block_of(step) + 1)
        assert len(places) == later // 2
        assert all(position >= 4 * (order.block_of(step) + 1) for position in places)
    other = rollout(replace(written[0], denoising=replace(order, seed=order.seed + 1)))
    assert build_prompt(example(0), "future:0.5", other).future != displayed
    assert not any(build_prompt(example(0), "future:0", item).future)
    assert build_prompt(example(0), "future", item).future != displayed


def test_diffusion_future_after_end_is_empty() -> None:
    order = DenoisingTrace((0, 1, 0, 1, 3, 2), 4, 16)
    displayed = build_prompt(
        example(0), "future:1", Rollout(example(0), 0, (9, 9, 9, 9, 9, 2), "", True, denoising=order)
    ).future
    assert [len(places) for places in displayed] == [12, 12, 8, 0]


def test_diffusion_future_changes_earlier_positions_only(policy, written) -> None:
    item = rollout(written[0])
    hidden = {}
    for context in ("plain", "future:0", "future:0.5"):
        hidden[context] = policy.forward([build_prompt(example(0), context, item)], [item.ids], [item.denoising]).hidden
    assert torch.equal(hidden["plain"], hidden["future:0"])
    differs = (hidden["plain"] - hidden["future:0.5"]).abs().amax(-1) > 1e-6
    assert bool(differs[:12].all()) and not bool(differs[12:].any())


@pytest.mark.parametrize("context", ["future:2", "future:x", "future+future:0.5", "plain+future"])
def test_parse_context_wrong_future_raises(context: str) -> None:
    with raises(ConfigError, "future"):
        parse_context(context)


def test_future_context_needs_a_denoised_rollout(policy, written) -> None:
    with raises(DataError, "rollout"):
        build_prompt(example(0), "caption+future")
    left_to_right = replace(rollout(written[0]), denoising=None)
    assert is_missing_rollout_data(left_to_right, "caption+future:0.1") and not is_missing_rollout_data(
        rollout(written[0]), "future"
    )
    with raises(ConfigError, "existing answer"):
        require_promptable("future:0.1")
    assert build_prompt(example(0), "caption+future", dummy_rollout(example(0))).future == ()


def test_diffusion_given_answer_is_denoised_left_to_right(policy) -> None:
    order = policy.denoising_schedule(tuple(range(30, 37)))
    assert order == DenoisingTrace((0, 0, 1, 1, 2, 2, 3), 4, 16)
    with raises(PolicyError, "17 tokens", "of 16"):
        policy.denoising_schedule(tuple(range(30, 47)))


def test_diffusion_pace_is_shared_and_saved(folder: Path, tmp_path: Path) -> None:
    names = ("student", "student@start", "teacher")
    policies = load_policies(
        names, student=folder, teacher=folder, block=8, steps_per_block=3, max_completion_length=24
    )
    assert {(item.block, item.steps_per_block, item.canvas) for item in policies.values()} == {(8, 3, 24)}
    loaded = policies["student"]
    assert loaded.encoder.max_prompt_length == 512 - 24
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load_policy(tmp_path, "again")
    assert (again.block, again.steps_per_block, again.canvas) == (8, 3, 24)
    with raises(ConfigError, "9 denoising", "8 positions"):
        loaded.set_denoising_steps(8, 9)


def test_diffusion_and_autoregressive_models_do_not_mix(folder: Path, tmp_path: Path) -> None:
    left_to_right = save_idefics3(tmp_path)
    with raises(PolicyError, "denoising"):
        load_policies(("teacher",), student=folder, teacher=left_to_right, max_completion_length=8)
    with raises(ConfigError, "Idefics3ForConditionalGeneration"):
        load_policies((), student=left_to_right, block=4)
    with raises(ConfigError, "sampling.max_completion_length=512"):
        load_policies((), student=folder, max_completion_length=512)


def test_diffusion_too_long_prompt_raises_with_length(folder: Path) -> None:
    student = load_policies((), student=folder, max_completion_length=480)["student"]
    with raises(PolicyError, "most 32"):
        student.check_prompt(build_prompt(replace(example(0), question="word " * 40), "plain"))


def test_diffusion_text_model_scores_text_only(policy: DiffusionPolicy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = policy.tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=values.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=EOS,
        mask_token="<mask>",
    )
    config = EuroBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    EuroBertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = load_policy(tmp_path, "text")
    prompts = [Prompt((), "what is the tag?", key="one"), Prompt((), "a longer question than the other one", key="two")]
    written = [entry for settings in text.sample(prompts, [[1], [2]], SamplingOptions(8)) for entry in settings]
    sampled = torch.tensor([value for item in written for value in item.logprobs])
    assert torch.allclose(logprobs(text, prompts, written), sampled, atol=1e-4)
    with raises(PolicyError, "image processor"):
        text.check_prompt(build_prompt(example(0), "plain"))
