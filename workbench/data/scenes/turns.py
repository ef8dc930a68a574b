"""Reveal scene questions over turns: first the question, then the information to answer it, part by part.

    caption   the description follows in parts; the plain prompt contains all of it
    rows      the image follows in rows of the grid, each at its position in an otherwise empty image

Only all parts together determine the answer tokens, so an early answer is a guess.
"""

import dataclasses

from PIL import Image

from workbench.data.images import open_image
from workbench.data.scenes.world import CELL, GRID, GROUND
from workbench.errors import require_one_of
from workbench.types import VISIBLE, Example, Turn

FORMS = ("caption", "rows")
_PARTS = 2  # number of parts of a description
_NEXT = "then"  # text of a turn with a further image


def split_into_turns(example: Example, form: str) -> Example:
    """Add `turns` to an example, in one of FORMS. Raises ConfigError for an unknown form."""
    require_one_of("turns", form, FORMS)
    return _by_caption(example) if form == "caption" else _by_rows(example)


def _by_caption(example: Example) -> Example:
    things = example.evidence.caption.split("; ")
    size = -(-len(things) // _PARTS)
    parts = ["; ".join(things[start : start + size]) for start in range(0, len(things), size)]
    turns = (
        Turn("user", example.question, example.images),
        *(Turn("user", f"caption: {part}") for part in parts),
    )
    return dataclasses.replace(
        example,
        question=f"{example.question}\ncaption: {example.evidence.caption}",
        turns=turns,
        evidence=dataclasses.replace(example.evidence, caption=None),
        marks=tuple(dataclasses.replace(mark, truth=VISIBLE) for mark in example.marks),
    )


def _by_rows(example: Example) -> Example:
    (whole,) = example.images
    turns = [
        Turn("user", _NEXT if row else example.question, (_only_row(open_image(whole), row),)) for row in range(GRID)
    ]
    return dataclasses.replace(example, turns=tuple(turns))


def _only_row(whole: Image.Image, row: int) -> Image.Image:
    """Keep one row of the grid; the others become background."""
    picture = Image.new("RGB", whole.size, GROUND)
    band = (0, row * CELL, whole.width, (row + 1) * CELL)
    picture.paste(whole.crop(band), band[:2])
    return picture
