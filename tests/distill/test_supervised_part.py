"""Supervising thinking or answer alone: which tokens, by hand, and what routing makes of the others."""

from dataclasses import replace

import pytest
from failures import raises
from small import rollouts

from workbench.distill.method import Regime
from workbench.distill.scoring import Batch, loss_normalizers, route
from workbench.distill.supervised_part import count_thinking, is_thinking, supervise_part
from workbench.errors import ConfigError
from workbench.methods import load_method

MARKERS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("texts", "thinking"),
    [
        (["<think>", "so", "</think>", "27", "<end>"], [1, 1, 1, 0, 0]),
        (["Well ", "<th", "ink>so", "</", "think>27", "<end>"], [0, 1, 1, 1, 1, 0]),  # a token with both is thinking
        (["so", "</think>", "27"], [1, 1, 0]),  # opened in the prompt
        (["<think>", "so", "on"], [1, 1, 1]),  # truncated
        (["27", "<end>"], [0, 0]),
        (["a", "<think>", "", "b", "</think>", "", "c"], [0, 1, 1, 1, 1, 0, 0]),
        ([], []),
    ],
)
def test_is_thinking_by_hand(texts: list[str], thinking: list[int]) -> None:
    assert is_thinking(texts, MARKERS) == [bool(flag) for flag in thinking]


@pytest.mark.parametrize(
    ("prefix", "texts", "thinking"),
    [
        ("assistant\n<think>\n", ["so", "on"], [1, 1]),  # truncated
        ("assistant\n<think>\n", ["so", "</think>", "27"], [1, 1, 0]),
        ("assistant\n<think>\n\n</think>\n", ["27", "<end>"], [0, 0]),
        ("assistant\n", ["27"], [0]),
    ],
)
def test_is_thinking_opened_in_prompt_by_hand(prefix: str, texts: list[str], thinking: list[int]) -> None:
    assert is_thinking(texts, MARKERS, prefix) == [bool(flag) for flag in thinking]


def test_count_thinking_by_hand() -> None:
    answers = ["27", "<think>so</think>27", "<think>so", "so</think>27", "so on"]
    given = [replace(rollout, ids=(idx,)) for idx, rollout in enumerate(rollouts(*[1] * 5))]
    given[4] = replace(given[4], answer_prefix="<think>\n")
    assert count_thinking(given, lambda ids: [answers[ids[0]]], MARKERS) == (4, 2)


def words(ids: tuple[int, ...]) -> list[str]:
    """The first two tokens of every answer are its thinking."""
    return ["<think>", "</think>", *["word"] * len(ids)][: len(ids)]


@pytest.mark.parametrize(("part", "expected"), [("thinking", [1, 1, 0, 0, 0, 1, 1]), ("answer", [0, 0, 1, 1, 1, 0, 0])])
def test_supervise_part_moves_other_positions_to_outside(part: str, expected: list[int]) -> None:
    method = supervise_part(load_method("opd"), part, MARKERS)
    batch = Batch(rollouts(5, 2))
    routing = route(method, {}, batch, 0, words)
    outside = list(method.regimes).index("outside")
    assert ((routing.regime != outside).long()).tolist() == expected == routing.weight.long().tolist()
    assert method.regimes["outside"].losses == ()
    assert method.views == load_method("opd").views and method.options == load_method("opd").options
    normalizers = loss_normalizers(method, batch, routing)
    assert normalizers.sum() == pytest.approx(1.0)


def test_supervise_all_is_the_method_itself() -> None:
    method = load_method("dopd")
    assert supervise_part(method, "all", MARKERS) is method
    taken = load_method("opd")
    object.__setattr__(taken, "regimes", {**taken.regimes, "outside": Regime(())})
    with raises(ConfigError, "outside", "training.supervise"):
        supervise_part(taken, "answer", MARKERS)
