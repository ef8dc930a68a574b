"""DOPD's routing by hand (arXiv 2606.30626, section 3.2.3) and its open points."""

import math

import numpy as np
import pytest
import torch
from small import rollouts, table_policies

from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.errors import ConfigError
from workbench.methods import load_method
from workbench.types import RouteBatch, TokenScores

LH, LL, HT, HS = range(4)
# probabilities of the written tokens under the privileged teacher and the privileged student
TEACHER = [0.90, 0.10, 0.80, 0.05, 0.50, 0.30]
SELF = [0.80, 0.10, 0.10, 0.60, 0.50, 0.25]
# |log ratio|: 0.118, 0, 2.079, 2.485, 0, 0.182; mean 0.811. Sum of probabilities: mean 0.8333
BY_HAND = [LH, LL, HT, HS, LH, LL]


def batch_of(teacher: list[float], settings: list[float], micro_batch: list[int] | None = None) -> RouteBatch:
    def scores(values: list[float]) -> TokenScores:
        logprob = torch.tensor(values).log()
        return TokenScores(logprob, torch.zeros_like(logprob), logprob, torch.zeros(len(values), dtype=torch.long))

    count = len(teacher)
    micro = torch.tensor(micro_batch or [0] * count)
    views = {"self": scores(settings), "teacher": scores(teacher)}
    return RouteBatch(views, torch.zeros(count, dtype=torch.long), torch.arange(count), micro, (), 0)


def test_dopd_regimes_equal_hand_computed() -> None:
    routing = load_method("dopd", {"trim": 0.0}).route(batch_of(TEACHER, SELF))
    assert routing.regime.tolist() == BY_HAND
    gaps = [abs(math.log(t / s)) for t, s in zip(TEACHER, SELF, strict=True)]
    assert routing.thresholds["gap"] == pytest.approx(sum(gaps) / 6, abs=1e-6)
    assert routing.thresholds["probability_sum"] == pytest.approx((sum(TEACHER) + sum(SELF)) / 6, abs=1e-6)
    assert routing.weight.tolist() == [1.0] * 6


def test_dopd_sure_compares_with_sum_of_both_means() -> None:
    # means: teacher 0.56, self 0.22, sum 0.78
    # first token: 0.90 is above the sum, though 0.45 is below the teacher's mean
    # Second: 0.74 is above twice either mean's lower one (0.44), below the sum. Third and fourth: a gap of 2.2.
    routing = load_method("dopd", {"trim": 0.0}).route(
        batch_of([0.45, 0.39, 0.9, 0.9, 0.16], [0.45, 0.35, 0.1, 0.1, 0.1])
    )
    assert routing.thresholds["probability_sum"] == pytest.approx(0.78)
    assert routing.regime.tolist() == [LH, LL, HT, HT, LL]


def test_dopd_trim_leaves_largest_gaps_out_of_means_only() -> None:
    method = load_method("dopd", {"trim": 0.2})  # 1 of 6: the gap of 2.485
    routing = method.route(batch_of(TEACHER, SELF))
    gaps = sorted(abs(math.log(t / s)) for t, s in zip(TEACHER, SELF, strict=True))
    assert routing.thresholds["gap"] == pytest.approx(sum(gaps[:5]) / 5, abs=1e-6)
    assert routing.regime[3] == HS and routing.weight[3] == 1.0
    dropped = load_method("dopd", {"trim": 0.2, "trim_drops_loss": True}).route(batch_of(TEACHER, SELF))
    assert dropped.weight.tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tokens", "above"), [(1, 0), (2, 1), (6, 1), (19, 1), (21, 1), (22, 2), (40, 2), (41, 2), (415, 21)]
)
def test_dopd_trim_removes_gaps_above_quantile(tokens: int, above: int) -> None:
    """Gaps of 1, 2, 4, ... in random order: the quantile lies between two of them, 0.95 (n - 1) of them below it."""
    gaps = torch.linspace(0.0, 6.0, tokens, dtype=torch.double) ** 2
    gaps = gaps[torch.randperm(tokens, generator=torch.Generator().manual_seed(0))]
    routing = load_method("dopd").route(batch_of([0.9] * tokens, (0.9 * (-gaps).exp()).tolist()))
    inside = gaps[gaps <= np.quantile(gaps.numpy(), 0.95) + 1e-9]
    assert len(inside) == tokens - above
    assert routing.thresholds["gap"] == pytest.approx(float(inside.mean()), rel=1e-5)


def test_dopd_trim_below_twenty_tokens_equals_hand_computed() -> None:
    # gaps 0.118, 0, 2.079, 2.485, 0, 0.182; 0.95 of the way: between 2.079 and 2.485, so that 2.485 is above.
    # Mean of the other five 0.476; sums of probabilities of the other five: (2.6 + 1.75) / 5 = 0.87
    routing = load_method("dopd").route(batch_of(TEACHER, SELF))
    assert routing.thresholds["gap"] == pytest.approx((0.11778 + 2.07944 + 0.18232) / 5, abs=1e-5)
    assert routing.thresholds["probability_sum"] == pytest.approx(0.87, abs=1e-6)
    assert routing.regime.tolist() == [LH, LL, HT, HS, LH, LL]


def test_dopd_trimmed_mean_moves_token_to_high_regimes() -> None:
    # gaps 0.5 (three times), 1, 6: mean 1.7 of all, 0.625 without the largest. Only then is 1 a high gap.
    gaps = [0.5, 0.5, 0.5, 1.0, 6.0]
    batch = batch_of([0.5] * 5, [0.5 * math.exp(-gap) for gap in gaps])
    assert load_method("dopd", {"trim": 0.0}).route(batch).regime[3] in (LH, LL)
    assert load_method("dopd").route(batch).regime.tolist()[3:] == [HT, HT]


def test_dopd_normalize_keeps_high_and_low_regimes() -> None:
    # an increasing affine map on values and mean alike
    plain = load_method("dopd").route(batch_of(TEACHER, SELF)).regime
    for kind in ("zscore", "minmax"):
        other = load_method("dopd", {"normalize": kind}).route(batch_of(TEACHER, SELF)).regime
        assert torch.equal(plain >= HT, other >= HT)


def test_dopd_micro_batch_scope_uses_its_own_means() -> None:
    method = load_method("dopd", {"trim": 0.0, "stat_scope": "micro_batch"})
    routing = method.route(batch_of(TEACHER, SELF, micro_batch=[0, 0, 0, 1, 1, 1]))
    for group, inside in ((0, slice(0, 3)), (1, slice(3, 6))):
        alone = load_method("dopd", {"trim": 0.0}).route(batch_of(TEACHER[inside], SELF[inside]))
        assert torch.equal(routing.regime[inside], alone.regime)
        assert routing.thresholds[f"gap_{group}"] == pytest.approx(alone.thresholds["gap"])


def test_dopd_losses_of_regimes_equal_paper() -> None:
    regimes = load_method("dopd").regimes
    result = {
        name: (entry.losses[0].target, entry.losses[0].divergence.kind, entry.losses[0].weight)
        for name, entry in regimes.items()
    }
    assert result == {
        "LH": ("teacher", "reverse_kl", 0.6),
        "LL": ("self", "reverse_kl", 0.3),
        "HT": ("teacher", "jensen_shannon", 1.0),
        "HS": ("self", "reverse_kl", 0.6),
    }
    assert {name: item.losses[0].divergence.top_k for name, item in regimes.items()} == {
        "LH": 128,
        "LL": 128,
        "HT": 0,
        "HS": 128,
    }


def test_dopd_plain_privilege_live_self_has_zero_loss() -> None:
    # the control of the paper's Table 8: KL(s || sg s) is zero in value and gradient
    policies = table_policies()
    method = load_method("dopd", {"privilege": "plain"})
    scored_batch = score_batch(method, policies, Batch(rollouts(7, 7, 7, 7)))
    scored = compute_step(method, policies, scored_batch, seed=0, backward=lambda total: total.backward())
    settings = (scored.routing.regime == LL) | (scored.routing.regime == HS)
    assert settings.any() and not settings.all()
    assert scored.loss[settings].abs().max() < 1e-6
    assert scored.loss[~settings].abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"privilege": "boxs"}, 'Did you mean "boxes"'),
        ({"self_policy": "teacher"}, "Allowed: student, student@ema, student@start"),
        ({"beta_weak": -1.0}, "must be at least 0"),
        ({"trim": 0.9}, "from 0 to 0.5"),
        ({"topk": 5}, 'Did you mean "top_k"'),
        ({"trim": "many"}, "must be a number"),
    ],
)
def test_dopd_wrong_option_raises(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_method("dopd", options)
