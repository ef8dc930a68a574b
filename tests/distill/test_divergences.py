"""Values by hand, limits, symmetries and exact expectations; nothing here repeats the implementation."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from failures import raises

from workbench.distill.divergences import (
    TAILS,
    TOP_K_OF,
    Divergence,
    forward_kl,
    generalized_jsd,
    jensen_shannon,
    reverse_kl,
)
from workbench.errors import ConfigError

HALVES = torch.tensor([[0.5, 0.25, 0.25]]).log()
QUARTERS = torch.tensor([[0.25, 0.25, 0.5]]).log()
UNIFORM = torch.tensor([[1 / 3, 1 / 3, 1 / 3]]).log()
N, V = 7, 11
TOP_K = [
    Divergence(kind, "top_k", top_k=3, of=of, tail=tail, beta=0.3 if kind == "generalized_jsd" else None)
    for kind, of, tail in itertools.product(
        ("forward_kl", "reverse_kl", "jensen_shannon", "generalized_jsd"), TOP_K_OF, TAILS
    )
    if tail != "bregman" or kind in ("forward_kl", "reverse_kl")
]
ALL = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("jensen_shannon"),
    Divergence("generalized_jsd", beta=0.1),
    Divergence("reverse_kl", "sampled"),
    *TOP_K,
]


def random_logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def test_kl_of_three_tokens_equals_hand_computed() -> None:
    # KL(halves || uniform) = ln 3 - H(halves) = ln 3 - 1.5 ln 2
    by_hand = math.log(3) - 1.5 * math.log(2)
    assert reverse_kl(HALVES, UNIFORM).item() == pytest.approx(by_hand, abs=1e-6)
    assert forward_kl(UNIFORM, HALVES).item() == pytest.approx(by_hand, abs=1e-6)
    # the two differ in two entries: .5 ln 2 + .25 ln(1/2)
    assert reverse_kl(HALVES, QUARTERS).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    # mean (.375 .25 .375): .5 ln(4/3) + .25 ln(2/3), the same on both sides
    assert jensen_shannon(HALVES, QUARTERS).item() == pytest.approx(
        0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3), abs=1e-6
    )


def test_kl_first_argument_is_learner() -> None:
    peaked = torch.tensor([[0.98, 0.01, 0.01]]).log()
    by_hand = 0.98 * math.log(0.98 * 3) + 0.02 * math.log(0.03)  # KL(peaked || uniform)
    assert reverse_kl(peaked, UNIFORM).item() == pytest.approx(by_hand, abs=1e-6)
    assert forward_kl(peaked, UNIFORM).item() != pytest.approx(by_hand, abs=1e-3)


def test_jensen_shannon_is_symmetric_and_at_most_ln_2() -> None:
    first, second = random_logits(0), random_logits(1)
    assert torch.allclose(jensen_shannon(first, second), jensen_shannon(second, first), atol=1e-6)
    apart = torch.tensor([[0.0, -50.0], [-50.0, 0.0]])
    assert torch.allclose(jensen_shannon(apart, apart.flip(0)), torch.full((2,), math.log(2)), atol=1e-5)


def test_generalized_jsd_is_continuous_at_its_ends() -> None:
    first, second = random_logits(0), random_logits(1)
    near = [generalized_jsd(first, second, beta=beta).mean().item() for beta in (1e-3, 1e-2, 0.5, 0.99, 0.999)]
    assert near[0] < near[1] < near[2] > near[3] > near[4]
    # to first order in beta it is beta KL(target || learner)
    least = generalized_jsd(first, second, beta=1e-4).mean().item()
    assert least == pytest.approx(1e-4 * forward_kl(first, second).mean().item(), rel=0.01)
    for beta in (0.0, 1.0, -0.1, 1.5):
        with raises(ConfigError, "forward_kl", "reverse_kl"):
            generalized_jsd(first, second, beta=beta)


@pytest.mark.parametrize("divergence", ALL, ids=lambda item: item.label)
def test_divergence_of_equals_is_zero_with_zero_gradient(divergence: Divergence) -> None:
    logits = random_logits(3)
    learner = logits.clone().requires_grad_()
    loss = divergence(learner, logits, torch.arange(N))
    loss.sum().backward()
    assert loss.abs().max() < 2e-6
    assert learner.grad.abs().max() < 2e-6  # fp32: differences of numbers near 1


@pytest.mark.parametrize("divergence", [item for item in ALL if item.support != "sampled"], ids=lambda item: item.label)
def test_divergence_is_not_negative(divergence: Divergence) -> None:
    loss = divergence(random_logits(4), random_logits(5), torch.arange(N))
    assert loss.shape == (N,)
    assert (loss > -1e-6).all()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_tail_bucket_divergence_is_at_most_full(kind: str) -> None:
    # merging entries loses information: the data processing inequality
    learner, target, ids = random_logits(6), random_logits(7), torch.arange(N)
    full = Divergence(kind)(learner, target, ids)
    for of in ("learner", "target", "union"):
        assert (Divergence(kind, "top_k", top_k=3, of=of)(learner, target, ids) <= full + 1e-6).all()


def test_tail_bucket_small_mass_is_kept() -> None:
    # 1e-5 of the learner's mass and 1e-3 of the target's are outside the two entries that are compared
    learner = torch.tensor([[0.6 - 5e-6, 0.4 - 5e-6, 1e-5]], dtype=torch.double)
    target = torch.tensor([[0.6 - 5e-4, 0.4 - 5e-4, 1e-3]], dtype=torch.double)
    expected = (target * (target / learner).log()).sum()
    result = Divergence("forward_kl", "top_k", top_k=2)(
        learner.log().float(), target.log().float(), torch.zeros(1).long()
    )
    assert float(result) == pytest.approx(float(expected), rel=0.02)


def in_float64(divergence: Divergence, learner: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The divergence with its rest as one entry, entry by entry, in double precision and by autograd."""
    matches = []
    for log_p, log_q in zip(learner.log_softmax(-1), target.log_softmax(-1), strict=True):
        of_p, of_q = (set(row.topk(divergence.top_k).indices.tolist()) for row in (log_p, log_q))
        kept = {"learner": of_p, "target": of_q, "union": of_p | of_q, "intersection": of_p & of_q}[divergence.of]
        rest = [entry for entry in range(len(log_p)) if entry not in kept]
        log_p, log_q = (
            torch.stack([*(row[entry] for entry in sorted(kept)), *([row[rest].logsumexp(-1)] if rest else [])])
            for row in (log_p, log_q)
        )
        beta = {"forward_kl": 1.0, "reverse_kl": 0.0, "jensen_shannon": 0.5}.get(divergence.kind, divergence.beta)
        mean = (beta * log_q.exp() + (1 - beta) * log_p.exp()).log()
        if divergence.kind == "forward_kl":
            matches.append((log_q.exp() * (log_q - log_p)).sum())
        elif divergence.kind == "reverse_kl":
            matches.append((log_p.exp() * (log_p - log_q)).sum())
        else:
            parts = beta * log_q.exp() * (log_q - mean) + (1 - beta) * log_p.exp() * (log_p - mean)
            matches.append(parts.sum())
    return torch.stack(matches)


@pytest.mark.parametrize("scale", [1.0, 8.0, 20.0])
@pytest.mark.parametrize("divergence", [item for item in TOP_K if item.tail == "bucket"], ids=lambda item: item.label)
def test_tail_bucket_and_gradient_equal_float64(divergence: Divergence, scale: float) -> None:
    for top_k in (divergence.top_k, V - 1):
        case = replace(divergence, top_k=top_k)
        learner, target = scale * random_logits(20), scale * random_logits(21)
        learner.requires_grad_()
        exact = learner.detach().double().requires_grad_()
        loss, right = case(learner, target, torch.arange(N)), in_float64(case, exact, target.double())
        loss.sum().backward()
        right.sum().backward()
        assert torch.allclose(loss.double(), right, rtol=1e-5, atol=1e-6)
        assert torch.allclose(learner.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-8, 1e-12, 1e-20])
def test_tail_bucket_tiny_target_rest_pulls_as_float64(tail: float) -> None:
    # the learner has 0.2 of its mass where the target has `tail`. Reverse KL: .2 ln(.2 / tail) and two more entries.
    learner = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.double).log()
    target = torch.tensor([[0.6, 0.4 - tail, tail]], dtype=torch.double).log()
    divergence = Divergence("reverse_kl", "top_k", top_k=2, of="target")
    point, exact = learner.float().requires_grad_(), learner.clone().requires_grad_()
    loss, right = divergence(point, target.float(), torch.zeros(1).long()), in_float64(divergence, exact, target)
    by_hand = 0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / (0.4 - tail)) + 0.2 * math.log(0.2 / tail)
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    loss.backward()
    right.backward()
    assert torch.allclose(point.grad.double(), exact.grad, rtol=1e-5)


def test_tail_bucket_without_mass_is_finite() -> None:
    nothing = torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf]])
    for kind, of in itertools.product(("forward_kl", "reverse_kl", "jensen_shannon"), TOP_K_OF):
        for learner, target in (
            (nothing, nothing + torch.tensor([0.5, 0.0, 0.0, 0.0])),
            (nothing[:, :2], nothing[:, :2]),
        ):
            point = learner.clone().requires_grad_()
            loss = Divergence(kind, "top_k", top_k=2, of=of)(point, target, torch.zeros(1).long())
            loss.sum().backward()
            assert bool(loss.isfinite().all()) and bool(point.grad.isfinite().all()), (kind, of)


def test_top_k_of_whole_vocabulary_equals_full() -> None:
    learner, target, ids = random_logits(6), random_logits(7), torch.arange(N)
    for tail in TAILS:
        some = Divergence("reverse_kl", "top_k", top_k=V, tail=tail)(learner, target, ids)
        assert torch.allclose(some, reverse_kl(learner, target), atol=1e-6)


def test_divergence_gradients_equal_finite_differences() -> None:
    learner, target = random_logits(8)[:1], random_logits(9)[:1]
    direction = torch.randn(1, V, generator=torch.Generator().manual_seed(10))
    for divergence in (item for item in ALL if item.support != "sampled"):
        point = learner.clone().requires_grad_()
        divergence(point, target, torch.zeros(1, dtype=torch.long)).sum().backward()
        along = (point.grad * direction).sum().item()
        step = 1e-2  # central differences in fp32: rounding 1e-7 / step, curvature step^2
        ahead, behind = (
            divergence(learner + sign * step * direction, target, torch.zeros(1, dtype=torch.long)).item()
            for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(along, abs=2e-3), divergence.label


def test_sampled_estimate_gradient_is_reverse_kl_in_expectation() -> None:
    target = random_logits(11)[:1].expand(V, V)
    learner = random_logits(12)[:1].clone().requires_grad_()
    every_token = Divergence("reverse_kl", "sampled")(learner.expand(V, V), target, torch.arange(V))
    (every_token * learner.detach().softmax(-1).squeeze(0)).sum().backward()
    exact = random_logits(12)[:1].clone().requires_grad_()
    reverse_kl(exact, target[:1]).sum().backward()
    assert torch.allclose(learner.grad, exact.grad, atol=1e-5)


def test_divergence_entries_without_mass_are_finite() -> None:
    learner = torch.tensor([[0.0, 1.0, -torch.inf]]).requires_grad_()
    target = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    loss = jensen_shannon(learner, target)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(learner.grad).all()


def test_nll_and_policy_gradient_use_sampled_token_only() -> None:
    logits, ids = HALVES.expand(2, 3), torch.tensor([0, 1])
    assert Divergence("nll")(logits, None, ids).tolist() == pytest.approx([math.log(2), math.log(4)])
    advantage = torch.tensor([-1.0, 2.0])
    assert Divergence("policy_gradient")(logits, None, ids, advantage).tolist() == pytest.approx(
        [-math.log(2), 2 * math.log(4)]
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kind": "reverse"}, 'Did you mean "reverse_kl"'),
        ({"kind": "generalized_jsd"}, "less than 1"),
        ({"kind": "reverse_kl", "beta": 0.5}, "Remove it"),
        ({"kind": "reverse_kl", "support": "top_k"}, "top_k >= 1"),
        ({"kind": "reverse_kl", "support": "top_k", "top_k": 4, "tail": "none"}, "Allowed: bregman"),
        ({"kind": "jensen_shannon", "support": "top_k", "top_k": 4, "tail": "bregman"}, "tail=bregman"),
        ({"kind": "forward_kl", "support": "sampled"}, "support=sampled"),
    ],
)
def test_divergence_impossible_options_raise(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Divergence(**values)
