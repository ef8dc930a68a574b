"""Rows of the training data that are set aside for evaluation: data.held_out.

A hash of a row's content decides, so equal rows are on the same side, and appended rows move none of the others.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from workbench.errors import DataError
from workbench.seeding import draw_uniform
from workbench.types import Example


def split_held_out(examples: Iterable[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split examples into those to train on and those set aside, a `share` of them on average.

    Raises: DataError if one side is empty.
    """
    examples = list(examples)
    held_out = [draw_uniform("held out", content_of(example)) < share for example in examples]
    train = [example for example, is_held_out in zip(examples, held_out, strict=True) if not is_held_out]
    rest = [example for example, is_held_out in zip(examples, held_out, strict=True) if is_held_out]
    if not train or not rest:
        raise DataError(
            f"data.held_out={share:g} of {len(examples):,} examples sets {len(rest):,} aside and leaves {len(train):,} "
            "to train on. Choose another share, add rows, or name evaluation examples by data.eval."
        )
    return train, rest


def content_of(example: Example) -> str:
    """Digest of question, turns, answer and images: the names of files, the pixels of embedded images."""
    turns = [turn.text for turn in (*example.history, *example.turns)]
    images = [_image(image) for image in (*example.images, *(image for turn in example.turns for image in turn.images))]
    text = "\0".join([example.question, *turns, example.answer or "", *images])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _image(image: Image.Image | Path) -> str:
    return image.name if isinstance(image, Path) else hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
