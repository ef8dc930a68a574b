"""Load and draw examples for the Data tab within a memory limit."""

import functools
import threading
from pathlib import Path
from typing import Any

from workbench.app.components import empty_html, remount
from workbench.data.examples import load_examples
from workbench.data.images import MAX_PIXELS, image_size
from workbench.data.picture_bounds import TooManyPicturesError
from workbench.errors import DataError
from workbench.render.examples import example_html
from workbench.types import Example

MAX_EXAMPLES = 200  # listed of a source
MAX_EVALUATED_EXAMPLES = 5000  # listed if the address names an evaluated example
MAX_DECODED = 256 * 2**20  # bytes of a source's embedded images, decoded; two sources are cached
MAX_DRAWN = 2 * MAX_PIXELS  # pixels of one example's images
DECODE_LOCK = threading.Lock()  # decoding one source, example or upload may take hundreds of MB


def load(source: str, limit: int = MAX_EXAMPLES, folders: tuple[Path, ...] = ()) -> tuple[list[Example], bool]:
    """The first examples of a source, and whether MAX_DECODED ended the list early. Changed files are read again.

    folders  folders that the source's images may be in, besides its own
    """
    file = Path(source.partition("?")[0])
    changed = file.stat().st_mtime_ns if file.exists() else 0
    with DECODE_LOCK:
        examples, is_cut = _load(source, changed, limit, folders)
    return list(examples), is_cut


@functools.lru_cache(maxsize=2)
def _load(source: str, changed: int, limit: int, folders: tuple[Path, ...]) -> tuple[tuple[Example, ...], bool]:
    options: dict[str, Any] = {"folders": folders, "max_bytes": MAX_DECODED}
    try:
        return tuple(load_examples(source, max_examples=limit, **options)), False
    except TooManyPicturesError as error:
        if error.num_rows == 0:
            raise
        return tuple(load_examples(source, max_examples=error.num_rows, **options)), True


def example_fragment(example: Example) -> str:
    """The example with its images as HTML; a message instead if they have more than MAX_DRAWN pixels together."""
    pictures = [*example.images, *example.evidence.crops]
    try:
        pixels = sum(width * height for width, height in map(image_size, pictures))
    except DataError:  # the error is shown in place of the image
        pixels = 0
    if pixels > MAX_DRAWN:
        return empty_html(
            f"{example.origin or example.id}: too many pixels to draw: {pixels:,} in {len(pictures)} images. "
            f"Expected at most {MAX_DRAWN:,} for one example. Shrink the images."
        )
    with DECODE_LOCK:
        return remount(example_html(example))
