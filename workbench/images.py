"""Opening images safely: bounded in size, upright, converted to 8-bit RGB, errors that name the file."""

import io
import struct
import warnings
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from workbench.errors import DataError

MAX_PIXELS = 64_000_000  # an 8000 x 8000 picture; larger ones are refused, not shrunk
# what Pillow raises on damaged files, by format; a DataError is a ValueError too and is passed on by those who catch these
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    struct.error,
)
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def open_image(source: Image.Image | Path, *, name: str = "") -> Image.Image:
    """The picture as a viewer shows it: upright, RGB, fully loaded.

    name  what messages call a file that is no row of a data set; the path if empty

    Raises: DataError if the file is missing, is not an image, is truncated, or has more than MAX_PIXELS pixels.
    """
    in_memory, is_named = isinstance(source, Image.Image), bool(name)
    name = name or ("an image in memory" if in_memory else str(source))
    try:
        if in_memory:
            return _as_rgb(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, stricter check follows
            with Image.open(source) as image:
                return _as_rgb(image, name)
    except FileNotFoundError:
        raise DataError(
            f"image {name} does not exist. Check the path; relative paths start at the data file."
        ) from None
    except Image.DecompressionBombError:
        raise DataError(
            f"image {name} has far more than the {MAX_PIXELS:,} pixels that are allowed. Shrink it first."
        ) from None
    except UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        why = "it is no picture, or of an unknown format" if isinstance(error, UnidentifiedImageError) else error
        remedy = "Save it again as PNG or JPEG" + ("." if is_named else ", or drop its row.")
        raise DataError(f"image {name} cannot be read ({why}). {remedy}") from None


def decode_image(data: bytes) -> Image.Image:
    """An embedded image as RGB, fully loaded. Raises DataError if it is no image, is damaged or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # open_image checks more strictly
            image = open_image(Image.open(io.BytesIO(data)))
            image.load()
            return image
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(
            f"embedded image of {len(data):,} bytes cannot be read ({error}). Save it again as PNG or JPEG, or drop its row."
        ) from None


def image_size(image: Image.Image | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, from the file's head alone. Raises DataError if it is no image."""
    if isinstance(image, Image.Image):
        return upright_size(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is decoded here
            with Image.open(image) as opened:
                return upright_size(opened)
    except UNREADABLE as error:
        raise DataError(
            f"image {image} cannot be read ({error}). Save it again as PNG or JPEG, or drop its row."
        ) from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image as open_image will return it; no pixel is read."""
    width, height = image.size
    return (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError(f"{name} has floating-point pixels, which mean no colour. Save it as 8-bit PNG or JPEG.")
    if image.mode.startswith("I"):  # 16 bits: Pillow would cut at 255 and leave white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are allowed. Shrink it first."
        )
