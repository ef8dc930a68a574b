"""Intervals against closed forms, against loops, and where pairing decides."""

import math

import numpy as np
import pytest

from workbench.evals.records import EvalRecord, measure
from workbench.studies.bootstrap import interval, over_questions, over_seeds, paired_interval, weights
from workbench.studies.measures import Arm, compare, values_of, verdict

REPLICATES = 2_000


def test_bootstrap_weights_are_draws_with_replacement() -> None:
    drawn = weights(7, key="a", num_replicates=50)
    counts = drawn * 7
    assert np.allclose(counts, counts.round()) and np.allclose(drawn.sum(1), 1.0)
    assert np.array_equal(drawn, weights(7, key="a", num_replicates=50))
    assert not np.array_equal(drawn, weights(7, key="b", num_replicates=50))
    assert not np.array_equal(drawn, weights(7, key="a", num_replicates=50, seed=1))


def test_bootstrap_replicates_equal_loops() -> None:
    """Every replicate spelled out: the drawn seeds, and in each of them the same drawn questions."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3, 5))
    by_question, by_seed = weights(5, key="q", num_replicates=20), weights(3, key="s", num_replicates=20)
    result = over_seeds(over_questions(values, by_question), by_seed)
    for replicate in range(20):
        questions = np.repeat(np.arange(5), (by_question[replicate] * 5).round().astype(int))
        seeds = np.repeat(np.arange(3), (by_seed[replicate] * 3).round().astype(int))
        for line in range(2):
            looped = np.mean([values[line, seed, question] for seed in seeds for question in questions])
            assert result[replicate, line] == pytest.approx(looped)


def test_bootstrap_of_questions_equals_textbook_interval() -> None:
    """All seeds agree, so only questions vary: the interval is 1.96 standard errors to either side."""
    outcomes = (np.arange(400) % 4 == 0).astype(float)
    first = np.tile(outcomes, (5, 1))
    mean, low, high = paired_interval(first, np.zeros_like(first))
    error = math.sqrt(0.25 * 0.75 / 400)
    assert mean == 0.25
    assert low == pytest.approx(0.25 - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(0.25 + 1.96 * error, abs=0.2 * error)


def test_bootstrap_variance_adds_seeds_and_questions() -> None:
    """Seed effects and question effects: the variance of replicates is that of both, each divided by its own number."""
    rng = np.random.default_rng(1)
    of_seed, of_question = rng.normal(size=(12, 1)), rng.normal(size=(1, 300))
    values = (of_seed + of_question)[None]
    drawn = over_seeds(over_questions(values, weights(300, key="q")), weights(12, key="s"))[:, 0]
    assert drawn.var() == pytest.approx(of_seed.var() / 12 + of_question.var() / 300, rel=0.06)


def test_bootstrap_pairing_finds_small_difference() -> None:
    """Half of the questions are hard for both; one is right two questions in a hundred more often."""
    rng = np.random.default_rng(2)
    second = (rng.random((1, 500)) < 0.5).astype(float).repeat(4, axis=0)
    first = second.copy()
    wrong = np.flatnonzero(second[0] == 0)
    first[:, wrong[:15]] = 1.0
    mean, low, _ = paired_interval(first, second)
    assert mean == pytest.approx(0.03) and low > 0.0
    alone = [paired_interval(item, np.zeros_like(item)) for item in (first, second)]
    assert alone[0][1] < alone[1][2], "separate intervals overlap, and would have shown nothing"
    assert paired_interval(second, first)[2] == pytest.approx(-low)


@pytest.mark.parametrize(
    ("of_seed", "of_question", "noise", "low", "high"),
    [
        (0.0, 1.0, 0.0, 0.92, 0.99),
        ((5 / 200) ** 0.5, 1.0, 0.0, 0.86, 0.95),
        (1.0, 0.0, 0.0, 0.75, 0.89),
        (0.0, 0.0, 1.0, 0.99, 1.0),
    ],
)
def test_bootstrap_coverage_equals_docstring(
    of_seed: float, of_question: float, noise: float, low: float, high: float
) -> None:
    """Five seeds, 200 questions, no true difference: the share of simulated studies whose interval holds zero."""
    rng, held = np.random.default_rng(0), 0
    for number in range(200):
        values = (
            of_seed * rng.normal(size=(5, 1))
            + of_question * rng.normal(size=(1, 200))
            + noise * rng.normal(size=(5, 200))
        )
        _, below, above = paired_interval(values, np.zeros_like(values), num_replicates=500, seed=number)
        held += below <= 0.0 <= above
    assert low <= held / 200 <= high


def test_interval_is_middle_of_replicates() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def row(
    name: str,
    kind: str,
    accuracy: list[list[float]],
    confidence: list[list[float]],
    visibility: str = "vvvp",
    **values: object,
) -> Arm:
    """A row whose answers are given; visibility: v or p per question."""
    right = np.array(accuracy)
    visibilities = np.array([{"v": "visible", "p": "privileged"}[letter] for letter in visibility], dtype=object)
    rest = {"entropy": right * 0.1, "length": right + 3.0, "truncated": 1.0 - right}
    answers = {
        "accuracy": right,
        "confidence": np.array(confidence),
        **rest,
        "visibility": visibilities,
        "domain": np.full(len(visibilities), "tag", dtype=object),
    }
    return Arm(name, kind, tuple(range(len(right))), {("data", "plain"): answers}, **values)


def test_study_measures_equal_evaluate() -> None:
    rng = np.random.default_rng(3)
    right, sure = (rng.random((2, 40)) < 0.6).astype(float), rng.random((2, 40))
    item = row("x", "variant", right.tolist(), sure.tolist(), "vvvp" * 10)
    result = {(value.seed, value.visibility, value.measure): value for value in values_of([item])}
    for seed in (0, 1):
        for visibility, chosen in (("all", range(40)), ("privileged", range(3, 40, 4))):
            answered = [
                EvalRecord(
                    0,
                    "student",
                    "plain",
                    str(n),
                    "",
                    None,
                    "a",
                    "a",
                    right[seed, n],
                    sure[seed, n],
                    int(3 + right[seed, n]),
                    bool(right[seed, n]),
                    0.1 * right[seed, n],
                )
                for n in chosen
            ]
            expected = measure(answered)
            for name in (
                "accuracy",
                "confidence",
                "overconfidence",
                "calibration_error",
                "entropy",
                "length",
                "truncated",
            ):
                assert result[seed, visibility, name].value == pytest.approx(getattr(expected, name)), (
                    seed,
                    visibility,
                    name,
                )
            assert result[seed, visibility, "accuracy"].count == expected.count


def test_gap_recovered_is_between_start_and_teacher() -> None:
    """Start 40 % of 200 questions, teacher 90 %, variant 65 %: half of the gap; none if the teacher is not better."""
    questions = np.arange(200) / 200
    base = row("untrained", "student", [(questions < 0.4).astype(float).tolist()], [[0.5] * 200], "v" * 200)
    teacher = row("teacher", "teacher", [(questions < 0.9).astype(float).tolist()], [[0.5] * 200], "v" * 200)
    variant = row(
        "x", "variant", [(questions < 0.65).astype(float).tolist()] * 3, [[0.5] * 200] * 3, "v" * 200, teacher="teacher"
    )
    result = {
        (entry.variant, entry.against, entry.measure): entry
        for entry in compare([base, teacher, variant], "x", num_replicates=REPLICATES)
        if entry.visibility == "visible"
    }
    recovered = result["x", None, "gap_recovered"]
    assert recovered.value == pytest.approx(0.5) and 0.3 < recovered.low < 0.5 < recovered.high < 0.7
    against = result["x", "untrained", "accuracy"]
    assert (against.value, against.verdict, against.num_seeds) == (pytest.approx(0.25), "better", 3)
    assert result["untrained", "x", "accuracy"].value == pytest.approx(-0.25)
    assert result["untrained", "x", "accuracy"].verdict == "worse"
    weak = row("teacher", "teacher", [(questions < 0.41).astype(float).tolist()], [[0.5] * 200], "v" * 200)
    assert not [
        item
        for item in compare([base, weak, variant], "x", num_replicates=REPLICATES)
        if item.measure == "gap_recovered"
    ]


def test_compare_pairs_common_seeds_only() -> None:
    first = row("a", "variant", [[1, 1, 1, 1], [0, 0, 0, 0]], [[0.5] * 4] * 2)
    second = row("b", "variant", [[0, 0, 0, 0]], [[0.5] * 4])
    second.seeds = (1,)
    result = {
        (entry.variant, entry.against): entry
        for entry in compare([first, second], "b", num_replicates=REPLICATES)
        if (entry.measure, entry.visibility) == ("accuracy", "all")
    }
    assert (result["a", "b"].value, result["a", "b"].num_seeds) == (0.0, 1)
    assert (result["a", None].value, result["a", None].num_seeds) == (0.5, 2)
    second.seeds = (7,)
    assert not [item for item in compare([first, second], "b", num_replicates=REPLICATES) if item.against == "b"]


def test_trace_measure_varies_by_seed_only() -> None:
    item = row("a", "variant", [[1, 1, 1, 1]] * 3, [[0.5] * 4] * 3)
    item.trace = {"HT/last third": np.array([0.1, 0.2, 0.3])}
    (result,) = [entry for entry in compare([item], "a", num_replicates=REPLICATES) if entry.measure == "HT/last third"]
    assert result.value == pytest.approx(0.2)
    assert 0.1 <= result.low < 0.2 < result.high <= 0.3


@pytest.mark.parametrize(
    ("measure", "low", "high", "output"),
    [
        ("accuracy", 0.01, 0.05, "better"),
        ("accuracy", -0.05, -0.01, "worse"),
        ("accuracy", -0.01, 0.05, "not distinguishable"),
        ("accuracy", 0.0, 0.05, "not distinguishable"),
        ("overconfidence", 0.01, 0.05, "worse"),
        ("overconfidence", -0.05, -0.01, "better"),
        ("entropy", 0.01, 0.05, "higher"),
        ("length", -2.0, -1.0, "lower"),
    ],
)
def test_verdict_needs_interval_clear_of_zero(measure: str, low: float, high: float, output: str) -> None:
    assert verdict(measure, low, high) == output


def test_repaired_and_broken_count_against_start() -> None:
    base = row("untrained", "student", [[1, 1, 0, 0]], [[0.5] * 4])
    trained = row("x", "variant", [[1, 0, 1, 1], [1, 1, 0, 0]], [[0.5] * 4] * 2)
    result = {
        (value.seed, value.measure): value.value for value in values_of([base, trained]) if value.visibility == "all"
    }
    assert [result[seed, name] for seed in (0, 1) for name in ("repaired", "broken")] == [0.5, 0.25, 0.0, 0.0]
    assert (None, "repaired") not in result
