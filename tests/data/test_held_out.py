"""Rows that data.held_out sets aside: by content, about the share, and not moved by other rows."""

from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from small import example

from workbench.data.held_out import content_of, split_held_out
from workbench.errors import DataError

EXAMPLES = [example(idx, question=f"What is {idx}?") for idx in range(600)]


def questions(examples: list) -> list[str]:
    return [row.question for row in examples]


def test_split_held_out_takes_about_the_share_in_order() -> None:
    train, held_out = split_held_out(EXAMPLES, 0.25)
    assert len(held_out) == pytest.approx(150, abs=45)  # four standard deviations
    assert sorted(questions([*train, *held_out])) == sorted(questions(EXAMPLES))
    assert [int(row.id.rpartition("-")[2]) for row in train] == sorted(int(row.id.rpartition("-")[2]) for row in train)


def test_split_held_out_of_more_rows_moves_none() -> None:
    held_out = questions(split_held_out(EXAMPLES[:300], 0.2)[1])
    first = set(questions(EXAMPLES[:300]))
    assert [text for text in questions(split_held_out(EXAMPLES, 0.2)[1]) if text in first] == held_out
    assert set(held_out) < set(questions(split_held_out(EXAMPLES[:300], 0.4)[1]))


def test_split_held_out_keeps_equal_rows_together() -> None:
    copies = [replace(row, id=f"copy-{row.id}", origin="elsewhere") for row in EXAMPLES]
    first, second = (split_held_out(rows, 0.3)[1] for rows in (EXAMPLES, copies))
    assert questions(first) == questions(second)


def test_content_of_differs_by_question_answer_and_image() -> None:
    base = example(0)
    changed = [replace(base, question="Who?"), replace(base, answer="4"), replace(base, images=example(1).images)]
    paths = [replace(base, images=(Path(name),)) for name in ("x/a.png", "y/a.png", "x/b.png")]
    assert len({content_of(row) for row in [base, *changed]}) == 4
    assert content_of(paths[0]) == content_of(paths[1]) != content_of(paths[2])


@pytest.mark.parametrize("share", [1e-9, 0.9])
def test_split_held_out_of_everything_or_nothing_raises(share: float) -> None:
    train, held_out = split_held_out(EXAMPLES[:40], 0.5)
    with raises(DataError, f"data.held_out={share:g}", "2 examples"):
        split_held_out((train if share < 0.5 else held_out)[:2], share)
