"""Opening images safely: bounded in size, converted to RGB, errors that name the file."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from workbench.errors import DataError

MAX_PIXELS = 64_000_000  # an 8000 x 8000 picture; larger ones are refused, not shrunk


def open_image(source: Image.Image | Path) -> Image.Image:
    """The picture as RGB, fully loaded.

    Raises: DataError if the file is missing, is not an image, is truncated, or has more than MAX_PIXELS pixels.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "an image in memory")
        return source if source.mode == "RGB" else source.convert("RGB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, stricter check follows
            with Image.open(source) as image:
                _check_size(image, str(source))
                return ImageOps.exif_transpose(image).convert("RGB")  # upright, as a viewer shows it
    except FileNotFoundError:
        raise DataError(
            f"image {source} does not exist. Check the path; relative paths start at the data file."
        ) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"image {source} cannot be read ({error}). Save it again as PNG or JPEG, or drop its row."
        ) from None


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are allowed. Shrink it first."
        )
