"""Which tokens lose their supervision, by gaps written down by hand."""

import pytest
import torch
from small import rollouts

from workbench.methods import load_method
from workbench.methods.gap_mask import Options, route
from workbench.types import RouteBatch, TokenScores

#             capability +1   0    -3    0   +2    0
TEACHER = torch.tensor([-1.0, -1, -4, -2, -1, -6])
SELF = torch.tensor([-2.0, -1, -1, -2, -3, -6])
STUDENT = torch.tensor([-2.0, -4, -1, -2, -3, -1])  # information 0, +3, 0, 0, 0, -5


def dropped(**options) -> list[int]:
    zeros = torch.zeros(6)
    scores = {
        name: TokenScores(values, zeros, zeros, zeros.long())
        for name, values in (("teacher", TEACHER), ("self", SELF), ("student", STUDENT))
    }
    batch = RouteBatch(scores, zeros.long(), torch.arange(6), zeros.long(), rollouts(6), 0)
    routing = route(batch, Options(**options))
    assert (routing.weight == 1).all()
    return routing.regime.nonzero().squeeze(-1).tolist()


@pytest.mark.parametrize(
    ("gap", "drop", "count", "expected"),
    [
        ("advantage", "highest", 2, [2, 4]),
        ("advantage", "lowest", 3, [1, 3, 5]),
        ("capability", "highest", 2, [0, 4]),
        ("capability", "lowest", 1, [2]),
        ("information", "highest", 1, [1]),
        ("information", "lowest", 1, [5]),
    ],
)
def test_gap_mask_drops_end_of_ranking(gap: str, drop: str, count: int, expected: list[int]) -> None:
    assert dropped(gap=gap, drop=drop, fraction=count / 6 + 1e-6) == expected


def test_gap_mask_equal_gaps_drops_exact_fraction() -> None:
    assert dropped(gap="information", drop="lowest", fraction=0.5) == [0, 2, 5]


def test_gap_mask_fraction_zero_and_one() -> None:
    assert dropped(fraction=0.0) == []
    assert dropped(fraction=1.0) == [0, 1, 2, 3, 4, 5]


def test_gap_mask_equal_contexts_share_one_view() -> None:
    assert "supervisor" not in load_method("gap_mask", {"privilege": "crop", "gap_context": "crop"}).views
    method = load_method("gap_mask", {"privilege": "plain", "gap_context": "crop"})
    assert method.views["supervisor"].context == "plain"
    assert method.targets == ("supervisor",)
