"""Conversion of images in other colors than sRGB's: values by the profiles' matrices, and by Pillow's ImageCms."""

import io
import struct
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

import workbench.data.images
from workbench.data.images import open_image

# red, green and blue in XYZ of D50, as the profiles' files state them
DISPLAY_P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
ADOBE_RGB = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]
GAMMA = 563 / 256


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.data.images, "CHANGED", {})


def notes() -> list[str]:
    return list(workbench.data.images.CHANGED)


def profile(kind: bytes, tags: dict[bytes, bytes], *, pcs: bytes = b"XYZ ", device: bytes = b"mntr") -> bytes:
    """An ICC profile of version 2."""
    tags = {
        b"desc": _text(b"desc", b"a test"),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        **tags,
    }
    table, body, position = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += struct.pack(">4sII", name, position + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", position + len(body), b"lcms", 0x02400000, device, kind, pcs)
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28
    head += struct.pack(">3i", *(round(65536 * value) for value in (0.9642, 1.0, 0.8249)))
    return head + b"\0" * (128 - len(head)) + table + body


def _text(kind: bytes, text: bytes) -> bytes:
    return kind + b"\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def rgb_profile(primaries: list[tuple[float, float, float]]) -> bytes:
    tags = {letter + b"XYZ": _xyz(*values) for letter, values in zip((b"r", b"g", b"b"), primaries, strict=True)}
    return profile(b"RGB ", tags | {letter + b"TRC": _curve(GAMMA) for letter in (b"r", b"g", b"b")})


def ink_profile() -> bytes:
    """Inks to Lab by a table of the 16 full overprints: each color takes 20 of lightness, black 60; cyan is green."""
    corners = [
        (255 - 40 * (c + m + y) - 135 * k, 128 - 60 * c, 128 + 40 * y)
        for c in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
    ]
    lab = bytes(max(0, min(255, value)) for corner in corners for value in corner)
    ramp = bytes(range(256))
    table = struct.pack(">4sI4B9i", b"mft1", 0, 4, 3, 2, 0, *(65536 * (index % 4 == 0) for index in range(9)))
    return profile(b"CMYK", {b"A2B0": table + 4 * ramp + lab + 3 * ramp}, pcs=b"Lab ", device=b"prtr")


def by_matrices(colors: numpy.ndarray, primaries: list[tuple[float, float, float]]) -> numpy.ndarray:
    """(N, 3) values from 0 to 255 of a profile in sRGB's, cut to its gamut."""
    xyz = (colors / 255) ** GAMMA @ numpy.array(primaries)
    linear = (xyz @ numpy.linalg.inv(numpy.array(SRGB))).clip(0, 1)
    return 255 * numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


COLORS = numpy.random.default_rng(0).integers(0, 256, (400, 3)).astype(numpy.uint8)
COLORS[:6] = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)]


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB], ids=["display-p3", "adobe-rgb"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_open_image_wide_gamut_is_converted_to_srgb(tmp_path: Path, primaries: list, kind: str) -> None:
    icc = rgb_profile(primaries)
    file = tmp_path / f"wide.{kind.lower()}"
    Image.fromarray(COLORS[None]).save(file, icc_profile=icc, **({"lossless": True} if kind == "WEBP" else {}))
    displayed = open_image(file)
    values = numpy.asarray(displayed)[0].astype(float)
    assert abs(values - by_matrices(COLORS.astype(float), primaries)).max() <= 3  # tables of 8 bits, rounded
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    other = ImageCms.profileToProfile(Image.fromarray(COLORS[None]), source, ImageCms.createProfile("sRGB"))
    numpy.testing.assert_array_equal(values, numpy.asarray(other)[0])
    assert abs(values - COLORS).max() > 30  # the fault that this is about
    assert notes() == ["colors of the profile a test, converted to sRGB"]
    numpy.testing.assert_array_equal(numpy.asarray(open_image(displayed)), numpy.asarray(displayed))  # and once alone


def test_open_image_srgb_profile_keeps_values(tmp_path: Path) -> None:
    for icc in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None):
        Image.fromarray(COLORS[None]).save(tmp_path / "a.png", icc_profile=icc)
        numpy.testing.assert_array_equal(numpy.asarray(open_image(tmp_path / "a.png"))[0], COLORS)
    assert notes() == []


def test_open_image_alpha_and_palette_keep_their_profile(tmp_path: Path) -> None:
    icc = rgb_profile(DISPLAY_P3)
    pixel = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    pixel.save(tmp_path / "a.png", icc_profile=icc)
    red = by_matrices(numpy.array([[255.0, 0, 0]]), DISPLAY_P3)[0]
    expected = red * 128 / 255 + 255 * (1 - 128 / 255)
    assert abs(numpy.asarray(open_image(tmp_path / "a.png"))[0, 0] - expected).max() <= 2
    Image.new("P", (1, 1), 0).save(tmp_path / "p.png", icc_profile=icc)
    palette = Image.new("RGB", (1, 1), (200, 100, 50)).quantize(2)
    palette.save(tmp_path / "p.png", icc_profile=icc)
    converted = by_matrices(numpy.array([[200.0, 100, 50]]), DISPLAY_P3)[0]
    assert abs(numpy.asarray(open_image(tmp_path / "p.png"))[0, 0] - converted).max() <= 3


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_open_image_gray_profile_is_converted(tmp_path: Path, mode: str) -> None:
    icc = profile(b"GRAY", {b"kTRC": _curve(1.0)})  # linear light
    gray = Image.fromarray(numpy.array([[0, 20, 128, 255]], numpy.uint8))
    gray.convert(mode).save(tmp_path / "g.png", icc_profile=icc)
    linear = numpy.array([0, 20, 128, 255]) / 255
    expected = 255 * numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    displayed = numpy.asarray(open_image(tmp_path / "g.png"))[0].astype(float)
    assert abs(displayed - expected[:, None]).max() <= 2


def test_open_image_cmyk_uses_profile_or_pillow(tmp_path: Path) -> None:
    inks = numpy.random.default_rng(1).integers(0, 256, (1, 64, 4)).astype(numpy.uint8)
    picture = Image.frombytes("CMYK", (64, 1), inks.tobytes())
    icc = ink_profile()
    picture.save(tmp_path / "i.tiff", icc_profile=icc)
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    other = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    numpy.testing.assert_array_equal(numpy.asarray(open_image(tmp_path / "i.tiff")), numpy.asarray(other))
    picture.save(tmp_path / "n.tiff")
    numpy.testing.assert_array_equal(
        numpy.asarray(open_image(tmp_path / "n.tiff")), numpy.asarray(picture.convert("RGB"))
    )
    assert notes()[1:] == ["ink values (CMYK) without a color profile, so that colors are approximate"]


def test_open_image_unusable_profile_is_counted(tmp_path: Path) -> None:
    wide = rgb_profile(DISPLAY_P3)
    Image.new("CMYK", (1, 1), (9, 8, 7, 6)).save(tmp_path / "cmyk.tiff", icc_profile=wide)
    Image.new("RGB", (1, 1), (9, 8, 7)).save(
        tmp_path / "gray.png", icc_profile=profile(b"GRAY", {b"kTRC": _curve(1.0)})
    )
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "torn.png", icc_profile=wide[:150])
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "nothing.png", icc_profile=b"nothing")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "exif.jpg", exif=exif, quality=100)
    for name in ("gray.png", "torn.png", "nothing.png"):
        assert open_image(tmp_path / name).getpixel((0, 0)) == (9, 8, 7)
    for name in ("cmyk.tiff", "exif.jpg"):
        open_image(tmp_path / name)
    assert notes() == [
        "a color profile for GRAY on RGB pixels, which is not applied",
        "a color profile that cannot be read, so that its colors are taken as sRGB",
        "a color profile for RGB on CMYK pixels, which is not applied",
        "colors that its EXIF data call other than sRGB, without a profile: taken as sRGB",
    ]
