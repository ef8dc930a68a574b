"""What the ablations of DOPD leave (arXiv 2606.30626, Tables 6 and 8)."""

from failures import raises

from workbench.errors import ConfigError
from workbench.methods import load_method


def parts(**options: object) -> dict[str, tuple]:
    regimes = load_method("dopd_parts", options).regimes
    return {
        name: tuple((loss.target, loss.divergence.label, loss.weight) for loss in regime.losses)
        for name, regime in regimes.items()
    }


def test_dopd_parts_default_equals_dopd() -> None:
    values, whole = load_method("dopd_parts"), load_method("dopd")
    assert values.views == whole.views
    assert {name: regime.losses for name, regime in values.regimes.items()} == {
        name: regime.losses for name, regime in whole.regimes.items()
    }


def test_dopd_parts_supervised_keeps_one_regime() -> None:
    assert {name: bool(losses) for name, losses in parts(supervised="HT").items()} == {
        "LH": False,
        "LL": False,
        "HT": True,
        "HS": False,
    }


def test_dopd_parts_target_is_one_source_for_all() -> None:
    assert {losses[0][0] for losses in parts(target="teacher").values()} == {"teacher"}
    assert {losses[0][0] for losses in parts(target="self").values()} == {"self"}


def test_dopd_parts_both_targets_share_the_weight() -> None:
    both = parts(target="both", divergence="jensen_shannon", support="full", beta_light=1.0, beta_weak=1.0)
    assert set(both.values()) == {(("teacher", "jensen_shannon", 0.5), ("self", "jensen_shannon", 0.5))}


def test_dopd_parts_unrouted_regimes_have_one_loss() -> None:
    equal = parts(target="teacher", divergence="jensen_shannon", support="top_k", beta_light=1.0, beta_weak=1.0)
    kinds = {(target, label.partition(" of ")[0], weight) for ((target, label, weight),) in equal.values()}
    assert kinds == {("teacher", "jensen_shannon top-128", 1.0)}


def test_dopd_parts_one_divergence_or_support_for_all() -> None:
    assert {losses[0][1].split()[0] for losses in parts(divergence="reverse_kl").values()} == {"reverse_kl"}
    assert {losses[0][1] for losses in parts(support="full").values()} == {"reverse_kl", "jensen_shannon"}


def test_dopd_parts_unknown_regime_raises() -> None:
    with raises(ConfigError, "HX", "LH"):
        load_method("dopd_parts", {"supervised": "HT+HX"})
