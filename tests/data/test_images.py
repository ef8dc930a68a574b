"""Pictures are opened upright, in colour and bounded, or refused with the file's name."""

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from failures import raises
from PIL import Image

import workbench.data.images
from workbench.data.examples import decode_image, image_size, load_examples
from workbench.data.images import open_image
from workbench.errors import DataError


def upper_left_red(size: tuple[int, int] = (40, 20)) -> Image.Image:
    image = Image.new("RGB", size, (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


def save_turned(path: Path, orientation: int) -> Path:
    """A photo as a camera held on its side stores it: pixels turned, and a note how to turn them back."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    upper_left_red().transpose(back[orientation]).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_open_image_turned_photo_is_upright(orientation: int, tmp_path: Path) -> None:
    path = save_turned(tmp_path / "photo.png", orientation)
    assert image_size(path) == (40, 20)
    with Image.open(path) as lazily:
        for image in (open_image(path), decode_image(path.read_bytes()), open_image(lazily)):
            assert image.size == (40, 20)
            assert image.getpixel((2, 2)) == (255, 0, 0)
            assert image.getpixel((38, 18)) == (0, 0, 255)
            assert image_size(image) == (40, 20)


def test_load_examples_box_of_turned_photo_is_upright(tmp_path: Path) -> None:
    save_turned(tmp_path / "photo.png", 6)
    row = '{"question": "q", "images": ["photo.png"], "boxes": [{"x0": 22, "y0": 0, "x1": %d, "y1": 8}]}\n'
    (tmp_path / "good.jsonl").write_text(row % 38)  # outside the picture as it is stored, 20 wide
    assert load_examples(tmp_path / "good.jsonl")[0].evidence.boxes[0].x1 == 38
    (tmp_path / "bad.jsonl").write_text(row % 41)
    with raises(DataError, "40 x 20 pixels"):
        load_examples(tmp_path / "bad.jsonl")


def test_open_image_sixteen_bit_keeps_grays(tmp_path: Path) -> None:
    picture = Image.new("I;16", (3, 1))
    for column, value in enumerate((0, 32768, 65535)):
        picture.putpixel((column, 0), value)
    picture.save(tmp_path / "grey.png")
    for source in (tmp_path / "grey.png", picture):
        assert [open_image(source).getpixel((column, 0)) for column in range(3)] == [(v, v, v) for v in (0, 128, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_open_image_other_modes_become_rgb(mode: str) -> None:
    image = open_image(upper_left_red().convert(mode))
    assert image.mode == "RGB"
    assert image.size == (40, 20)


def test_open_image_float_pixels_raise() -> None:
    with raises(DataError, "floating-point"):
        open_image(Image.new("F", (2, 2), 0.5))


def test_open_image_other_file_raises_with_formats(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "empty.png", "."):
        with raises(DataError, "PNG", "JPEG"):
            open_image(tmp_path / name)
    for name in ("missing.png", "missing/x.png"):
        with raises(DataError, name):
            open_image(tmp_path / name)
    with raises(DataError, "cannot be read"):
        open_image(tmp_path / ("x" * 5000))


def test_open_image_too_many_pixels_raises_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.data.images, "MAX_PIXELS", 799)
    upper_left_red().save(tmp_path / "large.png")
    for source in (tmp_path / "large.png", upper_left_red()):
        with raises(DataError, "40 x 20 pixels", "most 799"):
            open_image(source)


def test_open_image_bomb_names_limit(tmp_path: Path) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with raises(DataError, "bomb.png", "64,000,000 pixels"):
        open_image(bomb)


def test_open_image_torn_in_memory_raises(tmp_path: Path) -> None:
    file = tmp_path / "torn.png"
    Image.effect_noise((50, 50), 90).save(file)
    file.write_bytes(file.read_bytes()[:300])
    with Image.open(file) as lazily, raises(DataError, "image in memory"):
        open_image(lazily)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "MPO", "DDS", "TGA"])
def test_open_image_damaged_raises_with_file_name(kind: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((24, 20), 60).convert("RGB").save(
        stream, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP", "MPO") else {})
    )
    whole, draw, file = stream.getvalue(), random.Random(0), tmp_path / "damaged"
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(min(len(data), 300))] = draw.choice([0, 255, draw.randrange(256)])
        file.write_bytes(data[: draw.choice([len(data), draw.randrange(1, len(data))])])
        try:
            assert open_image(file).mode == "RGB"
        except DataError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused
