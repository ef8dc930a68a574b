"""Rows in the columns of TRL and ms-swift, written out by hand, become rows that the loader takes."""

import io
import json

import datasets as hf_datasets
import pyarrow
import pyarrow.parquet
import pytest
from failures import raises
from PIL import Image

from workbench.data.conversations import VIDEO
from workbench.data.examples import load_examples
from workbench.data.importing import import_dataset
from workbench.errors import ConfigError, DataError
from workbench.render.preview import preview_dataset
from workbench.types import Box, Turn

WIDTH, HEIGHT = 200, 100


def encoded(kind="PNG", color="red"):
    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), color).save(data, kind)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/a.png").write_bytes(encoded())
    (tmp_path / "theirs/b.png").write_bytes(encoded(color="blue"))
    return tmp_path


def write(folder, *rows):
    path = folder / "theirs/rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def imported(folder, *rows, **options):
    """The report and the examples that load from what was written."""
    report = import_dataset(write(folder, *rows), folder / "ours", **options)
    return report, load_examples(report.path)


def test_import_trl_prompt_with_privileged_context(folder):
    prompt = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]},
    ]
    row = {"prompt": prompt, "images": ["a.png"], "privileged_context": "a red field", "solution": "red", "extra": 1}
    report, (example,) = imported(folder, row)
    assert (example.question, example.answer, example.evidence.caption) == ("What colour?", "red", "a red field")
    assert example.history == (Turn("system", "Be short."),)
    assert example.images[0].resolve() == folder / "theirs/a.png"
    assert report.columns["question"] == "prompt" and report.columns["caption"] == "privileged_context"
    assert report.unused == ("extra",)
    assert report.notes == {"image mark taken out of the text": 1}


def test_import_privileged_context_becomes_hint(folder):
    _, (example,) = imported(folder, {"prompt": "Q?", "privileged_context": "look left"}, privileged_as="hint")
    assert (example.evidence.hint, example.evidence.caption) == ("look left", None)


def test_import_swift_messages_with_teacher_images(folder):
    messages = [
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "A field."},
        {"role": "user", "content": "<image>\nAnd this?"},
        {"role": "assistant", "content": "It is blue."},
    ]
    row = {"messages": messages, "images": ["a.png", "b.png"], "teacher_images": ["b.png", "a.png"]}
    report, (example,) = imported(folder, row)
    assert (example.question, example.reference) == ("And this?", "It is blue.")
    assert example.history == (Turn("user", "What is it?"), Turn("assistant", "A field."))
    assert [crop.resolve() for crop in example.evidence.crops] == [folder / f"theirs/{name}.png" for name in "ba"]
    assert report.notes == {
        "image mark taken out of the text": 2,
        "image of an earlier turn moved to the last": 1,
    }


def test_import_sharegpt_turns_and_completion_turns(folder):
    _, (first, second) = imported(
        folder,
        {"conversations": [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}], "image": "a.png"},
        {"prompt": [{"role": "user", "content": "Q?"}], "completion": [{"role": "assistant", "content": "B"}]},
    )
    assert (first.question, first.reference, len(first.images)) == ("Q?", "A", 1)
    assert second.reference == "B"


@pytest.mark.parametrize("column", ["messages", "conversations", "prompt", "question", "query"])
@pytest.mark.parametrize("write_text", [json.dumps, repr])
def test_import_turns_as_text_hide_answer_from_student(folder, column, write_text):
    turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": "It is red."}]
    rows = [
        {column: write_text(turns), "images": ["a.png"]},
        {column: write_text(turns)[:-4], "images": ["a.png"]},  # cut
    ]
    report, (example,) = imported(folder, *rows)
    assert (example.question, example.reference) == ("Which colour?", "It is red.")
    assert report.skipped == {"turns kept as text are neither JSON nor Python": 1}
    assert "rows.jsonl:2" in str(report)


def test_import_images_inside_turns_are_used(folder):
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Q?"}]
    _, (example,) = imported(folder, {"prompt": [{"role": "user", "content": content}]})
    assert example.images[0].name == "a.png"


def test_import_swift_objects_have_labels_and_units(folder):
    objects = {"ref": ["dog", "cat"], "bbox": [[10, 20, 30, 40], [50, 60, 70, 80]], "image_id": [0, 1]}
    norm1 = {"ref": ["dog"], "bbox": [[0.1, 0.2, 0.5, 1.0], [0, 0, 0.5, 0.5]], "bbox_type": "norm1"}
    report, (first, second) = imported(
        folder,
        {"query": "Q?", "images": ["a.png", "b.png"], "objects": objects},
        {"query": "Q?", "images": ["a.png"], "objects": norm1},
    )
    assert first.evidence.boxes == (Box(10, 20, 30, 40, "dog"),)
    assert second.evidence.boxes == (Box(20, 20, 100, 100, "dog"), Box(0, 0, 100, 50, "dog"))
    assert report.notes == {"box of an image after the first left out": 1}


# one rectangle, 20 <= x < 60 and 50 <= y < 80 of an image of 200 x 100, in every form and unit
@pytest.mark.parametrize(
    ("box", "box_format", "box_units"),
    [
        ([20, 50, 60, 80], "xyxy", "pixels"),
        ([20, 50, 40, 30], "xywh", "pixels"),
        ([40, 65, 40, 30], "cxcywh", "pixels"),
        ([0.1, 0.5, 0.3, 0.8], "xyxy", "normalized"),
        ([0.1, 0.5, 0.2, 0.3], "xywh", "normalized"),
        ([0.2, 0.65, 0.2, 0.3], "cxcywh", "normalized"),
        ([10, 50, 30, 80], "xyxy", "percent"),
        ([10, 50, 20, 30], "xywh", "percent"),
        ([20, 65, 20, 30], "cxcywh", "percent"),
        ([100, 500, 300, 800], "xyxy", "thousand"),
        ([100, 500, 200, 300], "xywh", "thousand"),
        ([200, 650, 200, 300], "cxcywh", "thousand"),
    ],
)
def test_import_box_formats_and_units_give_equal_pixels(folder, box, box_format, box_units):
    row = {"prompt": "Q?", "image": "a.png", "bbox": box}
    report, (example,) = imported(folder, row, box_format=box_format, box_units=box_units)
    assert example.evidence.boxes == (Box(20, 50, 60, 80),)
    assert not report.notes


@pytest.mark.parametrize(
    "boxes",
    [
        [20, 50, 60, 80],
        [[20, 50, 60, 80]],
        "[20, 50, 60, 80]",
        [{"bbox": [20, 50, 60, 80]}],
        [{"x0": 20, "y0": 50, "x1": 60, "y1": 80}],
        {"bbox": [[20, 50, 60, 80]]},
        {"bbox": [[20, 50, 60, 80], [1, 2]]},
    ],
)
def test_import_boxes_of_every_nesting_are_read(folder, boxes):
    _, (example,) = imported(folder, {"prompt": "Q?", "image": "a.png", "boxes": boxes})
    assert example.evidence.boxes == (Box(20, 50, 60, 80),)


def test_import_box_past_edge_is_clipped_and_counted(folder):
    report, (example,) = imported(folder, {"prompt": "Q?", "image": "a.png", "bbox": [-0.4, 0, 200.6, 100]})
    assert example.evidence.boxes == (Box(0, 0, 200, 100),)
    assert report.notes == {"box cut at the image's edge, by a pixel at most": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "row cannot be read"),
        ({"prompt": ""}, "question is empty"),
        ({"prompt": "<image>"}, "question is empty"),
        ({"answer": "x"}, "question is empty"),
        ({"prompt": "<image><image>Q?", "images": ["a.png"]}, "more <image> marks than images"),
        ({"prompt": "Q?", "images": ["gone.png"]}, "image file does not exist"),
        ({"prompt": "Q?", "images": ["rows.jsonl"]}, "image cannot be read"),
        ({"prompt": "Q?", "images": ["https://host/a.png"]}, "an image is a web address; download it first"),
        ({"prompt": "Q?", "images": [5]}, "an image is neither a path nor embedded"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "conversation does not end with a question"),
        ({"messages": [{"role": "tool", "content": "A"}]}, "role is none of system, user and assistant"),
        ({"messages": ["Q?"]}, "a turn is not {role, content}"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "content is neither text nor an image",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
            VIDEO,
        ),
        ({"prompt": "<video>Q?"}, VIDEO),
        ({"prompt": "<video>Q?", "videos": ["a.mp4"]}, VIDEO),
        (
            {"prompt": "<bbox>Q?"},
            "<audio>, <bbox> or <ref-object> marks in the text; remove them, and write boxes in a column",
        ),
        ({"prompt": "Q?", "answer": ["a", "b"]}, "answer is neither text nor a number"),
        ({"prompt": "Q?", "bbox": [1, 2, 3, 4]}, "boxes without an image"),
        ({"prompt": "Q?", "image": "a.png", "bbox": [5, 5, 5, 9]}, "a box is empty (check --box-format)"),
        (
            {"prompt": "Q?", "image": "a.png", "bbox": [0.1, 0.1, 0.5, 0.5]},
            "a box is smaller than a pixel (give --box-units normalized)",
        ),
        (
            {"prompt": "Q?", "image": "a.png", "bbox": [1, 1, 900, 50]},
            "a box leaves the image (check --box-format and --box-units)",
        ),
        ({"prompt": "Q?", "image": "a.png", "bbox": [[1, 2, 3]]}, "a box is not four numbers"),
        ({"prompt": "Q?", "image": "a.png", "bbox": [1, 2, 3, float("nan")]}, "a box is not four numbers"),
        ({"prompt": "Q?", "image": "a.png", "bbox": "left"}, "boxes cannot be read"),
        ({"prompt": "Q?", "id": "good"}, "id repeated"),
    ],
)
def test_import_bad_row_is_skipped_and_named(folder, row, reason):
    report, examples = imported(folder, {"id": "good", "prompt": "Q?"}, row, {"prompt": "Last?"})
    assert [example.question for example in examples] == ["Q?", "Last?"]
    assert report.skipped == {reason: 1}
    (where,) = report.first_skipped[reason]
    assert where.startswith(f"{folder}/theirs/rows.jsonl:2")
    assert f"skipped: 1 x {reason}" in str(report)


def test_import_many_bad_rows_names_the_first(folder):
    report, _ = imported(folder, {"prompt": "Q?"}, *({"prompt": ""} for _ in range(9)))
    assert report.skipped.total() == 9
    assert [where.rpartition(":")[2] for where in report.first_skipped["question is empty"]] == ["2", "3", "4"]


def test_import_embedded_images_are_written_once_as_png(folder):
    rows = [{"prompt": "Q?", "images": [{"bytes": encoded("JPEG"), "path": "x.jpg"}]}] * 2
    source = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    report = import_dataset(source, folder / "ours")
    (picture,) = (folder / "ours/images").iterdir()
    with Image.open(picture) as image:
        assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
    assert [example.images for example in load_examples(report.path)] == [(picture,)] * 2


def test_import_saved_folder_with_images_and_splits(folder):
    features = hf_datasets.Features({"prompt": hf_datasets.Value("string"), "image": hf_datasets.Image()})
    rows = [{"prompt": "Q?", "image": {"bytes": encoded(), "path": None}}]
    split = hf_datasets.Dataset.from_list(rows, features)
    hf_datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(folder / "saved"))
    with raises(DataError, "splits: train, test"):
        import_dataset(folder / "saved", folder / "ours")
    report = import_dataset(folder / "saved", folder / "ours", split="test")
    assert load_examples(report.path)[0].images[0].is_file()


def test_import_columns_option_names_columns(folder):
    report, (example,) = imported(folder, {"prompt": "Q?", "label": 3}, columns={"answer": "label"})
    assert (example.answer, report.columns["answer"]) == ("3", "label")


def test_import_max_examples_counts_source_rows(folder):
    report, examples = imported(folder, {"prompt": "Q?"}, {"prompt": ""}, {"prompt": "R?"}, max_examples=2)
    assert (len(examples), report.skipped.total()) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_format": "xyhw"}, 'box format "xyhw" is unknown.*Did you mean "xyxy"|Did you mean "xywh"'),
        ({"box_units": "normalised"}, 'box units "normalised" is unknown.*Did you mean "normalized"'),
        ({"privileged_as": "hnt"}, 'privileged_as "hnt" is unknown.*Did you mean "hint"'),
        ({"columns": {"anser": "x"}}, 'column "anser" is unknown.*Did you mean "answer"'),
        ({"columns": {"answer": "labl"}}, 'answer=labl: .*column "labl" is unknown.*Did you mean "label"'),
        ({"max_examples": 0}, "max_examples must be at least 1, got 0"),
        ({"split": "train"}, "is one file and has no splits"),
    ],
)
def test_import_wrong_option_raises_and_leaves_nothing(folder, options, message):
    source = write(folder, {"prompt": "Q?", "label": "x"})
    with pytest.raises(ConfigError, match=message):
        import_dataset(source, folder / "ours", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["theirs"]


def test_import_existing_destination_raises_and_is_kept(folder):
    (folder / "ours").mkdir()
    with raises(DataError, "ours exists"):
        import_dataset(write(folder, {"prompt": "Q?"}), folder / "ours")
    assert list((folder / "ours").iterdir()) == []


def test_import_without_good_row_raises_and_leaves_nothing(folder):
    with raises(DataError, "2 x question is empty"):
        import_dataset(write(folder, {"prompt": ""}, {"text": "x"}), folder / "ours")
    assert sorted(path.name for path in folder.iterdir()) == ["theirs"]


def test_import_of_no_row_tells_columns_only_where_their_names_are_at_fault(folder):
    """Rows that are refused for their boxes have the right columns, all of which were read."""
    normalized = {"prompt": "Q?", "image": "a.png", "bbox": [0.1, 0.1, 0.5, 0.5]}
    with raises(DataError, "--box-units normalized") as raised:
        imported(folder, normalized)
    assert "--column" not in str(raised.value) and "not read" not in str(raised.value)
    with raises(DataError, "columns are ask, image", "--column"):
        imported(folder, {"ask": "Q?", "image": "a.png"})


def test_import_counts_rows_without_image_where_a_column_is_left(folder):
    report, _ = imported(folder, {"prompt": "Q?", "picture": "a.png"}, {"prompt": "R?", "picture": "b.png"})
    ((note, count),) = report.notes.items()
    assert count == 2 and "--column images=NAME" in note


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n \n"),
        ("a.json", b""),
        ("a.json", b"[]"),
        ("a.jsonl", b"\xef\xbb\xbf\n"),
        ("a.parquet", b""),
    ],
)
def test_import_empty_file_raises(folder, name, raw):
    (folder / name).write_bytes(raw)
    for read in (lambda: import_dataset(folder / name, folder / "ours"), lambda: load_examples(folder / name)):
        with raises(DataError, name, "empty") as raised:
            read()
        assert "--column" not in str(raised.value)
    assert not (folder / "ours").exists()


def test_import_unreadable_rows_give_no_column_advice(folder):
    (folder / "a.jsonl").write_text("[]\n{\n")
    with raises(DataError, "2 x row cannot be read") as raised:
        import_dataset(folder / "a.jsonl", folder / "ours")
    assert "--column" not in str(raised.value)


def test_import_unwritable_destination_raises(folder):
    with raises(DataError, "written"):
        import_dataset(write(folder, {"prompt": "Q?"}), folder / "theirs/a.png/ours")


def test_import_row_with_own_columns_is_unchanged(folder):
    row = {"id": "x", "question": "Q?", "images": ["a.png"], "hint": "left", "domain": "signs", "reference": "answer K"}
    _, (example,) = imported(folder, row)
    assert (example.id, example.evidence.hint, example.domain, example.reference) == ("x", "left", "signs", "answer K")


LAID_OUT = {
    "visual-cot": (
        {
            "question": "What is on the sign?",
            "answer": "stop",
            "possible_answers": ["stop"],
            "image": "a.png",
            "width": 200,
            "height": 100,
            "bboxs": [[20, 10, 60, 40]],
            "dataset": "textvqa",
            "split": "train",
        },
        {"question": "What is on the sign?", "answer": "stop", "boxes": (Box(20, 10, 60, 40),), "domain": "textvqa"},
    ),
    "virl39k": (
        {
            "qid": "MMMath-12",
            "question": "<image>How large is angle A?",
            "answer": "\\boxed{17^\\circ}",
            "image": ["b.png"],
            "category": "geometry",
            "source": "MM-Math",
            "PassRate_32BTrained": 0.5,
            "PassRate_7BBase": -1.0,
        },
        {
            "id": "MMMath-12",
            "question": "How large is angle A?",
            "answer": "17^\\circ",
            "boxes": (),
            "domain": "geometry",
        },
    ),
    "treebench": (
        {
            "index": 7,
            "question": "Which colour is the bag?",
            "A": "red",
            "B": "blue",
            "C": "green",
            "D": None,
            "answer": "B",
            "image": "a.png",
            "category": "attributes",
            "target_instances": [
                {"bbox": [1, 2, 30, 40], "label": "bag"},
                {"bbox": [50, 2, 80, 40], "label": "person"},
            ],
        },
        {
            "id": "7",
            "question": "Which colour is the bag?\n(A) red\n(B) blue\n(C) green",
            "answer": "B",
            "boxes": (Box(1, 2, 30, 40, "bag"), Box(50, 2, 80, 40, "person")),
            "domain": "attributes",
        },
    ),
    "vstar": (
        {
            "question_id": 3,
            "text": "What is the colour of the dog?",
            "options": ["black", "white"],
            "label": "A",
            "category": "direct_attributes",
            "image": "a.png",
            "target_object": ["dog"],
            "bbox": [[10, 20, 30, 40]],
        },
        {
            "id": "3",
            "question": "What is the colour of the dog?\n(A) black\n(B) white",
            "answer": "A",
            "boxes": (Box(10, 20, 40, 60, "dog"),),
            "domain": "direct_attributes",
        },
    ),
}


@pytest.mark.parametrize("layout", LAID_OUT)
def test_import_published_layouts_follow_their_declaration(folder, layout):
    row, expected = LAID_OUT[layout]
    report, (example,) = imported(folder, row, layout=layout)
    result = {
        "id": example.id,
        "question": example.question,
        "answer": example.answer,
        "boxes": example.evidence.boxes,
        "domain": example.domain,
    }
    assert result == {"id": "1"} | expected
    assert len(example.images) == 1 and example.images[0].is_file()
    recorded = {"possible_answers", "width", "height", "split", "source", "PassRate_32BTrained", "PassRate_7BBase"}
    assert set(report.unused) <= recorded  # what says nothing that a context could show


def test_import_options_win_over_layout(folder):
    row = {"text": "What?", "bbox": [[0.1, 0.1, 0.5, 0.5]], "image": "a.png", "name": "x"}
    options = {"layout": "vstar", "box_format": "xyxy", "box_units": "normalized", "columns": {"domain": "name"}}
    _, (example,) = imported(folder, row, **options)
    assert example.evidence.boxes == (Box(20, 10, 100, 50),) and example.domain == "x"
    with raises(ConfigError, "v*star", "vstar"):
        imported(folder, row, layout="v*star")


def test_preview_draws_first_rows_and_leaves_one_file(folder):
    rows = [
        {"text": f"Question {n}?", "bbox": [[10, 20, 30, 40]], "target_object": ["dog"], "image": "a.png"}
        for n in range(7)
    ]
    source = write(folder, {"text": "lost", "image": "no.png"}, *rows)
    before = set(folder.rglob("*"))
    preview = preview_dataset(source, layout="vstar")
    path, output = preview.path, str(preview)
    assert (
        "7 of the first 8 rows can be imported" in output
        and "boxes from bbox" in output
        and "image file does not exist" in output
    )
    assert set(folder.rglob("*")) - before == {path} and path == source.parent / "rows.jsonl.preview.html"
    page = path.read_text()
    assert [f"Question {n}?" in page for n in range(6)] == [True] * 5 + [False] and "lost" not in page
    assert page.count('<rect class="wb-box" x="10" y="20" width="30" height="40">') == 5
    assert "crop, cut from the first box" in page and 'src="http' not in page


def test_preview_of_model_counts_image_tokens(folder, models):
    """By hand: an image of the small models is 9 tokens and 3 around it; the crop is a second one."""
    source = write(folder, {"prompt": "What?", "image": "a.png", "crop": "b.png"}, {"prompt": "Who?"})
    page = preview_dataset(source, model=str(models["student"])).path.read_text()
    assert "12 under plain, 24 under crop" in page and "0 under plain<" in page


def test_import_hub_data_set_streams_rows(folder, monkeypatch):
    monkeypatch.chdir(folder)
    data = folder / "hub"
    data.mkdir()
    table = pyarrow.table({"prompt": ["What?", "Where?"], "image": [{"bytes": encoded(), "path": None}] * 2})
    pyarrow.parquet.write_table(table, data / "train.parquet")
    for streaming in ("true", "false"):
        report = import_dataset(
            f"hf:{data}?split=train&streaming={streaming}", folder / f"ours-{streaming}", max_examples=1
        )
        (example,) = load_examples(report.path)
        assert example.question == "What?" and example.images[0].is_file()
    with raises(ConfigError, "streaming", "true", "false"):
        import_dataset(f"hf:{data}?split=train&streaming=yes", folder / "no")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "What happens?", "video": "a.mp4"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Q?"}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"video": "a.mp4"}, {"text": "Q?"}]}]},
    ],
)
def test_import_row_with_video_is_skipped_and_says_what_to_do(folder, row):
    good = {"question": "What color?", "images": ["a.png"], "videos": []}
    report, examples = imported(folder, good, row)
    assert len(examples) == 1
    assert [reason for reason in report.skipped if "frames" in reason] == list(report.skipped)
