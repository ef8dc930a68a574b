"""Examples for the Data tab: loaded and drawn within what the page may take of the machine's memory."""

import functools
import threading
from pathlib import Path
from typing import Any

from workbench.app.components import empty_html, fresh
from workbench.data.examples import load_examples
from workbench.data.images import MAX_PIXELS, image_size
from workbench.data.picture_bounds import TooManyPicturesError
from workbench.errors import DataError
from workbench.render.examples import example_html
from workbench.types import Example

MOST_EXAMPLES = 200  # of a source that are listed
MOST_EVALUATED = 5000  # the same, where evaluated ones are looked for
MAX_DECODED = 256 * 2**20  # bytes of a source's embedded pictures, decoded; two sources are kept
MAX_DRAWN = 2 * MAX_PIXELS  # pixels of one example's pictures
DECODING = threading.Lock()  # one source, example or upload at a time: each may take hundreds of MB while it is decoded


def load(source: str, most: int = MOST_EXAMPLES, folders: tuple[Path, ...] = ()) -> tuple[list[Example], bool]:
    """The first examples of a source, and whether embedded pictures ended the list; files are read again when they change.

    most     examples
    folders  where its pictures may lie besides the source's own folder
    """
    file = Path(source.partition("?")[0])
    changed = file.stat().st_mtime_ns if file.exists() else 0
    with DECODING:
        examples, is_cut = _load(source, changed, most, folders)
    return list(examples), is_cut


@functools.lru_cache(maxsize=2)
def _load(source: str, changed: int, most: int, folders: tuple[Path, ...]) -> tuple[tuple[Example, ...], bool]:
    given: dict[str, Any] = {"folders": folders, "max_bytes": MAX_DECODED}
    try:
        return tuple(load_examples(source, limit=most, **given)), False
    except TooManyPicturesError as error:
        if error.num_rows == 0:
            raise
        return tuple(load_examples(source, limit=error.num_rows, **given)), True


def shown_html(example: Example) -> str:
    """The example with its pictures, or why they are not drawn: together they have too many pixels."""
    pictures = [one for one in (*example.images, example.evidence.crop) if one is not None]
    try:
        pixels = sum(width * height for width, height in map(image_size, pictures))
    except DataError:  # the picture's own place says what is wrong with it
        pixels = 0
    if pixels > MAX_DRAWN:
        return empty_html(
            f"{example.origin or example.id}: its {len(pictures)} pictures have {pixels:,} pixels together, and the page draws "
            f"at most {MAX_DRAWN:,} of one example. Shrink them."
        )
    with DECODING:
        return fresh(example_html(example))
