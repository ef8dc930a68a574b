"""Batches of positions: cut anywhere, the same."""

from dataclasses import replace

import pytest
import torch
from small import example, groups, rollouts, table_policies

from workbench.distill.divergences import Divergence
from workbench.distill.losses import score
from workbench.distill.method import Loss, Method, Regime, View
from workbench.distill.scoring import Batch, loss_normalizers, route, score_views, slice_routing, view_prompts
from workbench.distill.step import NonFiniteError, compute_step, score_batch
from workbench.distributed import ProcessGroup
from workbench.errors import ConfigError
from workbench.methods import load_method
from workbench.types import Routing

LENGTHS = (3, 1, 7, 5, 2)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 9])
def test_micro_batches_cover_every_position_once(size: int) -> None:
    batch = Batch(rollouts(*LENGTHS), size)
    rows = [row for part, _ in batch.micro_batches() for row in part]
    positions = [position for _, part in batch.micro_batches() for position in range(part.start, part.stop)]
    assert rows == list(range(5))
    assert positions == list(range(sum(LENGTHS)))
    assert len(list(batch.micro_batches())) == (1 if size == 0 else -(-5 // size))
    for number, (part, places) in enumerate(batch.micro_batches()):
        assert batch.sequence[places].unique().tolist() == part
        assert batch.micro_batch[places].unique().tolist() == [number]
    assert batch.position.tolist() == [index for length in LENGTHS for index in range(length)]
    assert batch.token_ids.tolist() == [token for rollout in batch.rollouts for token in rollout.ids]


def test_group_by_length_keeps_answers_to_one_prompt_together() -> None:
    apart = Batch(rollouts(*LENGTHS), 2, group_by_length=True)
    pairs = Batch(groups(9, 1, 2, 3, 4, 8), 2, group_by_length=True)
    assert [rows for rows, _ in apart.micro_batches()] == [[1, 4], [0, 3], [2]]
    assert [rows for rows, _ in pairs.micro_batches()] == [[2, 3], [4, 5], [1, 0]]
    for batch in (apart, pairs):
        laid = torch.cat([torch.arange(batch.num_positions)[places] for _, places in batch.micro_batches()])
        assert laid[batch.inverse_order].tolist() == list(range(batch.num_positions))
        for number, (rows, places) in enumerate(batch.micro_batches()):
            assert batch.micro_batch[places].unique().tolist() == [number]
            assert batch.sequence[places].unique_consecutive().tolist() == rows
    assert Batch(rollouts(*LENGTHS), 0, group_by_length=True).rows == [[0, 1, 2, 3, 4]]


def kept(*regime: int) -> Routing:
    """Regime 0 has losses in random_mask and opd, regime 1 has none."""
    return Routing(torch.tensor(regime), torch.ones(len(regime)))


def test_loss_normalizers_count_all_micro_batches() -> None:
    every = kept(*[0] * sum(LENGTHS))
    for size in (0, 1, 2):
        batch = Batch(rollouts(*LENGTHS), size)
        by_sequence = loss_normalizers(load_method("opd", {"loss_aggregation": "sequence_mean"}), batch, every)
        by_position = loss_normalizers(load_method("opd", {"loss_aggregation": "token_mean"}), batch, every)
        assert by_sequence.tolist() == pytest.approx([1 / (5 * length) for length in LENGTHS for _ in range(length)])
        assert by_position.tolist() == pytest.approx([1 / sum(LENGTHS)] * sum(LENGTHS))


def test_loss_normalizers_domain_mean_weighs_domains_equally() -> None:
    method = load_method("opd", {"loss_aggregation": "domain_mean"})
    shares = []
    for lengths in ((3, 1, 7, 5, 2), (3, 1, 7, 500, 2)):
        created = zip(rollouts(*lengths), ("a", "a", "b", "b", "c"), strict=True)
        batch = Batch(
            tuple(replace(item, example=example(idx, domain=domain)) for idx, (item, domain) in enumerate(created))
        )
        weight = loss_normalizers(method, batch, kept(*[0] * batch.num_positions))
        shares.append([float(weight[batch.sequence == row].sum()) for row in range(5)])
        assert sum(shares[-1][:2]) == pytest.approx(1 / 3) and sum(shares[-1][2:4]) == pytest.approx(1 / 3)
    assert shares[0][:2] + shares[0][4:] == pytest.approx(
        shares[1][:2] + shares[1][4:]
    )  # others do not feel the long one
    assert shares[0][:2] == pytest.approx([1 / 4, 1 / 12])  # tokens of one domain count alike


def test_loss_normalizers_empty_answer_has_no_share() -> None:
    batch = Batch(rollouts(4, 0, 2))
    assert float(loss_normalizers(load_method("opd"), batch, kept(*[0] * 6)).sum()) == pytest.approx(1.0)
    assert batch.sequence.tolist() == [0, 0, 0, 0, 2, 2]


def test_loss_normalizers_supervised_leave_out_other_positions() -> None:
    batch, routing = Batch(rollouts(3, 2, 1), 1), kept(0, 1, 0, 1, 1, 0)
    methods = {over: load_method("random_mask", {"normalize_by": over}) for over in ("all", "supervised")}
    assert loss_normalizers(methods["all"], batch, routing).tolist() == pytest.approx(
        [1 / 9] * 3 + [1 / 6] * 2 + [1 / 3]
    )
    values = loss_normalizers(
        methods["supervised"], batch, routing
    )  # the second answer has no supervision: two are left
    assert values.tolist() == pytest.approx([1 / 4, 0, 1 / 4, 0, 0, 1 / 2])
    by_position = loss_normalizers(replace(methods["supervised"], loss_aggregation="token_mean"), batch, routing)
    assert by_position.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 0, 1 / 3])
    unweighted = replace(routing, weight=torch.tensor([0.0, 1, 1, 1, 1, 1]))
    assert loss_normalizers(methods["supervised"], batch, unweighted).tolist() == pytest.approx(
        [0, 0, 1 / 2, 0, 0, 1 / 2]
    )
    assert loss_normalizers(methods["supervised"], batch, kept(*[1] * 6)).tolist() == [0.0] * 6


@pytest.mark.parametrize("size", [1, 2, 3])
def test_score_views_in_micro_batches_equals_whole(size: int) -> None:
    method, policies = load_method("dopd"), table_policies()
    matches = []
    for batch in (Batch(rollouts(*LENGTHS)), Batch(rollouts(*LENGTHS), size)):
        prompts = view_prompts(method, batch.rollouts)
        matches.append(score_views(method, policies, prompts, batch)[1])
    for name, scores in matches[0].items():
        for key, values in vars(scores).items():
            assert torch.allclose(values, getattr(matches[1][name], key)), (name, key)


@pytest.mark.parametrize(
    ("method", "late"),
    [("opd", ("teacher",)), ("gkd", ("teacher",)), ("dopd", ()), ("sdpo", ()), ("grpo", ()), ("random_mask", ())],
)
def test_late_views_are_targets_of_all_tokens_that_the_rule_does_not_read(method: str, late: tuple[str, ...]) -> None:
    assert load_method(method).late_views == late


@pytest.mark.parametrize("size", [0, 2])
def test_late_view_has_scores_of_its_output(size: int) -> None:
    method, policies, batch = (
        load_method("opd"),
        table_policies(),
        Batch(rollouts(*LENGTHS), size, group_by_length=True),
    )
    scored_batch = score_batch(method, policies, batch)
    assert scored_batch.scores == {}
    result = compute_step(method, policies, scored_batch, seed=0, backward=torch.Tensor.backward)
    for key, expected in vars(score(scored_batch.outputs["teacher"], batch.token_ids)).items():
        assert torch.allclose(getattr(result.scores["teacher"], key), expected), key


def test_late_view_of_two_ranks_has_scores_of_both() -> None:
    """The other rank holds the same rollouts."""

    class Twins(ProcessGroup):
        def all_gather_object(self, value: object) -> list:
            return [value, value]

    method, policies, batch = load_method("opd"), table_policies(), Batch(rollouts(*LENGTHS))
    result = compute_step(
        method, policies, score_batch(method, policies, batch), seed=0, process_group=Twins(rank=0, size=2)
    )
    for view, scores in result.scores.items():
        for key, values in vars(scores).items():
            assert torch.equal(getattr(result.of_all_ranks.scores[view], key), torch.cat((values, values))), (view, key)


def test_late_view_with_nan_raises() -> None:
    policies = table_policies()
    policies["teacher"].tables["plain"][0, 3] = torch.nan
    scored_batch = score_batch(load_method("opd"), policies, Batch(rollouts(*LENGTHS)))
    with pytest.raises(NonFiniteError, match=r"view teacher .* has NaN log-probs at 5 of 18 positions"):
        compute_step(load_method("opd"), policies, scored_batch, seed=0)


def test_score_views_have_no_gradient() -> None:
    method, policies = load_method("dopd"), table_policies()
    batch = Batch(rollouts(*LENGTHS))
    outputs, scores = score_views(method, policies, view_prompts(method, batch.rollouts), batch)
    assert "student" not in outputs
    assert not any(output.hidden.requires_grad for output in outputs.values())
    assert not any(scores[name].logprob.requires_grad for name in scores)


def test_view_prompts_of_one_example_are_one_object() -> None:
    item, two = example(0), example(1)
    method = load_method("dopd")
    created = [
        rollout.__class__(**{**vars(rollout), "example": who})
        for rollout, who in zip(rollouts(1, 2, 3), (item, two, item), strict=True)
    ]
    prompts = view_prompts(method, tuple(created))
    assert prompts["teacher"][0] is prompts["teacher"][2] is prompts["self"][0]
    assert prompts["teacher"][0] is not prompts["teacher"][1]
    assert prompts["student"][0].text != prompts["teacher"][0].text


@pytest.mark.parametrize("regime", [[0, 1], [0, 0, 2], [-1, 0, 0]])
def test_route_without_one_regime_per_position_raises(regime: list[int]) -> None:
    def rule(batch) -> Routing:
        return Routing(torch.tensor(regime), torch.ones(len(regime)))

    method = Method("odd", {"student": View("student", "plain", learns=True)}, {"A": Regime(()), "B": Regime(())}, rule)
    with pytest.raises(AssertionError, match="odd"):
        route(method, {}, Batch(rollouts(3)), seed=0)


def test_slice_routing_keeps_thresholds() -> None:
    whole = Routing(torch.tensor([0, 1, 0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]), {"gap": 1.0})
    part = slice_routing(whole, slice(1, 3))
    assert (part.regime.tolist(), part.weight.tolist(), part.advantage.tolist()) == ([1, 0], [2.0, 3.0], [5.0, 6.0])
    assert part.thresholds == {"gap": 1.0}


def with_feedback(*places: int, lost: tuple[int, ...] = ()) -> Method:
    """Feedback is written about the rollouts at these places; the rule also sends those in `lost` to who read it."""

    def annotate(written):
        return tuple(
            replace(entry, feedback=f"f {index}") if index in places else entry for index, entry in enumerate(written)
        )

    def rule(batch) -> Routing:
        printed = [item.feedback is not None or position in lost for position, item in enumerate(batch.rollouts)]
        return Routing((~torch.tensor(printed)[batch.sequence]).long(), torch.ones(batch.num_positions))

    views = {"student": View("student", "plain", learns=True), "self": View("student@ema", "feedback")}
    regimes = {"TOLD": Regime((Loss("self", Divergence("jensen_shannon")),)), "REST": Regime(())}
    return Method("odd", views, regimes, rule, annotate=annotate)


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("places", [(0, 2), (3,), (), (0, 1, 2, 3)])
def test_score_views_skip_rollouts_without_context(size: int, places: tuple[int, ...]) -> None:
    policies, method, batch = table_policies(), with_feedback(*places), Batch(groups(3, 1, 7, 5), size)
    scored_batch = score_batch(method, policies, batch)
    scored = compute_step(
        method,
        policies,
        scored_batch,
        seed=0,
        top_k=2,
        top_k_rollouts=4,
        backward=lambda total: total.backward(),
    )
    read = torch.tensor([position in places for position in batch.sequence.tolist()])
    assert torch.equal(~scored.scores["self"].logprob.isnan(), read)
    assert torch.equal(scored.scores["self"].rank >= 0, read)
    assert torch.equal(scored.loss > 0, read)
    displayed = [prompt and prompt.text for prompt in scored_batch.prompts["self"]]
    assert displayed == [f"A fact. A question?\nf {index}" if index in places else None for index in range(4)]
    whole = compute_step(
        with_feedback(0, 1, 2, 3), policies, score_batch(with_feedback(0, 1, 2, 3), policies, batch), seed=0
    )
    assert torch.allclose(scored.loss[read], whole.loss[read])
    gradient = policies["student"].tables["plain"].grad
    assert torch.isfinite(gradient).all() and bool(gradient.abs().sum() > 0) == bool(places)


def test_route_to_view_that_did_not_score_raises() -> None:
    policies, method = table_policies(), with_feedback(0, lost=(1,))
    with pytest.raises(AssertionError, match="to TOLD that self did not score"):
        compute_step(method, policies, score_batch(method, policies, Batch(groups(3, 1))), seed=0)


def test_view_of_rollout_data_that_is_not_sampled_raises() -> None:
    plain, rule = View("student", "plain", learns=True), lambda batch: None
    for view, sentence in (
        (View("teacher", "feedback"), "annotate"),
        (View("teacher", "turns"), 'the student has "plain"'),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Method("odd", {"student": plain, "teacher": view}, {"A": Regime(())}, rule)
