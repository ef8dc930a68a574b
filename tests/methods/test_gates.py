"""EOPD and TIP: which tokens get more, and which get none; by numbers written down by hand."""

import math
from dataclasses import replace

import pytest
import torch
from small import example, rollouts, table_policies
from table_policy import LogitTablePolicy

from workbench.distill.divergences import forward_kl, reverse_kl
from workbench.distill.scoring import Batch
from workbench.distill.step import StepResult, compute_step, score_batch
from workbench.methods import load_method
from workbench.types import Rollout, RouteBatch, TokenScores


def routed(name: str, scores: dict[str, TokenScores], **options):
    count = len(next(iter(scores.values())).logprob)
    zeros = torch.zeros(count, dtype=torch.long)
    return load_method(name, options).route(RouteBatch(scores, zeros, torch.arange(count), zeros, (), 0))


def printed(logprob: list[float], entropy: list[float] | None = None) -> TokenScores:
    values = torch.tensor(logprob)
    return TokenScores(values, torch.tensor(entropy or [0.0] * len(logprob)), values, torch.zeros(len(logprob)).long())


def supervised(name: str, **options) -> tuple[StepResult, torch.Tensor, torch.Tensor]:
    """The table policies' batch, and the logits of student and teacher at its positions."""
    policies, method = table_policies(), load_method(name, options)
    batch = Batch(rollouts(7, 4, 7))
    scored = compute_step(
        method, policies, score_batch(method, policies, batch), seed=0, backward=torch.Tensor.backward
    )
    return scored, *(policies[who].tables["plain"].detach()[batch.position] for who in ("student", "teacher"))


@pytest.mark.parametrize(("threshold", "undecided"), [(0.0, [0, 1, 1, 1]), (0.8, [0, 0, 0, 1]), (1.5, [0, 0, 0, 0])])
def test_eopd_routes_by_teacher_entropy(threshold: float, undecided: list[int]) -> None:
    scores = {"teacher": printed([-1.0] * 4, [0.0, 0.3, 0.8, 1.5])}  # at the threshold itself: not above it
    routing = routed("eopd", scores, threshold=threshold)
    assert routing.regime.tolist() == undecided
    assert routing.thresholds == {"teacher_entropy": threshold}


def test_eopd_adds_forward_kl_at_open_gate() -> None:
    scored, student, teacher = supervised("eopd", threshold=1.2, forward_weight=0.5)
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    open_gate = entropy > 1.2
    assert 0 < open_gate.sum() < open_gate.numel()
    expected = reverse_kl(student, teacher) + 0.5 * forward_kl(student, teacher) * open_gate
    assert torch.allclose(scored.loss, expected, atol=1e-5)


def test_eopd_closed_gate_equals_opd() -> None:
    closed, _, _ = supervised("eopd", threshold=math.log(11) + 0.01)
    assert torch.allclose(closed.loss, supervised("opd")[0].loss, atol=1e-6)


def test_eopd_student_that_cannot_follow_keeps_more_choices() -> None:
    # one row of logits for two places: the teacher is undecided between 0 and 1, then between 1 and 2. Reverse KL rests
    # at the normalized product of both, which is token 1 alone; the forward KL that is added pulls to 0 and 2 as well
    teacher = LogitTablePolicy("teacher", {"plain": torch.tensor([[4.0, 4, -4, -4], [-4.0, 4, 4, -4]])})
    product = torch.tensor([[0.0, 4, 0, -4]])
    grads = {}
    for name, options in (("opd", {}), ("eopd", {"threshold": 0.5})):
        student = LogitTablePolicy("student", {"plain": product}, learns=True)
        method, policies = load_method(name, options), {"student": student, "teacher": teacher}
        scored_batch = score_batch(method, policies, Batch((Rollout(example(), 0, (1, 2), "", True),)))
        compute_step(method, policies, scored_batch, seed=0, backward=torch.Tensor.backward)
        grads[name] = student.tables["plain"].grad
    assert grads["opd"].abs().max() < 1e-6
    before, after = (
        torch.distributions.Categorical(logits=row).entropy() for row in (product, product - grads["eopd"])
    )
    assert after > before + 0.1


# entropy 0..1 of its range: 0, 1, 0.5, 0; distance 0, 0, 0.5, 1; either: 0, 1, 0.75, 1
STUDENT, TEACHER = printed([-1.0, -1, -2, -1], [0.2, 2.2, 1.2, 0.2]), printed([-1.0, -1, -1, -3])


@pytest.mark.parametrize(
    ("select", "fraction", "kept", "score"),
    [
        ("either", 0.5, [1, 3], 1.0),
        ("either", 0.75, [1, 2, 3], 0.75),
        ("entropy", 0.25, [1], 1.0),
        ("distance", 0.5, [2, 3], 0.5),
        ("either", 0.0, [1], 1.0),  # at least one
        ("either", 1.0, [0, 1, 2, 3], 0.0),
    ],
)
def test_tip_keeps_highest_scores(select: str, fraction: float, kept: list[int], score: float) -> None:
    routing = routed("tip", {"student": STUDENT, "teacher": TEACHER}, select=select, fraction=fraction)
    assert (routing.regime == 0).nonzero().squeeze(-1).tolist() == kept
    assert routing.thresholds["score"] == pytest.approx(score)


def test_tip_scores_of_equal_tokens_are_finite() -> None:
    same = printed([-1.0] * 4, [0.5] * 4)
    assert routed("tip", {"student": same, "teacher": same}).regime.tolist() == [0, 0, 1, 1]


def test_tip_divides_by_kept_tokens() -> None:
    scored, student, teacher = supervised("tip", fraction=0.5)
    kept = scored.routing.regime == 0
    assert kept.sum() == 9
    total = float((scored.loss * scored.loss_normalizer).sum())
    assert total == pytest.approx(float(reverse_kl(student, teacher)[kept].mean()), rel=1e-5)
    cut, _, _ = supervised("tip", fraction=0.5, normalize_by="all")
    assert float((cut.loss * cut.loss_normalizer).sum()) == pytest.approx(total / 2, rel=1e-5)


def test_tip_all_tokens_kept_equals_opd() -> None:
    everything, _, _ = supervised("tip", fraction=1.0)
    opd, _, _ = supervised("opd", loss_aggregation="token_mean")
    assert torch.allclose(everything.loss, opd.loss) and torch.allclose(everything.loss_normalizer, opd.loss_normalizer)
    assert replace(everything.routing, thresholds={}).weight.tolist() == opd.routing.weight.tolist()
