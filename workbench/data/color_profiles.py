"""Convert images to sRGB, which models are trained on and browsers show, by applying embedded ICC profiles."""

import functools
import io

import numpy
from PIL import ExifTags, Image, ImageCms

ALMOST = 2  # of 255: a profile that changes colors by at most this counts as sRGB and is not applied
_MODES = {"RGB ": "RGB", "CMYK": "CMYK", "GRAY": "L"}  # color space of a profile -> Pillow mode
_UNCALIBRATED = 0xFFFF  # value of EXIF's ColorSpace for other spaces than sRGB
_SRGB_GAMMA = 1 / 2.2


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Convert an image to sRGB. Returns it with a note on its colors, "" if they needed none.

    Converted images lose their alpha channel.

    image    8-bit, of any mode
    profile  the file's ICC profile, or None
    """
    if profile is None:
        return image, _unprofiled(image)
    try:
        space, name, transform, is_srgb = _transform(profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image, "a color profile that cannot be read, so that its colors are taken as sRGB"
    is_gray = image.mode in ("1", "L") or (image.mode == "RGBA" and _has_equal_channels(image))
    if transform is None or (space == "CMYK") != (image.mode == "CMYK") or (space == "GRAY" and not is_gray):
        return image, f"a color profile for {space.strip()} on {image.mode} pixels, which is not applied"
    if is_srgb:
        return image, ""
    converted = ImageCms.applyTransform(image.convert(_MODES[space]), transform)
    converted.info.pop("icc_profile", None)  # so that it is not applied again
    return converted, f"colors of the profile {name}, converted to sRGB"


@functools.lru_cache(16)
def _transform(profile: bytes) -> tuple[str, str, ImageCms.ImageCmsTransform | None, bool]:
    """Return a profile's color space, name, transform to sRGB (None for unsupported spaces), and whether it is sRGB."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space, mode = opened.profile.xcolor_space, _MODES.get(opened.profile.xcolor_space)
    name = " ".join((opened.profile.profile_description or "without a name").split())[:60]
    if mode is None:
        return space, name, None, False
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return space, name, transform, False
    levels = numpy.arange(0, 256, 15, dtype=numpy.uint8)
    cube = numpy.stack(numpy.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(1, -1, 3)
    probe = Image.fromarray(cube) if mode == "RGB" else Image.fromarray(levels[None])
    moved = numpy.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - numpy.asarray(probe.convert("RGB"))
    return space, name, transform, bool(abs(moved).max() <= ALMOST)


def _unprofiled(image: Image.Image) -> str:
    if image.mode == "CMYK":
        return "ink values (CMYK) without a color profile, so that colors are approximate"
    if _is_adobe_rgb(image):
        return "colors that its EXIF data call other than sRGB, without a profile: taken as sRGB"
    gamma = image.info.get("gamma")
    if isinstance(gamma, float) and abs(gamma - _SRGB_GAMMA) > 0.01 and "srgb" not in image.info:
        return f"a gamma of {gamma:.3g}, which is not applied: taken as sRGB"
    return ""


def _is_adobe_rgb(image: Image.Image) -> bool:
    exif = image.getexif()
    return bool(exif) and exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) == _UNCALIBRATED


def _has_equal_channels(image: Image.Image) -> bool:
    red, green, blue = image.split()[:3]
    return red.tobytes() == green.tobytes() == blue.tobytes()
