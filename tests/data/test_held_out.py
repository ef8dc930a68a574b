"""Rows that data.held_out sets aside: by image, about the share, and not moved by other rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import example, run_config

from workbench.data.held_out import count_repeated, split_held_out
from workbench.errors import DataError
from workbench.training.run_data import load_run_data

EXAMPLES = [example(idx, question=f"What is {idx}?", images=()) for idx in range(600)]


def pictures(count: int) -> tuple[Image.Image, ...]:
    return tuple(Image.new("RGB", (4, 4), (idx % 256, idx // 256, 0)) for idx in range(count))


def questions(examples: list) -> list[str]:
    return [row.question for row in examples]


def test_split_held_out_takes_about_the_share_in_order() -> None:
    train, held_out = split_held_out(EXAMPLES, 0.25)
    assert len(held_out) == pytest.approx(150, abs=45)  # four standard deviations
    assert sorted(questions([*train, *held_out])) == sorted(questions(EXAMPLES))
    assert [int(row.id.rpartition("-")[2]) for row in train] == sorted(int(row.id.rpartition("-")[2]) for row in train)


def test_split_held_out_of_more_rows_moves_none() -> None:
    rows = [replace(row, images=(image,)) for row, image in zip(EXAMPLES, pictures(600), strict=True)]
    for examples in (EXAMPLES, rows):
        held_out = questions(split_held_out(examples[:300], 0.2)[1])
        first = set(questions(examples[:300]))
        assert [text for text in questions(split_held_out(examples, 0.2)[1]) if text in first] == held_out
        assert set(held_out) < set(questions(split_held_out(examples[:300], 0.4)[1]))


def test_split_held_out_keeps_equal_rows_together() -> None:
    copies = [replace(row, id=f"copy-{row.id}", origin="elsewhere") for row in EXAMPLES]
    first, second = (split_held_out(rows, 0.3)[1] for rows in (EXAMPLES, copies))
    assert questions(first) == questions(second)


def test_split_held_out_keeps_questions_about_one_image_together() -> None:
    rows = [replace(row, images=(pictures(60)[idx % 60],)) for idx, row in enumerate(EXAMPLES)]
    train, held_out = split_held_out(rows, 0.3)
    sides = [{row.images[0].tobytes() for row in side} for side in (train, held_out)]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == 60
    assert len(sides[1]) == pytest.approx(18, abs=15)  # four standard deviations


def test_split_held_out_follows_images_over_several_rows() -> None:
    """By hand: rows of pictures (0), (1), ... of which every tenth has a neighbor's picture too."""
    images = pictures(300)
    rows = [
        replace(row, images=(images[idx], *(images[idx - 1 : idx] if idx % 10 == 5 else ())))
        for idx, row in enumerate(EXAMPLES[:300])
    ]
    held_out = set(questions(split_held_out(rows, 0.5)[1]))
    is_held_out = [row.question in held_out for row in rows]
    assert all(is_held_out[idx] == is_held_out[idx - 1] for idx in range(5, 300, 10))
    assert len({is_held_out[idx] == is_held_out[idx - 1] for idx in range(6, 300, 10)}) == 2  # others are independent


def test_split_held_out_compares_content_of_files(tmp_path: Path) -> None:
    """Two folders with files of the same names: the names join nothing, and a copied file is the same picture."""
    for idx, image in enumerate(pictures(80)):
        folder = tmp_path / ("first" if idx % 2 else "second")
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{idx // 2}.png")
    rows = []
    for idx in range(80):
        name = f"{'first' if idx % 2 else 'second'}/{idx // 2}.png"
        (tmp_path / f"copy-{idx}.png").write_bytes((tmp_path / name).read_bytes())
        rows += [{"question": f"a {idx}", "images": [name]}, {"question": f"b {idx}", "images": [f"copy-{idx}.png"]}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row | {"answer": "1"}) + "\n" for row in rows))
    config = run_config(
        {"student": "s", "teacher": "t"}, tmp_path, method={"name": "opd"}, data={"train": str(file), "held_out": 0.5}
    )
    chosen = {row.question for row in load_run_data(config).train}
    assert all((f"a {idx}" in chosen) == (f"b {idx}" in chosen) for idx in range(80))
    pairs = [(f"a {idx}" in chosen, f"a {idx + 1}" in chosen) for idx in range(0, 80, 2)]  # of equal names
    assert any(first != second for first, second in pairs)


@pytest.mark.parametrize("share", [1e-9, 0.9])
def test_split_held_out_of_everything_or_nothing_raises(share: float) -> None:
    train, held_out = split_held_out(EXAMPLES[:40], 0.5)
    with raises(DataError, f"data.held_out={share:g}", "2 examples"):
        split_held_out((train if share < 0.5 else held_out)[:2], share)


def test_count_repeated_compares_texts_and_images() -> None:
    red, blue = pictures(2)
    train = [example(idx, question="Which?", images=(red,), answer="one") for idx in range(3)]
    same, other_image = replace(train[0], id="x"), replace(train[0], images=(blue,))
    other_answer, bare = replace(train[0], answer="two"), replace(train[0], images=())
    evaluated = [same, other_image, other_answer, bare, same]
    assert count_repeated(evaluated, train) == 2
    assert count_repeated(evaluated, []) == count_repeated([], train) == 0


def test_run_data_names_set_whose_rows_are_trained_on(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"What is {n}?", "answer": str(n)}) + "\n" for n in range(9)]
    train, apart, mixed = (tmp_path / f"{name}.jsonl" for name in ("train", "apart", "mixed"))
    for file, rows in ((train, lines[:6]), (apart, lines[6:]), (mixed, lines[5:])):
        file.write_text("".join(rows))
    sets = {"apart": str(apart), "mixed": str(mixed)}
    config = run_config({"student": "s", "teacher": "t"}, tmp_path, data__train=str(train), data__eval=sets)
    (sentence,) = load_run_data(config).describe_repeated()
    assert sentence.startswith("data.eval.mixed: 1 of 4 examples")
