"""The chunked engine against plain autograd over all positions at once."""

import pytest
import torch
from torch import nn

import workbench.distill.losses
from workbench.distill.divergences import Divergence
from workbench.distill.losses import compute_losses, score, top_k_tokens
from workbench.distill.method import REWARD, TOKENS, Loss, Regime
from workbench.policies.view_output import Head, ViewOutput
from workbench.types import Routing

N, D, V = 37, 5, 13
REGIMES = (
    Regime((Loss("teacher", Divergence("jensen_shannon")),)),
    Regime((Loss("self", Divergence("reverse_kl", "top_k", top_k=4)), Loss(TOKENS, Divergence("nll"), 0.3))),
    Regime(()),
    Regime((Loss(REWARD, Divergence("policy_gradient"), 0.5),)),
)


def setup(
    seed: int = 0, *, bias: bool = False, **head: float
) -> tuple[ViewOutput, dict[str, ViewOutput], torch.Tensor, Routing]:
    torch.manual_seed(seed)
    linear = nn.Linear(D, V, bias=bias)
    hidden = torch.randn(N, D, requires_grad=True)
    targets = {name: ViewOutput.of(torch.randn(N, D), Head(nn.Linear(D, V)), V) for name in ("teacher", "self")}
    ids = torch.randint(0, V, (N,))
    routing = Routing(torch.randint(0, len(REGIMES), (N,)), torch.rand(N), torch.randn(N))
    return ViewOutput.of(hidden, Head(linear, **head), V), targets, ids, routing


def at_once(learner: ViewOutput, targets: dict[str, ViewOutput], ids: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Loss of every position, written position by position."""
    everything = torch.arange(N)
    values = learner.logits(everything)
    losses = []
    for n in range(N):
        loss = values.new_zeros(())
        for part in REGIMES[int(routing.regime[n])].losses:
            target = targets[part.target].logits(everything).detach()[n : n + 1] if part.target in targets else None
            value = part.divergence(values[n : n + 1], target, ids[n : n + 1], routing.advantage[n : n + 1])
            loss = loss + part.weight * value.squeeze(0)
        losses.append(loss * routing.weight[n])
    return torch.stack(losses)


@pytest.mark.parametrize("head", [{}, {"bias": True}, {"scale": 0.5}, {"soft_cap": 3.0}], ids=str)
def test_losses_in_chunks_equal_autograd(head: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.policies.view_output, "CHUNK_BYTES", 1)  # 16 positions a chunk
    learner, targets, ids, routing = setup(**head)
    loss_normalizer = torch.rand(N)
    parameters = list(learner.parts[0].head.linear.parameters())
    result = compute_losses(learner, targets, ids, regimes=REGIMES, routing=routing, loss_normalizer=loss_normalizer)
    (3.0 * result.total).backward()
    chunked = [learner.hidden.grad, *(parameter.grad for parameter in parameters)]
    expected = at_once(learner, targets, ids, routing)
    whole = torch.autograd.grad(3.0 * (expected * loss_normalizer).sum(), [learner.hidden, *parameters])
    assert torch.allclose(result.loss, expected, atol=1e-6)
    assert result.total.item() == pytest.approx((expected * loss_normalizer).sum().item(), abs=1e-5)
    for item, other in zip(chunked, whole, strict=True):
        assert torch.allclose(item, other, atol=1e-5)  # sums in another order


def test_losses_of_two_halves_sum_to_whole() -> None:
    learner, targets, ids, routing = setup()
    loss_normalizer = torch.rand(N)
    whole = compute_losses(learner, targets, ids, regimes=REGIMES, routing=routing, loss_normalizer=loss_normalizer)
    whole.total.backward()
    expected, learner.hidden.grad = learner.hidden.grad.clone(), None
    for part in (slice(0, 17), slice(17, N)):
        half = compute_losses(
            ViewOutput.of(learner.hidden[part], learner.parts[0].head, V),
            {name: ViewOutput.of(target.hidden[part], target.parts[0].head, V) for name, target in targets.items()},
            ids[part],
            regimes=REGIMES,
            routing=Routing(routing.regime[part], routing.weight[part], routing.advantage[part]),
            loss_normalizer=loss_normalizer[part],
        )
        half.total.backward()
    assert torch.allclose(learner.hidden.grad, expected, atol=1e-6)


def test_losses_send_no_gradient_to_targets() -> None:
    learner, targets, ids, routing = setup()
    for target in targets.values():
        target.hidden.requires_grad_()
    compute_losses(
        learner, targets, ids, regimes=REGIMES, routing=routing, loss_normalizer=torch.ones(N)
    ).total.backward()
    for target in targets.values():
        assert target.hidden.grad is None
        assert all(parameter.grad is None for parameter in target.parts[0].head.linear.parameters())


def test_score_equals_softmax() -> None:
    learner, _, ids, _ = setup()
    logprobs = learner.logits(torch.arange(N)).log_softmax(-1).detach()
    result = score(learner, ids)
    assert torch.allclose(result.logprob, logprobs[torch.arange(N), ids], atol=1e-6)
    assert torch.allclose(result.entropy, torch.distributions.Categorical(logits=logprobs).entropy(), atol=1e-5)
    assert torch.equal(result.rank == 0, logprobs.argmax(-1) == ids)
    assert torch.allclose(result.max_logprob, logprobs.max(-1).values, atol=1e-6)


def test_losses_return_learner_scores_in_order() -> None:
    learner, targets, ids, routing = setup()
    result = compute_losses(learner, targets, ids, regimes=REGIMES, routing=routing, loss_normalizer=torch.ones(N))
    alone = score(learner, ids)
    assert torch.equal(result.scores.rank, alone.rank)
    assert torch.allclose(result.scores.logprob, alone.logprob, atol=1e-6)


def test_losses_without_positions_are_zero() -> None:
    learner, targets, _, _ = setup()
    empty = ViewOutput.of(learner.hidden[:0], learner.parts[0].head, V)
    result = compute_losses(
        empty,
        {name: ViewOutput.of(target.hidden[:0], target.parts[0].head, V) for name, target in targets.items()},
        torch.zeros(0, dtype=torch.long),
        regimes=REGIMES,
        routing=Routing(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0)),
        loss_normalizer=torch.zeros(0),
    )
    result.total.backward()
    assert result.total.item() == 0.0 and result.loss.numel() == 0


def test_losses_with_zero_weights_have_zero_gradient() -> None:
    learner, targets, ids, routing = setup()
    masked = Routing(routing.regime, torch.zeros(N), routing.advantage)
    compute_losses(
        learner, targets, ids, regimes=REGIMES, routing=masked, loss_normalizer=torch.ones(N)
    ).total.backward()
    assert learner.hidden.grad.abs().max() == 0.0


def test_score_padded_head_uses_shared_vocabulary() -> None:
    learner, _, ids, _ = setup()
    longer = ViewOutput.of(learner.hidden, Head(nn.Linear(D, V + 3)), V)
    assert longer.logits(torch.arange(4)).shape == (4, V)
    assert score(longer, ids).logprob.exp().sum() > 0


def test_top_k_tokens_are_sorted_most_likely() -> None:
    learner, _, _, _ = setup()
    index = torch.tensor([3, 30])
    ids, logprobs = top_k_tokens(learner, index, 4)
    every = learner.logits(index).log_softmax(-1)
    assert torch.equal(ids[:, 0], every.argmax(-1))
    assert (logprobs[:, :-1] >= logprobs[:, 1:]).all()
    assert torch.allclose(every.gather(-1, ids), logprobs, atol=1e-6)


def test_losses_bfloat16_hidden_states_get_bfloat16_gradients() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(D, V, bias=False).bfloat16()
    hidden = torch.randn(N, D).bfloat16().requires_grad_()
    _, targets, ids, routing = setup()
    result = compute_losses(
        ViewOutput.of(hidden, Head(linear), V),
        targets,
        ids,
        regimes=REGIMES,
        routing=routing,
        loss_normalizer=torch.ones(N) / N,
    )
    result.total.backward()
    assert hidden.grad.dtype == linear.weight.grad.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32
    assert torch.isfinite(hidden.grad).all() and hidden.grad.abs().max() > 0
