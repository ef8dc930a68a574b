"""Pictures of every mode, as a viewer shows them: right values by hand, with numpy alone."""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from failures import raises
from PIL import Image, ImageDraw

import workbench.data.images
from workbench.data.images import decode_image, image_size, open_image
from workbench.errors import DataError

ALPHAS = (0, 1, 64, 127, 128, 254, 255)


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.data.images, "CHANGED", {})


def pixels(image: Image.Image) -> numpy.ndarray:
    assert image.mode == "RGB"
    return numpy.asarray(image).astype(int)


def on_white(color: numpy.ndarray, alpha: numpy.ndarray) -> numpy.ndarray:
    """color (..., 3) and alpha (...) from 0 to 255, not premultiplied."""
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def png(color_type: int, bits: int, key: bytes, row: bytes, width: int) -> bytes:
    """A PNG of one row, as other tools write it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + (chunk(b"tRNS", key) if key else b"") + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def test_open_image_alpha_is_blended_on_white() -> None:
    values = numpy.array([[(200, 30, 10, alpha) for alpha in ALPHAS]], dtype=numpy.uint8)
    wanted = on_white(values[..., :3], values[..., 3])
    rgba = Image.fromarray(values, "RGBA")
    assert numpy.abs(pixels(open_image(rgba)) - wanted).max() <= 0.51
    assert numpy.abs(pixels(open_image(rgba.convert("RGBa"))) - wanted).max() <= 2.5  # premultiplied: it was rounded
    grey = values[..., [0, 3]]
    assert (
        numpy.abs(pixels(open_image(Image.fromarray(grey, "LA"))) - on_white(grey[..., [0, 0, 0]], grey[..., 1])).max()
        <= 0.51
    )
    assert list(workbench.data.images.CHANGED) == ["transparent pixels, laid on white"]


def drawing() -> Image.Image:
    """A black square on nothing, as plotting tools export it."""
    image = Image.new("RGBA", (120, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((20, 10, 50, 30), fill=(0, 0, 0, 255))
    return image


@pytest.mark.parametrize(
    "kind",
    [
        "rgba.png",
        "la.png",
        "rgba.webp",
        "palette.png",
        "palette.gif",
        "grey.png",
        "rgb.png",
        "pa.tiff",
        "one.png",
        "rgba.tiff",
        "rgba.avif",
    ],
)
def test_open_image_transparent_drawing_is_black_on_white(kind: str, tmp_path: Path) -> None:
    stem, file = kind.partition(".")[0], tmp_path / kind
    palette = Image.new("P", (120, 40), 0)
    palette.putpalette([0, 0, 0, 0, 0, 0, 255, 0, 0] + [0] * 759)
    ImageDraw.Draw(palette).rectangle((20, 10, 50, 30), fill=1)
    grey = Image.new("L", (120, 40), 3)
    ImageDraw.Draw(grey).rectangle((20, 10, 50, 30), fill=0)
    if stem == "rgba":
        drawing().save(file, **({"lossless": True, "exact": True} if kind.endswith("webp") else {}))
    elif stem == "la":
        drawing().convert("LA").save(file)
    elif stem == "palette":
        palette.save(file, transparency=0)
    elif stem == "grey":
        grey.save(file, transparency=3)
    elif stem == "one":
        grey.point(lambda value: 255 if value else 0).convert("1").save(file, transparency=1)
    elif stem == "rgb":
        grey.convert("RGB").save(file, transparency=(3, 3, 3))
    else:
        drawing().convert("PA").save(file)
    for image in (open_image(file), decode_image(file.read_bytes())):
        result = pixels(image)
        if kind.endswith("avif"):  # not lossless
            assert result[0, 0].min() > 250 and result[20, 30].max() < 5
            continue
        assert {tuple(color) for color in result.reshape(-1, 3)} == {(0, 0, 0), (255, 255, 255)}
        assert (tuple(result[0, 0]), tuple(result[20, 30])) == ((255, 255, 255), (0, 0, 0))
    assert set(workbench.data.images.CHANGED) == {"transparent pixels, laid on white"}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (png(0, 2, b"\0\1", bytes([0b00011011]), 4), [0, 255, 170, 255]),  # keys are as stored, values are stretched
        (png(0, 4, b"\0\3", bytes([0x03, 0x1F]), 4), [0, 255, 17, 255]),
        (png(0, 1, b"\0\0", bytes([0b01010000]), 4), [255, 255, 255, 255]),
        (png(0, 8, b"\0\3", bytes([0, 3, 4, 255]), 4), [0, 255, 4, 255]),
        (png(0, 16, b"\x80\0", struct.pack(">4H", 0x8000, 0x8001, 0, 65535), 4), [255, 128, 0, 255]),
        (
            png(2, 16, b"\x80\0" * 3, struct.pack(">12H", *[0x8000] * 3, *[0x4000] * 3, *[0] * 3, *[65535] * 3), 4),
            [255, 64, 0, 255],
        ),
    ],
)
def test_decode_image_transparent_color_of_any_depth_is_white(data: bytes, wanted: list[int]) -> None:
    assert pixels(decode_image(data))[0].tolist() == [[value] * 3 for value in wanted]


@pytest.mark.parametrize(
    ("mode", "values", "wanted"),
    [
        ("I;16", (0, 100, 255), (0, 100, 255)),  # 8 bits
        ("I;16", (0, 256, 2048, 4095), (0, 16, 128, 255)),  # 12 bits
        ("I;16", (0, 4096, 32768, 65535), (0, 16, 128, 255)),
        ("I;16B", (0, 256, 2048, 4095), (0, 16, 128, 255)),
        ("I;16L", (0, 4096, 32768, 65535), (0, 16, 128, 255)),
        ("I;16N", (0, 4096, 32768, 65535), (0, 16, 128, 255)),
        ("I", (0, 100, 255), (0, 100, 255)),
        ("I", (0, 256, 2048, 4095), (0, 16, 128, 255)),
        ("I", (0, 4096, 32768, 65535), (0, 16, 128, 255)),
        ("I", (0, 2**23, 2**24 - 1), (0, 128, 255)),
        ("I", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_open_image_deep_values_scale_by_their_depth(mode: str, values: tuple, wanted: tuple) -> None:
    order = {"I": "=i4", "I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (len(values), 1), numpy.array(values, order).tobytes())
    assert pixels(open_image(image))[0].tolist() == [[value] * 3 for value in wanted]
    is_noted = max(values) < 4096 or max(values) > 65535
    assert any("bit values in" in text for text in workbench.data.images.CHANGED) == is_noted


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_open_image_deep_files_are_scaled(kind: str, tmp_path: Path) -> None:
    values = numpy.array([[0, 256, 2048, 4095]], numpy.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{kind}")
    assert pixels(open_image(tmp_path / f"deep.{kind}"))[0, :, 0].tolist() == [0, 16, 128, 255]
    Image.fromarray(values.astype(numpy.int32)).save(tmp_path / "deeper.tiff")
    assert pixels(open_image(tmp_path / "deeper.tiff"))[0, :, 0].tolist() == [0, 16, 128, 255]
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 1 4095\n" + numpy.array([0, 256, 512, 1000], ">u2").tobytes())
    assert pixels(open_image(tmp_path / "dark.pgm"))[0, :, 0].tolist() == [0, 16, 32, 62]  # the file states 4095


def test_open_image_negative_or_float_values_raise() -> None:
    with raises(DataError, "-3"):
        open_image(Image.fromarray(numpy.array([[-3, 5]], numpy.int32)))
    with raises(DataError, "floating-point"):
        open_image(Image.new("F", (2, 2), 0.5))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "LA", "PA", "RGBA", "RGBa"]
)
def test_open_image_opaque_modes_keep_colors(mode: str) -> None:
    colors = numpy.array([[(255, 255, 255), (0, 0, 0), (255, 255, 255)]] * 2, numpy.uint8)
    if mode not in ("1", "L", "La", "LA"):
        colors[0] = [(255, 0, 0), (0, 128, 255), (10, 200, 30)]
    rgb = Image.fromarray(colors)
    if mode == "LAB":
        lab = workbench.data.images.ImageCms
        to_lab = lab.buildTransform(lab.createProfile("sRGB"), lab.createProfile("LAB"), "RGB", "LAB")
        image = lab.applyTransform(rgb, to_lab)
    elif mode in ("La", "RGBa"):
        image = rgb.convert(mode.upper()).convert(mode)
    elif mode == "PA":
        image = rgb.quantize(8).convert("PA")
    else:
        image = rgb.convert(mode)
    assert image.mode == mode
    tolerance = {"LAB": 15, "YCbCr": 2, "HSV": 5, "P": 30, "PA": 6}.get(
        mode, 0
    )  # rounded to 8 bits there; P: the web palette
    assert numpy.abs(pixels(open_image(image)) - colors).max() <= tolerance
    inks = ["ink values (CMYK) without a color profile, so that colors are approximate"]
    assert list(workbench.data.images.CHANGED) == (inks if mode == "CMYK" else [])


def test_decode_image_adobe_cmyk_jpeg_is_inverted() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(stream, "JPEG", quality=100)  # inverted in the file
    assert numpy.abs(pixels(decode_image(stream.getvalue())) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_open_image_several_frames_shows_first_and_notes_it(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    for name in ("a", "b"):
        frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING, "workbench"):
        for name in ("a", "b", "a"):
            assert pixels(open_image(tmp_path / name))[3, 3].tolist() == [255, 0, 0]
    ((what, names),) = workbench.data.images.CHANGED.items()
    assert what == f"several frames, of which the first is shown ({kind})" and len(names) == 2
    assert len(caplog.messages) == 1 and str(tmp_path / "a") in caplog.text
    frames[0].save(tmp_path / "still", kind)
    open_image(tmp_path / "still")
    assert len(names) == 2


def test_open_image_turned_transparent_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 1), (255, 0, 0, 255))  # lower left as stored: upper left when turned
    image.save(tmp_path / "side.png", exif=exif)
    result = pixels(open_image(tmp_path / "side.png"))
    assert result.shape == (4, 2, 3) and result[0, 0].tolist() == [255, 0, 0] and result[3, 1].tolist() == [255] * 3


UPRIGHT = {  # by EXIF orientation: what a viewer makes of the stored rows
    1: lambda rows: rows,
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: rows.swapaxes(0, 1)[:, ::-1],
    7: lambda rows: rows.swapaxes(0, 1)[::-1, ::-1],
    8: lambda rows: rows.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "CMYK"])
def test_open_image_turned_tiff_upright_and_measured(mode: str, orientation: int, tmp_path: Path) -> None:
    grey = (numpy.arange(24, dtype=numpy.uint8) * 10).reshape(4, 6)
    stored = {
        "L": grey,
        "I;16": grey.astype(numpy.uint16) * 257,
        "RGB": numpy.dstack([grey] * 3),
        "RGBA": numpy.dstack([grey, grey, grey, numpy.full_like(grey, 255)]),
        "CMYK": numpy.dstack([grey * 0, grey * 0, grey * 0, 255 - grey]),
    }[mode]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored, "CMYK") if mode == "CMYK" else Image.fromarray(stored)
    image.save(tmp_path / "scan.tif", exif=exif)
    wanted = UPRIGHT[orientation](grey)
    displayed = pixels(open_image(tmp_path / "scan.tif"))
    assert image_size(tmp_path / "scan.tif") == wanted.shape[::-1]
    assert displayed.shape[:2] == wanted.shape
    assert numpy.abs(displayed - wanted[..., None].astype(int)).max() <= 1
    assert (pixels(decode_image((tmp_path / "scan.tif").read_bytes())) == displayed).all()
