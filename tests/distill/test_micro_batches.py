"""Micro-batches by a budget of tokens: sorted, within the budget, and without effect on any number."""

from dataclasses import replace

import pytest
import torch
from failures import raises
from small import example, run_config, step_with_gradients, table_policies

from workbench.data.contexts import build_prompt
from workbench.distill.micro_batches import split_by_tokens
from workbench.distill.rollouts import sample_rollouts
from workbench.distill.scoring import Batch
from workbench.distill.step import StepResult
from workbench.errors import ConfigError
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.policies.loading import load_policies
from workbench.policies.pass_counts import count_passes
from workbench.policies.row_sizes import RowSize, num_tokens, padded_tokens
from workbench.training.learner import build_learner

COMPLETIONS = (9, 2, 7, 1, 4, 3)


def rows(*sizes: tuple[object, int, int]) -> list[RowSize]:
    return [RowSize(*size) for size in sizes]


def test_padded_tokens_count_shared_prompt_once() -> None:
    shared = rows(("a", 10, 3), ("a", 10, 5), ("b", 8, 1))
    assert (num_tokens(shared), padded_tokens(shared)) == (10 + 8 + 3 + 5 + 1, 2 * 10 + 3 * 5)
    apart = rows((0, 10, 3), (1, 10, 5), (2, 8, 1))
    assert (num_tokens(apart), padded_tokens(apart)) == (37, 3 * (10 + 5))


def test_split_by_tokens_sorts_by_length_within_budget() -> None:
    sizes = rows((0, 4, 16), (1, 4, 2), (2, 4, 15), (3, 4, 1), (4, 4, 30))
    # 3 and 1: 2 x (4 + 2); with 2 it would be 3 x 19. 2 and 0: 2 x 20; the last alone exceeds the budget
    assert split_by_tokens(sizes, 40) == [[1, 3], [0, 2], [4]]
    assert split_by_tokens(sizes, 33) == [[1, 3], [2], [0], [4]]
    assert split_by_tokens(sizes, 5 * 34) == [[0, 1, 2, 3, 4]]


def test_split_by_tokens_keeps_rows_of_long_prompt_together() -> None:
    # by row length a, b, a, b: two prompts in both passes, 2 x (2 x 100 + 2 x ...); by prompt one in each
    sizes = rows(("a", 100, 1), ("b", 100, 2), ("a", 100, 3), ("b", 100, 4))
    assert split_by_tokens(sizes, 2 * 100 + 2 * 4) == [[0, 2], [1, 3]]
    short = rows(("a", 1, 1), ("b", 1, 2), ("a", 1, 30), ("b", 1, 40))
    assert split_by_tokens(short, 82) == [[0, 1], [2, 3]]


def test_split_by_tokens_covers_every_row_once() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 60, (40, 2), generator=generator).tolist()
    sizes = rows(*((idx // 4, 20, completion) for idx, (_, completion) in enumerate(lengths)))
    for budget in (1, 50, 200, 10_000):
        split = split_by_tokens(sizes, budget)
        assert sorted(row for part in split for row in part) == list(range(40))
        assert all(len(part) == 1 or padded_tokens([sizes[row] for row in part]) <= budget for part in split)


def scored(policies: dict, batch: Batch) -> tuple[StepResult, list[torch.Tensor], object]:
    method, model = load_method("dopd", {"privilege": "boxes"}), policies["student"].model
    model.zero_grad()
    with count_passes() as counts:
        result = step_with_gradients(method, policies, batch)
    gradient = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    return result, gradient, counts


@pytest.fixture(scope="module")
def mixed(models: dict) -> tuple[dict, tuple]:
    """Policies of dopd, and two answers of unequal length to each of three questions."""
    policies = load_policies(load_method("dopd", {"privilege": "boxes"}).policies, **models)
    prompt = build_prompt(example(0), "plain")
    long = policies["student"].sample([prompt], [[1, 2, 3, 4, 5, 6]], SamplingOptions(9))[0]
    examples = [example(idx) for idx in range(3)]
    options = {"context": "plain", "sampling": SamplingOptions(3), "num_generations": 2, "seed": (0,)}
    rollouts = sample_rollouts(policies["student"], examples, **options)
    pairs = zip(rollouts, long, COMPLETIONS, strict=True)
    return policies, tuple(
        replace(rollout, ids=answer.ids[:length], logprobs=answer.logprobs[:length])
        for rollout, answer, length in pairs
    )


def test_token_budget_changes_no_number(mixed: tuple) -> None:
    policies, rollouts = mixed
    whole, gradient, of_whole = scored(policies, Batch(rollouts))
    (longest,) = policies["student"].row_sizes([build_prompt(example(0), "boxes")], [rollouts[0].ids])
    cut, of_cut, counts = scored(policies, Batch(rollouts, tokens_per_micro_batch=longest.length + 20))
    assert cut.batch.num_micro_batches > 1 and not counts.oversized
    assert counts.padding_share < of_whole.padding_share
    assert torch.allclose(whole.loss, cut.loss, atol=1e-5)
    assert torch.allclose(whole.loss_normalizer, cut.loss_normalizer)
    assert torch.equal(whole.routing.regime, cut.routing.regime)
    for view, values in whole.scores.items():
        assert torch.allclose(values.logprob, cut.scores[view].logprob, atol=1e-5)
        for first, second in zip(whole.top_k_tokens.top[view], cut.top_k_tokens.top[view], strict=True):
            assert torch.allclose(first.float(), second.float(), atol=2e-5)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(gradient, of_cut, strict=True))


def test_token_budget_that_holds_a_step_is_equal_bit_for_bit(mixed: tuple) -> None:
    policies, rollouts = mixed
    whole, gradient, _ = scored(policies, Batch(rollouts))
    held, of_held, _ = scored(policies, Batch(rollouts, tokens_per_micro_batch=10**6))
    assert torch.equal(whole.loss, held.loss)
    assert all(torch.equal(*pair) for pair in zip(gradient, of_held, strict=True))


def test_row_above_token_budget_passes_alone_and_is_counted(mixed: tuple) -> None:
    policies, rollouts = mixed
    whole, _, _ = scored(policies, Batch(rollouts))
    single, _, counts = scored(policies, Batch(rollouts, tokens_per_micro_batch=1))
    assert single.batch.rows == [[3], [1], [5], [4], [2], [0]]
    assert counts.oversized == 3 * 6  # views self and teacher, and the learner
    assert torch.allclose(whole.loss, single.loss, atol=1e-5)


def test_token_budget_with_other_size_raises(models: dict, tmp_path) -> None:
    for key, value in (("micro_batch_size", 2), ("group_by_length", True)):
        with raises(ConfigError, "training.tokens_per_micro_batch=64", f"training.{key}={value}"):
            run_config(models, tmp_path, training__tokens_per_micro_batch=64, **{f"training__{key}": value})


def test_token_budget_with_diffusion_model_raises(tmp_path) -> None:
    folder = "data/models/diffusion"
    config = run_config(
        {"student": folder, "teacher": folder}, tmp_path, training__tokens_per_micro_batch=64, method={"name": "d_opsd"}
    )
    with raises(ConfigError, "training.tokens_per_micro_batch=64", "training.micro_batch_size"):
        build_learner(config, config.load_method())


def test_table_policies_have_row_sizes() -> None:
    sizes = table_policies()["student"].row_sizes([build_prompt(example(0), "plain")], [(1, 2)])
    assert [size.length for size in sizes] == [1 + 2]
