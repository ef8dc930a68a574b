"""Open images safely: bounded in size, upright, as 8-bit RGB, with errors that name the file.

Rules (docs/data.md) decide what is dropped from a file, such as transparency. CHANGED counts these cases.
"""

import contextlib
import functools
import io
import logging
import struct
import warnings
from pathlib import Path

import numpy
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from workbench.data.color_profiles import to_srgb
from workbench.errors import DataError

MAX_PIXELS = 64_000_000  # 8000 x 8000; larger images are refused, not shrunk
# what Pillow raises on damaged files; DataError is a ValueError too, so handlers of these must re-raise it
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
DEPTHS = (8, 12, 16, 24, 32)  # bits per value
IN_MEMORY = "an image in memory"
CHANGED: dict[str, set[str]] = {}  # kind of change -> names of the images that this process opened
log = logging.getLogger("workbench")
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def open_image(source: Image.Image | Path, *, name: str = "") -> Image.Image:
    """Open an image upright, as RGB, fully loaded.

    name  name of the file in messages; default: the path

    Raises: DataError if the file is missing, is not an image, is truncated, or has more than MAX_PIXELS pixels.
    """
    in_memory, is_named = isinstance(source, Image.Image), bool(name)
    name = name or (IN_MEMORY if in_memory else str(source))
    try:
        if in_memory:
            return _as_rgb(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size is stricter
            # by name, Pillow would map the file into memory and read rotated TIFF files with a wrong row length
            with source.open("rb") as file, Image.open(file) as image:
                return _as_rgb(image, name)
    except FileNotFoundError:
        raise DataError(
            f"image {name} does not exist. Check the path; relative paths start at the data file."
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"image {name} has far more than the allowed {MAX_PIXELS:,} pixels. Shrink it first.") from None
    except UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        why = "it is not an image, or of an unknown format" if isinstance(error, UnidentifiedImageError) else error
        remedy = "Save it again as PNG or JPEG" + ("." if is_named else ", or drop its row.")
        raise DataError(f"image {name} cannot be read ({why}). {remedy}") from None


def decode_image(data: bytes) -> Image.Image:
    """Decode an embedded image as RGB. Raises DataError if it is not an image, is damaged or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # open_image checks more strictly
            with Image.open(io.BytesIO(data)) as opened:
                return open_image(opened, name=f"embedded image of {len(data):,} bytes")
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(
            f"embedded image of {len(data):,} bytes cannot be read ({error}). Save it again as PNG or JPEG, or drop "
            "its row."
        ) from None


def image_size(image: Image.Image | Path) -> tuple[int, int]:
    """Return upright width and height in pixels from the file's header. Raises DataError if it is not an image."""
    if isinstance(image, Image.Image):
        return upright_size(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decodes no pixel
            with image.open("rb") as file, Image.open(file) as opened:
                return upright_size(opened)
    except UNREADABLE as error:
        raise DataError(
            f"image {image} cannot be read ({error}). Save it again as PNG or JPEG, or drop its row."
        ) from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image as open_image will return it, without reading pixels."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow gives its upright size
        return width, height
    return (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the first frame, upright, on a white background, as 8-bit sRGB. Logs what is dropped or converted."""
    _check_size(image, name)
    first, declared, key = image, _declared_bits(image), _transparent_value(image)
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError(f"{name} has floating-point pixels, which define no color. Save it as 8-bit PNG or JPEG.")
    alpha = None
    if image.mode.startswith("I"):
        image, alpha = _from_integers(image, declared, key, name)
    elif key is not None:
        image.load()  # the file gives the key in stored values, which Pillow rescales
        image.info["transparency"] = key
    if image.mode == "LAB":
        image = ImageCms.applyTransform(image, _lab_to_rgb())
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data and alpha is None:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    image, decided = to_srgb(image, None if first.mode == "LAB" else first.info.get("icc_profile"))
    if decided:
        note(decided, name)
    image = _on_white(image, alpha, name)
    if name != IN_MEMORY and _has_more_frames(first):
        note(f"several frames, of which the first is shown ({first.format})", name)
    return image


def _on_white(image: Image.Image, alpha: Image.Image | None, name: str) -> Image.Image:
    if image.mode == "RGB" and alpha is None:
        image.load()
        return image
    color = image.convert("RGB")
    if alpha is None or alpha.getextrema()[0] == 255:
        return color
    note("transparent pixels, laid on white", name)
    color.putalpha(alpha)
    ground = Image.new("RGBA", color.size, "white")
    ground.alpha_composite(color)
    return ground.convert("RGB")


def _from_integers(
    image: Image.Image, declared: int | None, key: int | tuple[int, int, int] | None, name: str
) -> tuple[Image.Image, Image.Image | None]:
    """Scale 16- or 32-bit values to 8 bits. Returns the image and the alpha of pixels that equal the key.

    White is the largest number of the declared bits. If no depth below 16 bits is declared, it is that of the smallest
    of DEPTHS that holds the largest value.
    """
    order = {"I;16B": ">u2", "I;16N": "=u2", "I": "=i4"}.get(image.mode, "<u2")
    values = numpy.frombuffer(image.tobytes(), order).reshape(image.height, image.width).astype(numpy.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise DataError(f"{name} has negative pixel values, down to {low}. Save it as 8-bit PNG.")
    bits = declared or next(bits for bits in DEPTHS if high < 2**bits)
    if bits != 16:
        note(f"{bits}-bit values in {8 * numpy.dtype(order).itemsize} bits, scaled to 8", name)
    gray = numpy.minimum(values >> (bits - 8), 255) if bits >= 8 else values * 255 // (2**bits - 1)
    alpha = None if key is None else Image.fromarray(numpy.where(values == key, 0, 255).astype(numpy.uint8))
    return Image.fromarray(gray.astype(numpy.uint8)), alpha


def _declared_bits(image: Image.Image) -> int | None:
    """Return the declared bits per value if fewer than stored (12 in a TIFF). Pillow scales a PGM to 16 itself."""
    if image.format == "PPM":
        return 16
    bits = image.tag_v2.get(ExifTags.Base.BitsPerSample) if hasattr(image, "tag_v2") else None
    bits = bits[0] if isinstance(bits, tuple) else bits
    return bits if isinstance(bits, int) and 0 < bits < 16 else None


def _transparent_value(image: Image.Image) -> int | tuple[int, int, int] | None:
    """Return the gray value or color that a file declares transparent, in Pillow's values; None without one."""
    key = image.info.get("transparency")
    tile = image.tile[0] if getattr(image, "tile", None) else None
    stored = tile[3] if tile is not None and isinstance(tile[3], str) else ""
    if isinstance(key, int) and image.mode in ("L", "I", "I;16", "I;16B"):
        return key * {"L;2": 85, "L;4": 17}.get(stored, 1)
    if isinstance(key, tuple) and stored == "RGB;16B":
        return tuple(value >> 8 for value in key)
    return None


def _has_more_frames(image: Image.Image) -> bool:
    """Whether a file has several frames or pages. An MPO photo, which holds smaller copies of itself, counts as one."""
    with contextlib.suppress(*UNREADABLE):
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


@functools.cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def note(what: str, name: str) -> None:
    """Count an image by the kind of change. Logs the first of each kind."""
    names = CHANGED.setdefault(what, set())
    if not names:
        log.warning("image %s has %s. Further such images are not logged; `workbench check` counts them.", name, what)
    names.add(name)


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are allowed. Shrink it first."
        )
