"""ExOPD, SDFT and LM + KD: where learning comes to rest."""

from dataclasses import replace

import pytest
import torch
from small import VOCABULARY, example, rollouts, table_policies

from workbench.distill.divergences import forward_kl, reverse_kl
from workbench.distill.method import Method
from workbench.distill.rollouts import sample_rollouts
from workbench.distill.scoring import Batch
from workbench.distill.step import StepResult, compute_step, score_batch
from workbench.methods import load_method
from workbench.policies import SamplingOptions
from workbench.types import Rollout

EVERY_TOKEN = Batch(tuple(Rollout(example(), token, (token,), "", True) for token in range(VOCABULARY)))


def learn(method: Method, policies: dict, batch: Batch) -> StepResult:
    return compute_step(method, policies, score_batch(method, policies, batch), seed=0, backward=torch.Tensor.backward)


def in_expectation(method: Method) -> Method:
    """Each token of a bandit counts by its probability, instead of being drawn."""

    def route(batch):
        probability = batch.scores["student"].logprob.exp()
        return replace(method.route(batch), weight=probability * batch.num_positions)

    return replace(method, route=route, router_views=tuple(dict.fromkeys(("student", *method.router_views))))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.25])
def test_exopd_rests_between_reference_and_teacher(strength: float) -> None:
    policies = table_policies()
    reference, teacher = (
        policies[who].tables["plain"].detach()[0].log_softmax(-1) for who in ("student@start", "teacher")
    )
    goal = ((1 - strength) * reference + strength * teacher).log_softmax(-1)
    method = in_expectation(load_method("exopd", {"strength": strength}))
    for start in (goal, torch.linspace(-2, 2, VOCABULARY)):  # at rest, and on the way
        student = policies["student"].tables["plain"]
        with torch.no_grad():
            student[0] = start
        student.grad = None
        advantage = learn(method, policies, EVERY_TOKEN).routing.advantage
        logits = start.clone().requires_grad_()
        reverse_kl(logits.unsqueeze(0), goal.unsqueeze(0)).sum().backward()
        assert torch.allclose(student.grad[0], logits.grad, atol=1e-6)
        at_rest = start is goal
        assert (advantage.std() < 1e-5) == at_rest  # the same for all tokens: nothing is preferred
        assert (student.grad.abs().max() < 1e-6) == at_rest


def test_exopd_strength_one_equals_opd() -> None:
    grads = []
    for name, options in (
        ("exopd", {"strength": 1.0}),
        ("opd", {"support": "sampled", "loss_aggregation": "token_mean"}),
    ):
        policies = table_policies()
        learn(load_method(name, options), policies, Batch(rollouts(7, 4, 7)))
        grads.append(policies["student"].tables["plain"].grad)
    assert torch.allclose(*grads, atol=1e-6) and grads[0].abs().max() > 1e-2


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_sdft_copy_without_evidence_has_zero_loss(top_k: int, tail: str) -> None:
    policies = table_policies()
    scored = learn(
        load_method("sdft", {"privilege": "plain", "top_k": top_k, "tail": tail}), policies, Batch(rollouts(7, 4))
    )
    assert scored.loss.abs().max() < 1e-6
    assert policies["student"].tables["plain"].grad.abs().max() < 1e-6
    displayed = learn(load_method("sdft", {"top_k": top_k, "tail": tail}), table_policies(), Batch(rollouts(7, 4)))
    assert displayed.loss.max() > 1e-2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_lm_kd_mixes_data_and_teacher(alpha: float) -> None:
    policies, method = table_policies(), load_method("lm_kd", {"alpha": alpha})
    written = sample_rollouts(
        policies["student"],
        [example(0), example(1, reference="7")],
        context="plain",
        seed=(0,),
        num_generations=1,
        sampling=SamplingOptions(8),
        dataset_fraction=method.dataset_fraction,
    )
    assert [(item.sampled_by, item.ids) for item in written] == [("dataset", (5, 3, 0)), ("dataset", (7, 0))]
    batch = Batch(tuple(written))
    scored = learn(method, policies, batch)
    student, teacher = (policies[who].tables["plain"].detach()[batch.position] for who in ("student", "teacher"))
    nll = torch.nn.functional.cross_entropy(student, batch.token_ids, reduction="none")
    expected = (1 - alpha) * nll + alpha * forward_kl(student, teacher)
    assert torch.allclose(scored.loss, expected, atol=1e-5)
    assert scored.loss_normalizer.tolist() == pytest.approx([0.2] * 5)


def test_lm_kd_alpha_zero_loads_no_teacher() -> None:
    assert load_method("lm_kd", {"alpha": 0.0}).policies == ("student",)
    assert load_method("lm_kd").policies == ("student", "teacher")
