"""One contract for all methods, present and future: a new file in workbench/methods is tested by being there."""

import pytest
import torch
from small import groups, table_policies

from workbench.distill.method import REWARD, TOKENS
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.methods import describe_options, list_methods, load_method, method_module

LENGTHS = (3, 1, 7, 5)


def run(name: str, *, micro_batch_size: int = 0, backward: bool = False):
    method, policies = load_method(name), table_policies()
    batch = Batch(groups(*LENGTHS), micro_batch_size)
    scored = compute_step(
        method,
        policies,
        score_batch(method, policies, batch),
        seed=1,
        backward=(lambda total: total.backward()) if backward else None,
    )
    return scored, policies


@pytest.mark.parametrize("name", list_methods())
def test_method_has_source_and_option_help(name: str) -> None:
    doc = method_module(name).__doc__
    assert "Source:" in doc
    for key, (_, default, option) in describe_options(name).items():
        assert option.help, key
        assert not option.choices or default in option.choices


@pytest.mark.parametrize("name", list_methods())
def test_method_builds_with_one_learner_view(name: str) -> None:
    method = load_method(name)
    assert method.name == name
    assert [view.learns for view in method.views.values()].count(True) == 1
    targets = {loss.target for regime in method.regimes.values() for loss in regime.losses}
    assert targets <= {*method.views, TOKENS, REWARD} - {method.learner_view}


@pytest.mark.parametrize("name", list_methods())
def test_method_gives_every_position_one_regime_and_finite_loss(name: str) -> None:
    scored, _ = run(name)
    regime = scored.routing.regime
    assert regime.shape == (sum(LENGTHS),)
    masks = torch.stack([regime == idx for idx in range(len(scored.method.regimes))])
    assert (masks.sum(0) == 1).all()
    assert torch.isfinite(scored.loss).all()
    without = [idx for idx, item in enumerate(scored.method.regimes.values()) if not item.losses]
    for idx in without:
        assert scored.loss[regime == idx].abs().sum() == 0.0


@pytest.mark.parametrize("name", list_methods())
def test_method_sends_gradient_to_learner_only(name: str) -> None:
    scored, policies = run(name, backward=True)
    grads = {key: table.grad for key, table in policies["student"].tables.items()}
    displayed = scored.method.learner_context
    assert grads[displayed].abs().sum() > 0
    assert all(grad is None for key, grad in grads.items() if key != displayed)
    for policy_name, policy in policies.items():
        if policy_name != "student":
            assert all(table.grad is None for table in policy.tables.values())


@pytest.mark.parametrize("name", list_methods())
def test_method_micro_batches_keep_routing_and_gradient(name: str) -> None:
    whole, policies = run(name, backward=True)
    pieces, others = run(name, micro_batch_size=1, backward=True)
    displayed = whole.method.learner_context
    assert torch.equal(whole.routing.regime, pieces.routing.regime)
    assert torch.allclose(whole.loss, pieces.loss, atol=1e-6)
    assert torch.allclose(
        policies["student"].tables[displayed].grad, others["student"].tables[displayed].grad, atol=1e-6
    )


@pytest.mark.parametrize("name", list_methods())
def test_method_ten_steps_lower_the_loss(name: str) -> None:
    method, policies = load_method(name), table_policies()
    scored_batch = score_batch(method, policies, Batch(groups(*LENGTHS)))
    first = compute_step(method, policies, scored_batch, seed=1).routing
    frozen = method.__class__(**{**vars(method), "route": lambda batch: first, "router_views": ()})
    optimizer = torch.optim.SGD(policies["student"].tables.parameters(), lr=0.5)
    totals = []
    for _ in range(10):
        optimizer.zero_grad()
        scored = compute_step(frozen, policies, scored_batch, seed=1, backward=lambda total: total.backward())
        totals.append(float((scored.loss * scored.loss_normalizer).sum()))
        optimizer.step()
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("name", list_methods())
def test_method_records_scores_that_the_router_used(name: str) -> None:
    scored, _ = run(name)
    assert list(scored.scores) == list(scored.method.views)
    for score in scored.scores.values():
        assert score.logprob.shape == (sum(LENGTHS),)
        read = ~score.logprob.isnan()
        assert (score.logprob <= score.max_logprob + 1e-6)[read].all()
        assert (score.entropy >= 0)[read].all()
