"""MOPD: methods' exact checks by hand, and several teachers of which each reads its own domain."""

import math
from dataclasses import replace

import pytest
import torch
from failures import raises
from small import example, rollouts, table_policies, table_policy
from table_policy import LogitTablePolicy

from workbench.distill.divergences import Divergence
from workbench.distill.routing import group_relative_advantage
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.errors import ConfigError, DataError
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.policies.by_domain import PolicyByDomain
from workbench.training.filter import split_by_teacher
from workbench.types import Prompt, RouteBatch, TokenScores

KEPT, DROPPED = range(2)
OBJECTIVES = ("sampled", "full", "bregman")
DOMAINS = ("color", "count", "color", "count")


def of_domains(*lengths: int):
    pairs = zip(rollouts(*lengths), DOMAINS, strict=True)
    return tuple(replace(item, example=example(idx, domain=domain)) for idx, (item, domain) in enumerate(pairs))


def supervised(policies: dict, created, micro_batch_size: int = 0, **options: object):
    method, batch = load_method("mopd", options), Batch(created, micro_batch_size)
    scored_batch = score_batch(method, policies, batch)
    return compute_step(method, policies, scored_batch, seed=0, backward=lambda total: total.backward())


def grad(policies: dict) -> torch.Tensor:
    return policies["student"].tables["plain"].grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_mopd_teacher_equal_to_student_has_no_gradient(objective: str) -> None:
    policies = table_policies()
    policies["teacher"] = LogitTablePolicy("teacher", dict(policies["student"].tables))
    scored = supervised(policies, rollouts(3, 5), objective=objective, top_k=4, ratio_high=0.0)
    assert grad(policies).abs().max() < 1e-7
    if objective == "sampled":
        assert scored.routing.advantage.abs().max() == 0.0


def test_mopd_tokens_outside_ratio_band_are_dropped() -> None:
    ratio = torch.tensor([1.0, 4.9, 5.1, 0.21, 0.19])
    logprob, same = torch.full((5,), math.log(0.02)), torch.zeros(5, dtype=torch.long)
    student = TokenScores(logprob, logprob, logprob, same)
    teacher = TokenScores(logprob + 0.5, logprob, logprob, same)
    (wrote,) = rollouts(5)
    wrote = replace(wrote, logprobs=tuple((logprob - ratio.log()).tolist()))
    batch = RouteBatch({"student": student, "teacher": teacher}, same, torch.arange(5), same, (wrote,), 0)
    routing = load_method("mopd").route(batch)
    assert routing.regime.tolist() == [KEPT, KEPT, DROPPED, KEPT, DROPPED]
    assert routing.weight.tolist() == pytest.approx([1.0, 4.9, 0.0, 0.21, 0.0], rel=1e-4)
    assert routing.advantage.tolist() == pytest.approx([0.5] * 5)
    assert routing.thresholds == {"ratio_low": 0.2, "ratio_high": 5.0}
    assert load_method("mopd", {"advantage_clip": 0.1}).route(batch).advantage.tolist() == pytest.approx([0.1] * 5)
    unbound = load_method("mopd", {"ratio_high": 0.0}).route(batch)
    assert unbound.regime.tolist() == [KEPT] * 5 and unbound.weight.tolist() == [1.0] * 5


def test_mopd_gradient_equals_formula() -> None:
    created = tuple(replace(rollout, logprobs=tuple([-2.0] * len(rollout.ids))) for rollout in rollouts(3, 5))
    policies = table_policies()
    for table in policies["teacher"].tables.values():
        table.requires_grad_()
    scored = supervised(policies, created, ratio_low=0.0, ratio_high=1e9, outcome=0.5)
    assert all(table.grad is None for table in policies["teacher"].tables.values())
    table = policies["student"].tables["plain"].detach().clone().requires_grad_()
    total = torch.zeros(())
    for row, item in enumerate(created):
        places, ids = torch.arange(len(item.ids)), torch.tensor(item.ids)
        logprob = table.log_softmax(-1)[places, ids]
        taught = policies["teacher"].tables["plain"].log_softmax(-1)[places, ids].detach()
        advantage = (taught - logprob.detach()) + 0.5 * group_relative_advantage(created)[row]
        total = total - ((logprob.detach() + 2.0).exp() * advantage * logprob).mean() / len(created)
    total.backward()
    assert torch.allclose(grad(policies), table.grad, atol=1e-6)
    assert scored.method.regimes["KEPT"].target == "teacher"


def test_mopd_ratio_band_lowers_gradient_variance() -> None:
    writer, options = table_policy("stale", 7), SamplingOptions(5)
    result = {}
    for band in ({}, {"ratio_low": 0.0, "ratio_high": 1e9}):
        gradients = []
        for seed in range(25):
            ((written,),) = writer.sample([Prompt((), "")], [[seed]], options)
            policies = table_policies()
            created = (replace(rollouts(1)[0], ids=written.ids, logprobs=written.logprobs),)
            scored = supervised(policies, created, **band)
            gradients.append(grad(policies).flatten())
            result.setdefault(bool(band), set()).update(scored.routing.regime.tolist())
        result["without" if band else "with"] = float(torch.stack(gradients).var(0).sum())
    assert result[False] == {KEPT, DROPPED} and result[True] == {KEPT}
    assert result["without"] > 5 * result["with"], result


def test_mopd_truncation_without_correction_pulls_at_equality() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    written = torch.zeros(6, dtype=torch.long)
    ids = logits.topk(4).indices
    naive = logits.clone().requires_grad_()
    values, target = naive.log_softmax(-1).gather(1, ids), logits.log_softmax(-1).gather(1, ids)
    (values.exp() * (values - target)).sum().backward()
    assert naive.grad.abs().max() > 0.05
    corrected = logits.clone().requires_grad_()
    (loss,) = (item for item in load_method("mopd", {"objective": "bregman", "top_k": 4}).regimes["KEPT"].losses)
    assert loss.divergence == Divergence("reverse_kl", "top_k", top_k=4, of="target", tail="bregman")
    loss.divergence(corrected, logits, written).sum().backward()
    assert corrected.grad.abs().max() < 1e-6


def test_group_relative_advantage_equals_hand_computed() -> None:
    first, second = example(0), example(1)
    created = zip(
        rollouts(1, 1, 1, 1, 1, 1),
        (first, first, first, first, second, second),
        (1.0, 0.0, 0.0, 0.0, 1.0, 1.0),
        strict=True,
    )
    advantage = group_relative_advantage(
        tuple(replace(wrote, example=who, reward=reward) for wrote, who, reward in created)
    )
    deviation = math.sqrt(0.25 * 0.75)
    assert advantage.tolist() == pytest.approx([0.75 / deviation, *[-0.25 / deviation] * 3, 0.0, 0.0], rel=1e-3)


class Counted(LogitTablePolicy):
    """Remembers what it was asked to read."""

    domains: list

    def forward(self, prompts, completions, denoisings=None):
        self.domains += [prompt.domain for prompt in prompts]
        return super().forward(prompts, completions, denoisings)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_mopd_teacher_scores_its_own_domain_once(size: int, objective: str) -> None:
    policies = table_policies()
    members = {}
    for seed, domain in ((2, "color"), (3, "count")):
        members[domain] = Counted(f"teacher:{domain}", dict(table_policy("", seed).tables))
        members[domain].domains = []
    policies["teacher"] = PolicyByDomain("teacher", members)
    created = of_domains(3, 4, 1, 5)
    scored = supervised(policies, created, size, objective=objective, top_k=4, ratio_high=0.0)
    assert {domain: entry.domains for domain, entry in members.items()} == {
        "color": ["color"] * 2,
        "count": ["count"] * 2,
    }
    assert scored.scored_by["teacher"] == tuple(f"teacher:{domain}" for domain in DOMAINS)
    position = Batch(created).position.tolist()
    for index, row in enumerate(Batch(created).sequence.tolist()):
        table = members[DOMAINS[row]].tables["plain"].log_softmax(-1)
        expected = float(table[position[index], created[row].ids[position[index]]])
        assert float(scored.scores["teacher"].logprob[index]) == pytest.approx(expected, abs=1e-6)
    reference, alone = torch.zeros_like(grad(policies)), table_policies()
    for domain in members:  # as if each were the only teacher, on its half
        alone["teacher"], alone["student"].tables["plain"].grad = members[domain], None
        supervised(
            alone,
            tuple(item for item in created if item.example.domain == domain),
            objective=objective,
            top_k=4,
            ratio_high=0.0,
        )
        reference += grad(alone) / 2
    assert torch.allclose(grad(policies), reference, atol=1e-6)


def test_mopd_domain_without_teacher_is_skipped() -> None:
    examples = [example(idx, domain=domain) for idx, domain in enumerate(("color", "tag", "tag", "shape"))]
    usable, lacking = split_by_teacher(examples, ("color", "count"))
    assert [entry.domain for entry in usable] == ["color"] and [item.domain for item, _ in lacking] == [
        "tag",
        "tag",
        "shape",
    ]
    assert '"tag"' in lacking[0][1] and "models.teachers.DOMAIN" in lacking[0][1]
    with raises(DataError, "3 examples", "tag", "shape"):
        split_by_teacher(examples[1:], ("color", "count"))
    assert split_by_teacher(examples, None) == (examples, [])


def test_mopd_contradicting_options_raise() -> None:
    with raises(ConfigError, "ratio_high=0"):
        load_method("mopd", {"ratio_high": 0.5})
    with raises(ConfigError, "method.advantage_clip"):
        load_method("mopd", {"advantage_clip": 1.0, "objective": "full"})
