"""Values as tables keep them: whole floats, missing values, names of classes, dates, bytes; pictures in every form."""

import base64
import datetime
import io
import json
import math
import zipfile
from decimal import Decimal

import datasets as hf_datasets
import pyarrow
import pyarrow.parquet
import pytest
from failures import raises
from PIL import Image

from workbench.data.examples import load_examples
from workbench.data.grading import grade
from workbench.data.importing import import_dataset
from workbench.data.values import number_text, parse_structure, without_missing
from workbench.errors import DataError
from workbench.types import Box, Mark, Turn

NAN = float("nan")


def png(color="red"):
    data = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (27, "27"),
        (27.0, "27"),
        (-0.0, "0"),
        (-3.0, "-3"),
        (2.5, "2.5"),
        (1e-07, "1e-07"),
        (1e16, "10000000000000000"),
        (2**53 + 1, "9007199254740993"),
        (12345678901234567890, "12345678901234567890"),
        (1e300, "1e+300"),
        (math.inf, None),
        (NAN, None),
        (Decimal("27.00"), "27"),
        (Decimal("2.50"), "2.50"),
        (Decimal("1E-3"), "0.001"),
        (10**4000, None),
    ],
)
def test_number_text_equals_text_of_an_answer(value, text):
    assert number_text(value) == text


def test_without_missing_replaces_nan_outside_of_boxes():
    assert without_missing({"a": NAN, "b": [NAN, "x"], "c": {"label": NAN, "bbox": [1.0]}}) == {
        "a": None,
        "b": [None, "x"],
        "c": {"label": None, "bbox": [1.0]},
    }
    assert math.isnan(without_missing([1, 2, 3, NAN])[3])


@pytest.mark.parametrize(
    "text", ["[nan", "[" * 5000, "{'a': " * 3000, "5", "text", "(1)", "{1, 2}", "[1_", '"[', "['a'] + ['b']"]
)
def test_parse_structure_of_other_text_is_none(text):
    assert parse_structure(text) is None


ROWS = [
    {"id": 1.0, "question": "How many doors?", "answer": 27.0, "caption": "a house", "domain": "count"},
    {"id": 2.0, "question": "How many cats?", "answer": NAN, "caption": NAN, "domain": NAN},
    {"id": NAN, "question": "How many dogs?", "answer": 4.0, "caption": NAN, "domain": 5.0},
]


@pytest.mark.parametrize("form", ["own JSON lines", "import of JSON lines", "import of Parquet", "own Parquet"])
def test_table_with_missing_values_has_whole_numbers(folder, form):
    path = write(folder, *ROWS)
    if "Parquet" in form:
        path = folder / "rows.parquet"
        plain = [
            {name: None if name in ("caption", "domain") and value != value else value for name, value in row.items()}
            for row in ROWS[:2]
        ]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([*plain, ROWS[2] | {"caption": None, "domain": "5"}]), path
        )
    if "import" in form:
        path = import_dataset(path, folder / "out").path
    examples = load_examples(path)
    assert [each.id for each in examples] == ["1", "2", "3"]
    assert [entry.answer for entry in examples] == ["27", None, "4"]
    assert [item.evidence.caption for item in examples] == ["a house", None, None]
    assert [example.domain for example in examples] == ["count", "", "5"]
    assert grade("The answer is 27.", examples[0].answer) == 1.0


@pytest.mark.parametrize(
    ("column", "text", "note"),
    [
        (pyarrow.array([0.1], pyarrow.float32()), "0.1", None),
        (pyarrow.array([27], pyarrow.float16()), "27", None),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), "18446744073709551615", None),
        (
            pyarrow.array([1e16]),
            "10000000000000000",
            "answer is a floating-point number beyond 2^53, its last digits may be lost",
        ),
        (pyarrow.array([Decimal("27.00")]), "27", None),
        (pyarrow.array(["red"]).dictionary_encode(), "red", None),
        (pyarrow.array([datetime.date(2020, 1, 2)]), "2020-01-02", "answer is a date, written as ISO 8601"),
        (pyarrow.array([datetime.datetime(2020, 1, 2)]), "2020-01-02", "answer is a date, written as ISO 8601"),
        (
            pyarrow.array([datetime.datetime(2020, 1, 2, 3, 4)]),
            "2020-01-02 03:04:00",
            "answer is a date, written as ISO 8601",
        ),
        (pyarrow.array([b"red"]), "red", "text kept as bytes read as UTF-8"),
        (pyarrow.array([["red"]]), "red", "answer taken out of a list of one, or of equal ones"),
        (pyarrow.array([["red"] * 10]), "red", "answer taken out of a list of one, or of equal ones"),
        (pyarrow.array([[27.0]]), "27", "answer taken out of a list of one, or of equal ones"),
    ],
)
def test_import_arrow_types_become_answer_text(folder, column, text, note):
    pyarrow.parquet.write_table(pyarrow.table({"question": ["Q?"], "answer": column}), folder / "rows.parquet")
    report = import_dataset(folder / "rows.parquet", folder / "out")
    assert load_examples(report.path)[0].answer == text
    assert report.notes == ({note: 1} if note else {})


@pytest.mark.parametrize("value", [True, ["a", "b"], {"a": "b"}, math.inf, [[1]]])
def test_import_answer_of_other_type_is_skipped(folder, value):
    report = import_dataset(write(folder, {"question": "Good?"}, {"question": "Q?", "answer": value}), folder / "out")
    assert report.skipped == {"answer is neither text nor a number": 1}


BROKEN_TEXT = pyarrow.StringArray.from_buffers(2, *pyarrow.array([b"x", b"\xff"]).buffers()[1:])


@pytest.mark.parametrize(
    "column", [BROKEN_TEXT, pyarrow.array([0, -(2**62)], pyarrow.timestamp("us"))], ids=["text", "time"]
)
def test_import_value_that_python_lacks_skips_row(folder, column):
    table = pyarrow.table({"question": ["Q?", "R?"], "answer": column})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    report = import_dataset(folder / "rows.parquet", folder / "out")
    assert (report.written, report.skipped) == (1, {"row cannot be read": 1})
    assert 'rows.parquet:2: column "answer" has a value of type' in report.first_skipped["row cannot be read"][0]
    pyarrow.parquet.write_table(table.slice(1), folder / "rows.parquet")
    with raises(DataError, "rows.parquet:1", "answer"):
        load_examples(folder / "rows.parquet")


def test_import_duplicate_columns_raise(folder):
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["Q?"]), pyarrow.array(["a"]), pyarrow.array(["b"])], ["question", "answer", "answer"]
    )
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    with raises(DataError, "rows.parquet", "answer"):
        load_examples(folder / "rows.parquet")


@pytest.mark.parametrize("form", ["saved folder", "Parquet"])
def test_import_class_numbers_become_names(folder, form):
    animal = hf_datasets.ClassLabel(names=["cat", "dog"])
    features = hf_datasets.Features(
        {
            "question": hf_datasets.Value("string"),
            "answer": animal,
            "image": hf_datasets.Image(),
            "objects": {
                "bbox": hf_datasets.Sequence(hf_datasets.Sequence(hf_datasets.Value("float32"))),
                "category": hf_datasets.Sequence(animal),
            },
        }
    )
    row = {
        "question": "Q?",
        "image": {"bytes": png(), "path": None},
        "objects": {"bbox": [[1, 2, 11, 9], [0, 0, 5, 5]], "category": [0, 1]},
    }
    rows = hf_datasets.Dataset.from_list([row | {"answer": 1}, row | {"answer": -1}, row | {"answer": None}], features)
    path = folder / "saved"
    if form == "Parquet":
        path = folder / "rows.parquet"
        rows.to_parquet(str(path))
    else:
        rows.save_to_disk(str(path))
    examples = load_examples(import_dataset(path, folder / "out").path)
    assert [example.answer for example in examples] == ["dog", None, None]
    assert examples[0].evidence.boxes == (Box(1, 2, 11, 9, "cat"), Box(0, 0, 5, 5, "dog"))


@pytest.mark.parametrize(
    ("content", "questions"),
    [
        ([{"question": "Q?"}, {"question": "R?"}], ["Q?", "R?"]),
        ({"data": [{"question": "Q?"}], "version": 1}, ["Q?"]),
        ({"question": "Q?"}, ["Q?"]),
    ],
)
def test_import_json_list_is_read(folder, content, questions):
    path = folder / "rows.json"
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent))
        assert [item.question for item in load_examples(path)] == questions
    path.write_text('{"question": "Q?"}\n{"question": "R?"}\n')
    assert [example.question for example in load_examples(path)] == ["Q?", "R?"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.json", "[1]", r"rows\.json:1: this entry is 1; each must be a JSON object"),
        ("rows.json", '{"question": {"0": "Q?"}, "answer": {"0": "a"}}', "a .json file holds one list of objects"),
        ("rows.json", '[{"question": "cut', r"rows\.json is not valid JSON"),
        (
            "rows.csv",
            "question\nQ?\n",
            "data files are .jsonl or .parquet, or one list in .json. Convert it with every value as text: "
            "pandas.read_csv",
        ),
        ("rows.zip", "", "Unpack it and name the"),
        ("rows.jsonl.gz", "", "Unpack it first"),
    ],
)
def test_import_of_other_file_form_names_remedy(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_examples(folder / name)


ENCODED = base64.b64encode(png()).decode()
PICTURES = {
    "a data URI": f"data:image/png;base64,{ENCODED}",
    "a data URI, broken over lines": f"data:image/png;base64,{ENCODED[:60]}\n{ENCODED[60:]}",
    "base64": ENCODED,
    "base64 without padding, for URLs": base64.urlsafe_b64encode(png()).decode().rstrip("="),
    "bytes as base64": {"bytes": ENCODED, "path": None},
    "OpenAI's": {"url": f"data:image/png;base64,{ENCODED}"},
    "a path in a dict": {"bytes": None, "path": "a.png"},
}


@pytest.mark.parametrize("form", PICTURES)
def test_import_image_in_every_form_is_read(folder, form):
    row = {"question": "Q?", "images": [PICTURES[form]]}
    loaded = load_examples(write(folder, row))
    imported = load_examples(import_dataset(write(folder, row), folder / "out").path)
    for example in (*loaded, *imported):
        (picture,) = example.images
        picture = picture if isinstance(picture, Image.Image) else Image.open(picture)
        assert (picture.size, picture.convert("RGB").getpixel((3, 3))) == ((20, 10), (255, 0, 0))


def test_import_image_bytes_uris_and_lists_are_read(folder):
    pyarrow.parquet.write_table(pyarrow.table({"question": ["Q?"], "image": [png()]}), folder / "rows.parquet")
    assert len(load_examples(import_dataset(folder / "rows.parquet", folder / "bytes").path)[0].images) == 1
    values = [{"image": f"file://{folder}/a.png"}, {"images": "['a.png', 'a.png']"}, {"file_name": "a.png"}]
    report = import_dataset(write(folder, *({"question": "Q?"} | value for value in values)), folder / "out")
    assert [len(example.images) for example in load_examples(report.path)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ("data:image/png;base64,%%%", "an embedded image is not valid base64"),
        ("data:image/png", "a data URI has no comma"),
        ("data:,x", "image cannot be read"),
        ("data:image/png;base64,", "an embedded image has no bytes"),
        ("file://host/a.png", "a file URI names another machine, or no path"),
        ("https://host/a.png", "an image is a web address; download it first"),
        ({"bytes": "", "path": None}, "an image is neither a path nor embedded"),
        ("b.png", "image file does not exist"),
    ],
)
def test_import_unreadable_image_is_skipped(folder, picture, reason):
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        archive.writestr("pictures/b.png", png())
    report = import_dataset(write(folder, {"question": "Good?"}, {"question": "Q?", "image": picture}), folder / "out")
    assert report.skipped == {reason: 1}
    if picture == "b.png":
        assert "pictures.zip beside the data holds it: unpack it there first" in str(report)


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize("zipped", [True, False])
def test_import_image_folder_is_read_streamed_and_zipped(folder, monkeypatch, streaming, zipped):
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    data = folder / "pictures"
    data.mkdir()
    rows = json.dumps({"file_name": "a.png", "question": "Q?", "answer": 3}) + "\n"
    if zipped:
        with zipfile.ZipFile(data / "train.zip", "w") as archive:
            archive.writestr("a.png", png())
            archive.writestr("metadata.jsonl", rows)
    else:
        (data / "train").mkdir()
        (data / "train/a.png").write_bytes(png())
        (data / "train/metadata.jsonl").write_text(rows)
    report = import_dataset(f"hf:{data}?split=train&streaming={streaming}", folder / "out")
    (example,) = load_examples(report.path)
    assert (example.question, example.answer) == ("Q?", "3")
    with Image.open(example.images[0]) as picture:
        assert picture.size == (20, 10)


def test_import_own_structures_are_unchanged(folder):
    box = {"x0": 1, "y0": 2, "x1": 11, "y1": 9}
    row = {
        "question": "Q?",
        "images": ["a.png"],
        "crop": "a.png",
        "crop_box": box,
        "history": [{"role": "user", "text": "Hello"}, {"role": "assistant", "text": "Hi"}],
        "turns": [{"text": "What?", "images": ["a.png"]}, {"text": "This."}],
        "marks": [{"pattern": "(red)", "kind": "answer", "truth": "visible"}],
    }
    report = import_dataset(write(folder, row), folder / "out")
    (example,) = load_examples(report.path)
    assert example.history == (Turn("user", "Hello"), Turn("assistant", "Hi"))
    assert [turn.text for turn in example.turns] == ["What?", "This."] and example.turns[0].images[0].is_file()
    assert example.marks == (Mark("(red)", "answer", "visible"),)
    assert example.evidence.crop_box == Box(1, 2, 11, 9)
    assert report.unused == () and not report.notes


def test_import_foreign_columns_of_own_names_are_counted(folder):
    row = {"question": "Q?", "history": "of Rome", "turns": 5, "marks": [3]}
    report = import_dataset(write(folder, row), folder / "out")
    assert report.notes == {
        "history not read: it is not a list of turns": 1,
        "turns not read: not a list of {text, images}": 1,
        "marks not read: not a list of {pattern, kind, truth}": 1,
    }
    assert report.unused == ("history", "turns", "marks")


def test_import_text_as_bytes_is_decoded_or_skipped(folder):
    table = pyarrow.table({"question": [b"Q?", b"\xff"], "caption": [b"a house", b"x"]})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    report = import_dataset(folder / "rows.parquet", folder / "out")
    (example,) = load_examples(report.path)
    assert (example.question, example.evidence.caption) == ("Q?", "a house")
    assert report.notes == {"text kept as bytes read as UTF-8": 2}
    assert report.skipped == {"text is kept as bytes that are not UTF-8": 1}
