"""What pictures of a data set may be read: how much memory they take decoded, and where their files may lie."""

import io
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from failures import raises
from PIL import Image

import workbench.data.images
from workbench.data.examples import load_examples
from workbench.data.picture_bounds import PICTURE_FOLDERS, TooManyPicturesError, as_variable, embedded_bytes
from workbench.errors import DataError


def png(width: int, height: int, mode: str = "1") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (width, height)).save(data, "PNG")
    return data.getvalue()


def table(file: Path, rows: list[list[bytes]], **columns: list) -> Path:
    images = [[{"bytes": data, "path": None} for data in row] for row in rows]
    questions = [f"what is {idx}?" for idx in range(len(rows))]
    pyarrow.parquet.write_table(pyarrow.table({"question": questions, "images": images, **columns}), file)
    return file


def lines(file: Path, *images: object) -> Path:
    file.write_text("".join(json.dumps({"question": "q?", "images": [image]}) + "\n" for image in images))
    return file


def test_embedded_images_are_counted_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of a few kB, as they were sent: one row of many pictures, and many rows of one."""
    bomb = png(7000, 7000)
    assert len(bomb) < 10_000
    monkeypatch.setattr(workbench.data.images, "_as_rgb", lambda *_: pytest.fail("a picture was decoded"))
    for name, rows in (("wide", [[bomb] * 60]), ("long", [[bomb]] * 60)):
        file = table(tmp_path / f"{name}.parquet", rows)
        with raises(TooManyPicturesError, "0.125", "GiB", "row 1"):
            load_examples(file, max_bytes=2**27)


def test_rows_that_fit_are_counted(tmp_path: Path) -> None:
    file = table(tmp_path / "rows.parquet", [[png(100, 100, "RGB")]] * 5)
    tracemalloc.start()
    with pytest.raises(TooManyPicturesError) as raised:
        load_examples(file, max_bytes=3 * 30_000 + 1)
    tracemalloc.stop()
    assert raised.value.num_rows == 3
    assert len(load_examples(file, max_bytes=3 * 30_000 + 1, max_examples=3)) == 3
    assert len(load_examples(file, max_bytes=5 * 30_000)) == 5


def test_embedded_bytes_count_crops_and_turns() -> None:
    record = {"bytes": png(10, 20), "path": None}
    size = 3 * 10 * 20
    assert embedded_bytes({"crop": record}) == size
    assert embedded_bytes({"images": [record, {"bytes": b"no picture", "path": None}, "a.png", None, 5]}) == size
    assert embedded_bytes({"turns": [{"text": "a", "images": [record]}, {"text": "b", "images": [record]}]}) == 2 * size
    for odd in ({"images": "a.png"}, {"images": 5}, {"turns": "x"}, {"turns": [None, 5, {"images": 7}]}, {"crop": []}):
        assert embedded_bytes(odd) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder, a picture inside it, one outside, and links to that."""
    folder = tmp_path / "data"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    for file in (folder / "inside" / "a.png", tmp_path / "private" / "b.png"):
        Image.new("RGB", (9, 9)).save(file)
    (folder / "link.png").symlink_to(tmp_path / "private" / "b.png")
    (folder / "linked").symlink_to(tmp_path / "private")
    return folder


@pytest.mark.parametrize(
    "written", ["inside/a.png", "./inside/../inside/a.png", "{data}/inside/a.png", "linked/../data/inside/a.png"]
)
def test_load_examples_images_beside_file_are_read(data: Path, written: str) -> None:
    file = lines(data / "rows.jsonl", written.format(data=data))
    assert len(load_examples(file, folders=())) == 1


@pytest.mark.parametrize(
    "written",
    [
        "{private}/b.png",
        "../private/b.png",
        "link.png",
        "linked/b.png",
        "inside/../../private/b.png",
        "file://{private}/b.png",
        {"path": "../private/b.png"},
        {"bytes": None, "path": "link.png"},
        "../private/missing.png",
        "/etc/passwd",
    ],
)
@pytest.mark.parametrize("column", ["images", "crop", "turns"])
def test_load_examples_images_elsewhere_raise_unless_allowed(
    data: Path, written: object, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = data.parent / "private"
    picture = written.format(private=private) if isinstance(written, str) else written
    turns = [{"text": "a", "images": [picture]}, {"text": "b", "images": []}]
    row = (
        {"question": "q?", "images": [picture]}
        if column == "images"
        else {"question": "q?", "images": ["inside/a.png"]}
    )
    row |= {"crop": picture} if column == "crop" else {"turns": turns} if column == "turns" else {}
    file = data / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with raises(DataError, "rows.jsonl:1", "--allow-dir", "FOLDER"):
        load_examples(file, folders=())
    monkeypatch.setenv(PICTURE_FOLDERS, as_variable([])[PICTURE_FOLDERS])  # a process that the page started
    with raises(DataError, "--allow-dir"):
        load_examples(file)
    monkeypatch.delenv(PICTURE_FOLDERS)
    is_there = "missing" not in str(picture) and "passwd" not in str(picture) and "file:" not in str(picture)
    if is_there:
        assert len(load_examples(file, folders=[private])) == len(load_examples(file)) == 1
