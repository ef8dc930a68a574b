"""Every source gives the same examples; every bad input is refused with file, row, column, value and remedy."""

import contextlib
import io
import json
import random
import re
import shutil
import sys
from pathlib import Path

import datasets as hf_datasets
import pyarrow
import pyarrow.parquet
import pytest
from failures import raises
from PIL import Image

import workbench.data.examples
from workbench.data.contexts import EVIDENCE, build_prompt, evidence_crops
from workbench.data.examples import COLUMNS, check_evidence, decode_image, image_size, load_examples, split_by_evidence
from workbench.data.grading import grade
from workbench.data.images import open_image
from workbench.data.scenes import make_examples
from workbench.errors import ConfigError, DataError
from workbench.types import Box, Mark, Turn

REPOSITORY = Path(__file__).parents[2]
FULL = {
    "id": "a",
    "question": "What does the sign say?",
    "images": ["pictures/sign.png"],
    "answer": "STOP",
    "reference": "The sign is red. answer STOP",
    "boxes": [{"x0": 1, "y0": 2, "x1": 30.5, "y1": 40, "label": "sign"}],
    "crop": "pictures/crop.png",
    "crop_box": {"x0": 0, "y0": 2, "x1": 31, "y1": 40},
    "caption": "a red sign",
    "hint": "at the left",
    "history": [{"role": "user", "text": "Hello"}, {"role": "assistant", "text": "Hi"}],
    "turns": [{"text": "What does it say?", "images": ["pictures/crop.png"]}, {"text": "The sign, I mean."}],
    "domain": "signs",
    "marks": [{"pattern": "answer (.*)", "kind": "answer", "truth": "privileged"}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 60), "red").save(tmp_path / "pictures/sign.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "pictures/crop.png")
    return tmp_path


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def png(size=(40, 60), color="red"):
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


def refusal(folder, *rows):
    """The message with which rows are refused; it always starts with file and row."""
    path = write(folder, *rows)
    with pytest.raises(DataError) as caught:
        load_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{len(rows)}"), message
    assert message.endswith((".", "?")), message
    return message.removeprefix(f"{path}:{len(rows)}")


def test_load_examples_full_json_row_has_every_field(folder):
    path = write(folder, FULL)
    (example,) = load_examples(path)
    assert (example.id, example.answer, example.domain) == ("a", "STOP", "signs")
    assert example.images == (folder / "pictures/sign.png",)
    assert example.evidence.boxes == (Box(1.0, 2.0, 30.5, 40.0, "sign"),)
    assert example.evidence.crops == (folder / "pictures/crop.png",)
    assert example.evidence.crop_box == Box(0.0, 2.0, 31.0, 40.0)
    assert (example.evidence.caption, example.evidence.hint) == ("a red sign", "at the left")
    assert example.history == (Turn("user", "Hello"), Turn("assistant", "Hi"))
    assert example.turns == (
        Turn("user", "What does it say?", (folder / "pictures/crop.png",)),
        Turn("user", "The sign, I mean."),
    )
    assert example.marks == (Mark("answer (.*)", "answer", "privileged"),)
    assert example.origin == f"{path}:1"
    assert len(build_prompt(example, "crop+boxes+caption").images) == 2


def test_load_examples_requires_question_only(folder):
    path = write(folder, {"question": "One?"}, "", {"question": "Two?", "images": None, "answer": None})
    first, second = load_examples(path)
    assert (first.id, second.id) == ("1", "3")  # the blank line counts, so that the number is the editor's
    assert second.origin == f"{path}:3"


def test_load_examples_parquet_with_paths_equals_json(folder):
    parquet = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FULL, {"question": "Plain?"}]), parquet)
    full, plain = load_examples(parquet)
    assert full.evidence == load_examples(write(folder, FULL))[0].evidence
    assert (full.images, full.marks) == (
        (folder / "pictures/sign.png",),
        (Mark("answer (.*)", "answer", "privileged"),),
    )
    assert (plain.id, plain.images, plain.evidence.boxes) == ("2", (), ())


def test_load_examples_parquet_embedded_images_are_decoded(folder):
    row = FULL | {"images": [{"bytes": png(), "path": "sign.png"}], "crop": {"bytes": png((8, 8)), "path": None}}
    parquet = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), parquet)
    (example,) = load_examples(parquet)
    assert example.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert example.evidence.crops[0].size == (8, 8)


def test_load_examples_crop_list_is_read_in_order(folder):
    names = ["pictures/crop.png", "pictures/sign.png"]
    write(folder, FULL | {"crop": names}, FULL | {"id": "none", "crop": [], "crop_box": None})
    several, none = load_examples(folder / "rows.jsonl")
    assert several.evidence.crops == tuple(folder / name for name in names)
    assert none.evidence.crops == ()
    write(folder, FULL | {"crop": ["pictures/crop.png", "none.png"]})
    with raises(DataError, "rows.jsonl:1", "crop[1]", "none.png"):
        load_examples(folder / "rows.jsonl")
    table = pyarrow.Table.from_pylist(
        [
            FULL
            | {
                "images": [],
                "boxes": [],
                "crop_box": None,
                "crop": [{"bytes": png((8, 8)), "path": None}, {"bytes": png((6, 6)), "path": None}],
            }
        ]
    )
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    (embedded,) = load_examples(folder / "rows.parquet")
    assert [crop.size for crop in embedded.evidence.crops] == [(8, 8), (6, 6)]


def saved(folder, **splits):
    features = hf_datasets.Features({"question": hf_datasets.Value("string"), "images": [hf_datasets.Image()]})
    built = {
        name: hf_datasets.Dataset.from_list(
            [{"question": f"{name} {idx}?", "images": [{"bytes": png(), "path": None}]} for idx in range(count)],
            features,
        )
        for name, count in splits.items()
    }
    whole = built["all"] if "all" in built else hf_datasets.DatasetDict(built)
    whole.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def test_load_examples_saved_folder_is_decoded_once(folder):
    path = saved(folder, all=70)  # more than one batch
    examples = load_examples(path, max_examples=66)
    assert [example.question for example in examples] == [f"all {idx}?" for idx in range(66)]
    assert examples[-1].images[0].size == (40, 60)
    assert examples[-1].origin == f"{path}:66"


def test_load_examples_saved_splits_need_a_name(folder):
    path = saved(folder, train=2, test=1)
    with raises(DataError, "saved/train"):
        load_examples(path)
    assert len(load_examples(path / "train")) == 2


def test_load_examples_saved_single_split_needs_no_name(folder):
    assert len(load_examples(saved(folder, train=2))) == 2


def test_load_examples_without_datasets_package_names_it(folder, monkeypatch):
    path = saved(folder, all=1)
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    for source in (path, "hf:owner/name?split=train"):
        with raises(ConfigError, "datasets"):
            load_examples(source)


def test_load_examples_unreachable_hub_raises(monkeypatch):
    monkeypatch.setattr(hf_datasets.config, "HF_HUB_OFFLINE", True)
    with raises(DataError, "owner/name", "train"):
        load_examples("hf:owner/name?split=train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:owner/name", "must name a dataset and a split"),
        ("hf:?split=train", "must name a dataset and a split"),
        ("hf:owner/name?spilt=train", 'parameter "spilt" is unknown.*Did you mean "split"'),
    ],
)
def test_load_examples_wrong_hub_name_raises(source, message):
    with pytest.raises(ConfigError, match=message):
        load_examples(source)


def test_load_examples_scenes_follow_query():
    examples = load_examples("scenes:eval?count=3&seed=3&start=2")
    assert [example.id for example in examples] == [e.id for e in make_examples("eval", seed=3, start=2, count=3)]
    assert len(load_examples("scenes:train?count=5", max_examples=2)) == 2
    assert len(load_examples("scenes:train", max_examples=2)) == 2


def test_load_examples_scenes_of_families_are_equal():
    chosen = load_examples("scenes:eval?count=6&start=1&families=count,tag")
    everything = [example for example in load_examples("scenes:eval?count=24") if example.domain in ("count", "tag")]
    assert [(entry.id, entry.question) for entry in chosen] == [(item.id, item.question) for item in everything[1:7]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("scenes:evil", 'scenes split "evil" is unknown.*Did you mean "eval"'),
        ("scenes:", "names no split"),
        ("scenes:eval?cuont=3", 'parameter "cuont" is unknown.*Did you mean "count"'),
        ("scenes:eval?count=0", 'count must be a whole number of at least 1, got "0"'),
        ("scenes:eval?count=many", 'count must be a whole number of at least 1, got "many"'),
        ("scenes:eval?seed=-1", "seed must be a whole number of at least 0"),
        ("scenes:eval?count=", "count must be a whole number"),
        ("scenes:eval?count", "write key=value"),
        ("scenes:eval?count=1&count=2", "gives count twice"),
        ("scenes:eval?families=tag,colour", 'question family "colour" is unknown.*Did you mean "color"'),
        ("scenes:eval?families=", 'question family "" is unknown'),
        ("scenes:eval?turns=row", 'turns "row" is unknown.*Did you mean "rows"'),
    ],
)
def test_load_examples_wrong_scenes_query_raises(source, message):
    with pytest.raises(ConfigError, match=message):
        load_examples(source)


def test_load_examples_malformed_json_names_line(folder):
    assert "is not valid JSON" in refusal(folder, FULL, '{"question": "cut')
    assert "is not valid JSON" in refusal(folder, "[" * 100_000)
    assert "each line must be one JSON object" in refusal(folder, "[1, 2]")
    path = folder / "rows.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n')
    with raises(DataError, "rows.jsonl:1", "JSON"):
        load_examples(path)


def test_load_examples_accepts_byte_order_mark(folder):
    path = folder / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "Q?"}\r\n')
    assert load_examples(path)[0].question == "Q?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, ", column \"question\": must be text that is not empty, got ''."),
        ({"question": "  \n"}, "must be text that is not empty"),
        ({"question": None}, "must be text that is not empty, got None"),
        ({"question": 5}, 'column "question": must be text, got 5'),
        ({"question": '[{"role": "user", "content": "Q?"}]'}, "must be the question alone, not turns kept as text"),
        ({"answer": True}, 'column "answer": must be text, got True. Write it in quotes'),
        ({"answer": float("inf")}, 'column "answer": must be text, got inf. Write it in quotes'),
        ({"caption": 42}, 'column "caption": must be text, got 42. Write it in quotes'),
        ({"caption": ["a"]}, 'column "caption": must be text'),
        ({"anwser": "x"}, ': column "anwser" is unknown.'),
        ({"videos": ["a.mp4"]}, "column \"videos\": videos are not read, got ['a.mp4']. Write some of its frames"),
        ({"anwser": "x"}, 'Did you mean "answer"?'),
        ({"prompt": "x"}, "converted by `workbench import`"),
        ({"id": ""}, 'column "id": must not be empty'),
        ({"id": True}, 'column "id": must be text, got True'),
        ({"images": "a.png"}, "column \"images\": must be a list, got 'a.png'"),
        ({"images": [5]}, 'column "images[0]": must be an image path or an embedded image, got 5'),
        ({"images": [""]}, 'column "images[0]": must be an image path'),
        (
            {"images": ["gone.png"]},
            "column \"images[0]\": must be an image file that exists, got 'gone.png'. Relative paths start at",
        ),
        ({"images": ["x" * 5000]}, "file that exists"),
        ({"images": ["a\0b"]}, "file that exists"),
        ({"images": ["pictures"]}, "file that exists"),  # a folder
        ({"images": ["https://host/a.png"]}, "must be a local file, not a web address"),
        ({"crop": "gone.png"}, 'column "crop": must be an image file'),
        ({"crop": None}, 'column "crop_box": needs a crop'),
        ({"crop_box": {"x0": 5, "y0": 2, "x1": 5, "y1": 3}}, 'column "crop_box": [5, 2, 5, 3] is empty'),
        ({"crop_box": [1, 2, 3, 4]}, 'column "crop_box": must be {x0, y0, x1, y1'),
        ({"boxes": {"x0": 1}}, 'column "boxes": must be a list'),
        ({"boxes": [[1, 2, 3, 4]]}, 'column "boxes[0]": must be {x0, y0, x1, y1, label}, got [1, 2, 3, 4]'),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 2}]}, 'with "y1"'),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 2, "yy1": 2}]}, 'column "boxes[0]": key "yy1" is unknown'),
        ({"boxes": [{"x0": 5, "y0": 1, "x1": 5, "y1": 2}]}, "[5, 1, 5, 2] is empty; x0 < x1"),
        ({"boxes": [{"x0": 6, "y0": 1, "x1": 5, "y1": 2}]}, "[6, 1, 5, 2] is empty"),
        ({"boxes": [{"x0": 1, "y0": 9, "x1": 5, "y1": 2}]}, "[1, 9, 5, 2] is empty"),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 41, "y1": 2}]}, "leaves the image of 40 x 60 pixels"),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 9, "y1": 60.5}]}, "leaves the image of 40 x 60 pixels"),
        ({"boxes": [{"x0": -1, "y0": 1, "x1": 9, "y1": 6}]}, "leaves the image"),
        ({"boxes": [{"x0": "1", "y0": 1, "x1": 9, "y1": 6}]}, 'column "boxes[0].x0": must be a finite number'),
        ({"boxes": [{"x0": True, "y0": 1, "x1": 9, "y1": 6}]}, "must be a finite number, got True"),
        ({"boxes": [{"x0": float("nan"), "y0": 1, "x1": 9, "y1": 6}]}, "must be a finite number, got nan"),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 9, "y1": 6, "label": 3}]}, 'column "boxes[0].label": must be text'),
        ({"images": []}, "has boxes and no image"),
        ({"history": [{"role": "robot", "text": "x"}]}, 'column "history[0].role": must be one of system, user'),
        ({"history": [{"role": "user"}]}, 'with "text"'),
        ({"history": [{"role": "user", "text": 4}]}, 'column "history[0].text": must be text'),
        ({"history": ["x"]}, 'column "history[0]": must be {role, text}'),
        ({"turns": [{"text": "x"}]}, 'column "turns": must be at least two turns'),
        ({"turns": [{"text": "x", "images": 5}, {"text": "y"}]}, 'column "turns[0].images": must be a list, got 5'),
        ({"turns": [{"text": "x"}, {"text": 4}]}, 'column "turns[1].text": must be text'),
        ({"turns": [{"text": "x", "images": ["no.png"]}, {"text": "y"}]}, 'column "turns[0].images[0]"'),
        ({"marks": [{"pattern": "answer (", "kind": "x"}]}, "is not a regular expression"),
        ({"marks": [{"pattern": "answer", "kind": "x"}]}, 'column "marks[0].pattern": must have a group'),
        ({"marks": [{"pattern": "(a)", "kind": "x", "truth": "maybe"}]}, "must be visible, privileged or null"),
        ({"marks": [{"pattern": "(a)"}]}, 'with "kind"'),
    ],
)
def test_load_examples_wrong_column_raises(folder, change, message):
    assert message in refusal(folder, FULL, FULL | {"id": "b"} | change)


def test_load_examples_repeated_id_names_both_rows(folder):
    message = refusal(folder, FULL, FULL)
    assert '"a" is also the id of' in message
    assert "rows.jsonl:1. Ids must be unique" in message
    assert "is also the id of" in refusal(folder, {"id": 7, "question": "Q?"}, {"id": "7", "question": "Q?"})


def test_load_examples_file_that_is_not_an_image_raises(folder):
    (folder / "pictures/sign.png").write_text("not a picture")
    assert 'column "images[0]": image' in refusal(folder, FULL)
    (example,) = load_examples(write(folder, {"question": "Q?", "images": ["pictures/sign.png"]}))
    with raises(DataError, "sign.png"):
        open_image(example.images[0])


@pytest.mark.parametrize("data", [b"", b"not a picture", png()[:60], png()[:-30]])
def test_load_examples_damaged_embedded_image_names_column(folder, data):
    parquet = folder / "rows.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "Q?", "images": [{"bytes": data, "path": ""}]}]), parquet
    )
    with raises(DataError, "rows.parquet:1", "images[0]"):
        load_examples(parquet)


def test_decode_image_with_too_many_pixels_raises():
    with raises(DataError, "64,000,000"):
        decode_image(bomb())


def bomb():
    """A small PNG whose head stands for 90 million pixels."""
    data = io.BytesIO()
    Image.new("1", (30_000, 3_000)).save(data, "PNG")
    return data.getvalue()


def test_load_examples_embedded_images_are_bounded(folder, monkeypatch):
    path = saved(folder, all=3)
    monkeypatch.setattr(workbench.data.examples, "MAX_EMBEDDED_BYTES", 2 * 40 * 60 * 3)
    assert len(load_examples(path, max_examples=2)) == 2
    with raises(DataError, "row 3"):
        load_examples(path)


def test_load_examples_paths_may_leave_the_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(folder / "pictures/sign.png", elsewhere / "sign.png")
    parent = f"../{elsewhere.name}/sign.png" if elsewhere.parent == folder.parent else str(elsewhere / "sign.png")
    rows = [{"question": "Q?", "images": [str(elsewhere / "sign.png")]}, {"question": "Q?", "images": [parent]}]
    assert all(example.images[0].is_file() for example in load_examples(write(folder, *rows)))


def test_load_examples_root_moves_relative_paths(folder):
    (folder / "lists").mkdir()
    path = write(folder / "lists", FULL)
    with raises(DataError, "exists"):
        load_examples(path)
    assert load_examples(path, root=folder)[0].images == (folder / "pictures/sign.png",)


def test_load_examples_other_file_raises(folder):
    for name, content, message in (
        ("gone.jsonl", None, "does not exist"),
        ("a.jsonl,b.jsonl", None, r"data.train=\[FILE, FILE\]"),
        ("rows.csv", "a,b", 'ends in ".csv"; data files are .jsonl or .parquet'),
        ("empty.jsonl", "\n\n", "has no rows"),
        ("torn.parquet", "PAR1", "cannot be read as Parquet"),
    ):
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(DataError, match=message):
            load_examples(folder / name)
    with raises(DataError, "save_to_disk", "empty.jsonl"):
        load_examples(folder)
    with raises(ConfigError, "least 1,", "got 0"):
        load_examples(write(folder, FULL), max_examples=0)


def test_load_examples_torn_saved_folder_raises(folder):
    path = saved(folder, all=2)
    (path / "state.json").write_text("{")
    with raises(DataError, "saved dataset"):
        load_examples(path)


def test_load_examples_rows_after_limit_are_not_read(folder):
    assert len(load_examples(write(folder, FULL, "{broken"), max_examples=1)) == 1


def test_require_evidence_counts_and_names_first_rows(folder):
    path = write(folder, FULL, *({"question": "Q?"} for _ in range(4)), {"question": "Q?", "caption": "c"})
    examples = load_examples(path)
    with pytest.raises(DataError) as caught:
        check_evidence(examples, ("plain", "boxes+caption", "caption"))
    message = str(caught.value)
    assert (
        f'5 of 6 examples have no "boxes", which context "boxes+caption" needs: {path}:2, {path}:3, {path}:4, ...'
        in message
    )
    assert '4 of 6 examples have no "caption", which context "caption" needs' in message
    assert message.endswith("Add the column, drop such rows, or choose another context.")
    check_evidence(examples, ("plain",))
    check_evidence(examples[:1], ("boxes+caption", "crop", "hint", "answer", "reference"))


def test_split_by_evidence_returns_usable_and_skipped(folder):
    examples = load_examples(write(folder, FULL, {"question": "Q?"}, {"question": "Q?", "hint": "h"}))
    split = split_by_evidence(examples, ("plain", "hint"))
    assert [example.id for example in split.usable] == ["a", "3"]
    assert [(example.id, column) for example, column in split.skipped] == [("2", "hint")]
    assert [column for _, column in split_by_evidence(examples, ("crop",)).skipped] == ["boxes (or crop)"] * 2


def test_samples_have_evidence_for_every_context():
    examples = load_examples(REPOSITORY / "data/samples/samples.jsonl")
    check_evidence(examples, ("plain", *EVIDENCE))
    for example in examples:
        assert grade(example.reference, example.answer) == 1.0
        assert all(re.search(mark.pattern, example.reference).group(1) == example.answer for mark in example.marks)
        assert open_image(example.images[0]).width > 200 and open_image(evidence_crops(example)[0]).width > 20


def test_data_page_lists_columns_and_its_lines_load(tmp_path):
    page = (REPOSITORY / "docs/data.md").read_text()
    table = page.partition("## Columns")[2].partition("Three lines")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(COLUMNS)
    lines = page.partition("```json\n")[2].partition("```")[0]
    for name in ("street", "receipt", "tram"):
        shutil.copy(REPOSITORY / f"data/samples/{name}.png", tmp_path)
    (tmp_path / "rows.jsonl").write_text(lines)
    assert len(load_examples(tmp_path / "rows.jsonl")) == 3


def damaged(kind, seed):
    """A small picture of a file format with a few bytes changed at random."""
    data = io.BytesIO()
    Image.radial_gradient("L").resize((24, 24)).convert("RGB").save(data, kind)
    raw, rng = bytearray(data.getvalue()), random.Random(seed)
    for _ in range(rng.randint(1, 6)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_open_image_damaged_raises_data_error_only(kind, tmp_path):
    for seed in range(150):
        data = damaged(kind, seed)
        (tmp_path / "picture").write_bytes(data)
        for read, source in ((decode_image, data), (image_size, tmp_path / "picture")):
            with contextlib.suppress(DataError):
                read(source)
