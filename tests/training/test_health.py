"""Warns of a collapse, once, and of nothing else."""

import math

import pytest

from workbench.training.health import WINDOW, HealthMonitor

HEALTHY = {"entropy": 1.0, "duplicate_rate": 0.3, "truncated": 0.1, "teacher_share": 0.6, "loss": 0.5}


def watched(*spans: tuple[int, dict]) -> HealthMonitor:
    watch, step = HealthMonitor(), 0
    for count, change in spans:
        for _ in range(count):
            step += 1
            watch.update(step, {**HEALTHY, **change})
    return watch


def test_health_rounded_updates_warn_except_at_schedule_ends() -> None:
    def printed(*steps: tuple[float, float]) -> dict[str, str]:
        watch = HealthMonitor(learning_rate=1.0)
        for step, (rate, moved) in enumerate(steps, start=1):
            watch.update(step, {**HEALTHY, "learning_rate": rate, "updated_weight_fraction": moved})
        return watch.warnings

    assert printed((0.01, 0.1), (1.0, 0.9), (0.4, 0.3), (0.0, 0.0)) == {}
    assert "step 2: only 20% of" in printed((0.01, 0.1), (1.0, 0.2))["updated_weight_fraction"]


@pytest.mark.parametrize(("precision", "normal", "strange"), [("float32", 1e-6, 4e-3), ("bfloat16", 0.07, 0.3)])
def test_health_sampler_gap_above_rounding_warns(precision: str, normal: float, strange: float) -> None:
    watch = HealthMonitor(precision=precision)
    assert watch.update(1, {**HEALTHY, "sampler_logprob_gap": normal}) == []
    (warning,) = watch.update(2, {**HEALTHY, "sampler_logprob_gap": strange})
    assert f"{strange:.1e} nats" in warning and f"in {precision}" in warning
    assert watch.update(3, {**HEALTHY, "sampler_logprob_gap": strange}) == []


def test_health_steady_run_has_no_warning() -> None:
    assert watched((100, {})).warnings == {}
    noisy = HealthMonitor()
    for step in range(1, 200):
        wave = math.sin(step)
        noisy.update(
            step,
            {**HEALTHY, "entropy": 1.0 + 0.4 * wave, "duplicate_rate": 0.4 + 0.3 * wave, "truncated": 0.2 + 0.2 * wave},
        )
    assert noisy.warnings == {}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"entropy": 0.4}, "entropy", "entropy fell from 1.000 to 0.400 nats"),
        ({"duplicate_rate": 0.95}, "duplicate_rate", "95%"),
        ({"truncated": 0.8}, "truncated", "80%"),
        ({"teacher_share": 0.1}, "teacher_share", "from 60% to 10%"),
    ],
)
def test_health_collapse_warns_once(change: dict, name: str, words: str) -> None:
    watch = watched((WINDOW, {}), (3 * WINDOW, change))
    assert list(watch.warnings) == [name]
    assert words in watch.warnings[name]
    assert watch.update(99, {**HEALTHY, **change}) == []


@pytest.mark.parametrize(
    "change", [{"entropy": 0.6}, {"duplicate_rate": 0.85}, {"truncated": 0.45}, {"teacher_share": 0.2}], ids=str
)
def test_health_small_change_has_no_warning(change: dict) -> None:
    assert watched((WINDOW, {}), (3 * WINDOW, change)).warnings == {}


def test_health_low_from_start_has_no_warning() -> None:
    for change in ({"entropy": 0.01}, {"duplicate_rate": 1.0}, {"teacher_share": 0.0}):
        assert watched((5 * WINDOW, change)).warnings == {}


def test_health_single_bad_step_has_no_warning() -> None:
    assert (
        watched((2 * WINDOW, {}), (1, {"entropy": 0.0, "truncated": 1.0, "teacher_share": 0.0}), (20, {})).warnings
        == {}
    )


def test_health_missing_metrics_are_ignored() -> None:
    watch = HealthMonitor()
    for step in range(1, 50):
        assert watch.update(step, {"entropy": 1.0, "duplicate_rate": None, "truncated": 0.0}) == []
