"""Policies compare log-probs of one id only if it means the same to all, and end an answer by one action."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from failures import raises
from small import example
from torch import nn

from workbench.data.contexts import build_prompt
from workbench.distill.divergences import Divergence
from workbench.distill.losses import compute_losses, score
from workbench.distill.method import Loss, Regime
from workbench.errors import PolicyError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.compatibility import share_vocabulary
from workbench.policies.loading import load_policies
from workbench.policies.view_output import Head, ViewOutput
from workbench.types import Routing


def ending_with(folder: Path, target: Path, *tokens: str) -> Path:
    """The model, declaring other end tokens beside the tokenizer's own."""
    shutil.copytree(folder, target)
    tokenizer = load_policy(target, "x").tokenizer
    file = target / "generation_config.json"
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ids}))
    return target


def test_end_tokens_are_one_action_of_every_policy(models: dict, tmp_path: Path) -> None:
    teacher = ending_with(models["teacher"], tmp_path / "teacher", "<assistant>", "<user>")
    names = ("teacher", "student@start", "student@ema")
    policies = load_policies(names, student=models["student"], teacher=teacher)
    student = policies["student"]
    first, *others = student.head.eos_ids
    assert first == student.tokenizer.eos_token_id == student.answer_ids("red")[-1]
    assert sorted(others) == sorted(student.tokenizer.convert_tokens_to_ids(["<assistant>", "<user>"]))
    prompt = build_prompt(example(), "plain")
    for name, folder in {"student": models["student"], "teacher": teacher}.items():
        policy = policies[name]
        assert (policy.head.eos_ids, policy.stop_ids) == (student.head.eos_ids, frozenset(student.head.eos_ids))
        alone = load_policy(folder, name)
        with torch.no_grad():
            merged, apart = (
                item.forward([prompt], [(300, 301)]).logits(torch.arange(2)).softmax(-1) for item in (policy, alone)
            )
        assert torch.allclose(merged[:, first], apart[:, [first, *others]].sum(-1))
        assert (merged[:, others] == 0).all() and torch.allclose(merged.sum(-1), torch.ones(2))
        rest = [token for token in range(policy.vocabulary) if token not in policy.stop_ids]
        assert torch.allclose(merged[:, rest], apart[:, rest])


def test_sampler_draws_one_end_with_log_prob_of_all_ends(models: dict, tmp_path: Path) -> None:
    student = ending_with(models["student"], tmp_path / "student", "<assistant>", "<user>")
    policy = load_policies((), student=student)["student"]
    bias = torch.zeros(policy.vocabulary)
    bias[sorted(policy.stop_ids)] = 6.0  # so that answers end at all
    handle = policy.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits + bias)
    try:
        prompt = build_prompt(example(), "plain")
        (written,) = policy.sample([prompt], [list(range(40))], SamplingOptions(6))
        assert {element.ids[-1] for element in written if element.finished} == {policy.end_id}
        assert not any(token in policy.stop_ids for each in written for token in each.ids[:-1])
        item = next(entry for entry in written if entry.finished)
        read = score(policy.forward([prompt], [item.ids]), torch.tensor(item.ids)).logprob
        assert torch.allclose(read, torch.tensor(item.logprobs), atol=2e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_merged_ends_do_not_punish_another_end_token(divergence: str) -> None:
    """Three tokens by hand: half of the mass on one end or on the other, half on text."""
    half = torch.log(torch.tensor(0.5))
    learner, target = torch.full((2, 1, 3), -30.0)
    learner[0, 0], learner[0, 2] = half, half
    target[0, 1], target[0, 2] = half, half
    everywhere = Routing(torch.zeros(1, dtype=torch.long), torch.ones(1))
    totals, gradients = [], []
    for ends in ((), (0, 1)):
        linear = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.eye(3))
        head = Head(linear, eos_ids=ends)
        hidden = learner.clone().requires_grad_()
        result = compute_losses(
            ViewOutput.of(hidden, head, 3),
            {"teacher": ViewOutput.of(target, head, 3)},
            torch.tensor([0]),
            regimes=(Regime((Loss("teacher", Divergence(divergence)),)),),
            routing=everywhere,
            loss_normalizer=torch.ones(1),
        )
        result.total.backward()
        totals.append(float(result.total))
        gradients.append(hidden.grad)
    assert totals[0] > 0.3 and totals[1] == pytest.approx(0.0, abs=1e-6)
    assert gradients[0].abs().max() > 0.05 and gradients[1].abs().max() < 1e-6


def test_merged_ends_gradient_is_that_of_their_sum() -> None:
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(5, 4), torch.randn(7, 4), torch.randn(5, 7)
    ends, rest = [2, 5, 6], [0, 1, 3, 4]

    def grouped(logits: torch.Tensor) -> torch.Tensor:
        """Log-probs of the four texts and of the one end."""
        logprob = logits.log_softmax(-1)
        return torch.cat((logprob[:, rest], logprob[:, ends].logsumexp(-1, keepdim=True)), -1)

    values, matrix = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = (grouped(values @ matrix.T).exp() * (grouped(values @ matrix.T) - grouped(target))).sum()
    loss.backward()
    linear = nn.Linear(4, 7, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    mine = hidden.clone().requires_grad_()
    result = compute_losses(
        ViewOutput.of(mine, Head(linear, eos_ids=tuple(ends)), 7),
        {"teacher": ViewOutput.of(target, Head(nn.Identity(), eos_ids=tuple(ends)), 7)},
        torch.tensor([2, 0, 1, 3, 4]),
        regimes=(Regime((Loss("teacher", Divergence("reverse_kl")),)),),
        routing=Routing(torch.zeros(5, dtype=torch.long), torch.ones(5)),
        loss_normalizer=torch.ones(5),
    )
    result.total.backward()
    assert float(result.total) == pytest.approx(float(loss), rel=1e-5)
    assert torch.allclose(mine.grad, values.grad, atol=1e-5)
    assert torch.allclose(linear.weight.grad, matrix.grad, atol=1e-5)


def test_end_token_that_is_text_for_teacher_raises(models: dict, tmp_path: Path) -> None:
    teacher = ending_with(models["teacher"], tmp_path / "teacher", "red")
    with raises(PolicyError, "red", "generation_config"):
        load_policies(("teacher",), student=models["student"], teacher=teacher)


def test_heads_of_two_sizes_are_cut_to_the_smaller(models: dict) -> None:
    """As Qwen2.5 pads 151,665 tokens: to 151,936 in small models, to 152,064 in large ones."""
    policies = {}
    for name, size in (("student", 151_936), ("teacher", 152_064)):
        small = load_policy(models[name], name)
        small.model.resize_token_embeddings(size, mean_resizing=False)
        policies[name] = AutoregressivePolicy(small.model, small.processor, name)
    share_vocabulary(policies)
    prompt = build_prompt(example(), "plain")
    for policy in policies.values():
        assert policy.forward([prompt], [(300,)]).logits(torch.arange(1)).shape == (1, 151_936)


def test_teacher_with_other_tokenizer_raises_with_remedy(models: dict, tmp_path: Path) -> None:
    folder = shutil.copytree(models["teacher"], tmp_path / "teacher")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(PolicyError) as caught:
        load_policies(("teacher",), student=models["student"], teacher=folder)
    size = len(load_policy(models["student"], "student").tokenizer)
    assert f"2 of {size} tokens differ" in str(caught.value)
    assert "Expected one tokenizer for teacher and student" in str(caught.value)
