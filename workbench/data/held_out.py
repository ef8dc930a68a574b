"""Rows of the training data that are set aside for evaluation: data.held_out.

Rows that share an image are on the same side, since a question about a picture of the training data adds no picture.
A hash of the image's content decides, of rows without images that of their text. So equal rows are on the same side,
files may be moved, and appended rows move none of the others, unless they join images that no row had together.
"""

import json
from collections.abc import Iterable

from workbench.data.digests import picture_digest
from workbench.errors import DataError
from workbench.seeding import draw_uniform
from workbench.types import Example


def split_held_out(examples: Iterable[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split examples into those to train on and those set aside, a `share` of them on average.

    Raises: DataError if one side is empty.
    """
    examples = list(examples)
    held_out = [draw_uniform("held out", key) < share for key in _groups([_contents(example) for example in examples])]
    train = [example for example, is_held_out in zip(examples, held_out, strict=True) if not is_held_out]
    rest = [example for example, is_held_out in zip(examples, held_out, strict=True) if is_held_out]
    if not train or not rest:
        raise DataError(
            f"data.held_out={share:g} of {len(examples):,} examples sets {len(rest):,} aside and leaves {len(train):,} "
            "to train on. Rows of one image stay together. Choose another share, add rows, or name evaluation examples "
            "by data.eval."
        )
    return train, rest


def count_repeated(evaluated: Iterable[Example], train: Iterable[Example]) -> int:
    """Number of evaluated examples that are trained on too: a training row has the same texts and the same images.

    Images are read only where the texts agree.
    """
    evaluated, train = list(evaluated), list(train)
    common = set(map(_texts, evaluated)) & set(map(_texts, train))
    sides = [[row for row in rows if _texts(row) in common] for rows in (evaluated, train)]
    first, second = ([(_texts(row), *_contents(row)) for row in rows] for rows in sides)
    trained = set(second)
    return sum(row in trained for row in first)


def _texts(example: Example) -> str:
    turns = [turn.text for turn in (*example.history, *example.turns)]
    return "\0".join([example.question, *turns, example.answer or ""])


def _contents(example: Example) -> list[str]:
    """Digests of the example's images, of all turns; without any, its texts."""
    turns = (*example.history, *example.turns)
    images = [*example.images, *(image for turn in turns for image in turn.images)]
    return [json.dumps(picture_digest(image)) for image in images] or [_texts(example)]


def _groups(contents: list[list[str]]) -> list[str]:
    """Name of the group of each row: the first in the alphabet of all contents that link rows to it."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]
        return key

    for keys in contents:
        first, *others = sorted(map(root, keys))
        parents.update(dict.fromkeys(others, first))
    return [root(keys[0]) for keys in contents]
