"""SDPO: who is shown a sibling, and that nobody else contributes anything."""

from dataclasses import replace

import pytest
import torch
from failures import raises
from small import example, groups, run_config, table_policies, write_without_answer

from workbench.distill.rollouts import sample_rollouts
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.errors import ConfigError, DataError
from workbench.methods import load_method
from workbench.methods.sdpo import show_siblings
from workbench.policies import SamplingOptions
from workbench.training.run import train


def graded(*rewards: float | None) -> tuple:
    """Two answers to each question, graded so."""
    lengths = (3, 2, 4, 5, 2, 3)[: len(rewards)]
    return tuple(replace(item, reward=reward) for item, reward in zip(groups(*lengths), rewards, strict=True))


def gradient(rollouts: tuple, **options: object) -> torch.Tensor:
    policies, method = table_policies(), load_method("sdpo", options)
    scored_batch = score_batch(method, policies, Batch(rollouts))
    compute_step(method, policies, scored_batch, seed=0, backward=lambda total: total.backward())
    return policies["student"].tables["plain"].grad


def test_sdpo_wrong_answer_gets_first_right_sibling() -> None:
    displayed = [sibling.feedback for sibling in show_siblings(graded(0.0, 1.0, 1.0, 0.0, 0.0, None))]
    assert displayed == ["reference: text 1", None, None, "reference: text 2", None, None]


def test_sdpo_tokens_follow_regime_of_their_answer() -> None:
    policies, method = table_policies(), load_method("sdpo")
    scored_batch = score_batch(method, policies, Batch(graded(0.0, 1.0, 0.0, 0.0)))
    scored = compute_step(method, policies, scored_batch, seed=0)
    assert scored.routing.regime.tolist() == [0] * 3 + [1] * 2 + [2] * 9
    assert scored_batch.prompts["self"][0].text == "A fact. A question?\nreference: text 1"


@pytest.mark.parametrize("rewards", [(0.0, 0.0), (1.0, 1.0), (None, None)])
def test_sdpo_group_without_both_adds_nothing(rewards: tuple) -> None:
    alone, beside = gradient(graded(0.0, 1.0)), gradient(graded(0.0, 1.0, *rewards))
    assert torch.allclose(beside * 14, alone * 5)  # only the number of positions that the mean is over has changed
    assert not gradient(graded(*rewards)).any()


def test_sdpo_normalize_by_supervised_equals_reference_code() -> None:
    few, many = graded(0.0, 1.0), graded(0.0, 1.0, 1.0, 1.0)  # 3 told tokens of 5, and of 14
    alone = gradient(few, normalize_by="supervised")
    assert torch.allclose(alone, gradient(few) * 5 / 3)
    assert torch.allclose(alone, gradient(many, normalize_by="supervised"))


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 3}, {"top_p": 0.6}], ids=str
)
def test_sampler_ratio_of_fresh_answer_is_one(sampling: dict) -> None:
    policies, method = table_policies(), load_method("sdpo")
    rollouts = sample_rollouts(
        policies["student"],
        [example(0), example(1)],
        context="plain",
        sampling=SamplingOptions(5, **sampling),
        num_generations=2,
        seed=(0,),
    )
    rollouts = show_siblings(tuple(replace(rollout, reward=float(rollout.sample_idx)) for rollout in rollouts))
    scored = compute_step(method, policies, score_batch(method, policies, Batch(rollouts)), seed=0)
    assert torch.allclose(scored.routing.weight, torch.ones_like(scored.routing.weight), atol=1e-6)


def test_sdpo_steps_without_right_answer_change_nothing(models, tmp_path) -> None:
    steps = []
    config = run_config(
        models,
        tmp_path,
        method={"name": "sdpo"},
        trace__probes=0,
        training__weight_decay=0.1,
        evaluation__grader="exact",
        data={"train": "scenes:train?count=6&families=tag", "eval": None},
    )
    result = train(config, on_step=lambda step, metrics: steps.append(metrics))  # random weights answer nothing right
    assert result.steps == 4
    assert [(item["share/ALONE"], item["supervised"], item["loss"], item["grad_norm"]) for item in steps] == [
        (1, 0, 0, 0)
    ] * 4
    first, last = ((tmp_path / f"run/checkpoint-{step:06d}/student/model.safetensors").read_bytes() for step in (2, 4))
    assert first == last


@pytest.mark.parametrize(
    "method", [{"name": "sdpo"}, {"name": "mopd", "outcome": 0.5}, {"name": "opcod", "exchange": "none"}]
)
def test_method_that_compares_answers_needs_two_per_prompt(method: dict, models, tmp_path) -> None:
    with raises(ConfigError, "least 2", "num_generations=1"):
        run_config(models, tmp_path, method=method, sampling__num_generations=1)
    run_config(models, tmp_path, method=method)


@pytest.mark.parametrize("name", ["sdpo", "opcod"])
def test_method_that_grades_needs_answers(name: str, models, tmp_path) -> None:
    peers = {"ann": str(models["student"])} if name == "opcod" else {}
    values = {"models__peers": peers, "data__train": str(write_without_answer(tmp_path / "rows.jsonl"))}
    config = run_config(models, tmp_path, method={"name": name}, data__eval=None, **values)
    with raises(DataError, "no answer: 1"):
        train(config)
