"""Forms of rows that other tools write: what stands beside turns, boxes and answers is read, or counted by name."""

import json

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from workbench.data.examples import load_examples
from workbench.data.importing import import_dataset
from workbench.errors import DataError
from workbench.types import Box

ROW = {"question": "Which?", "images": ["a.png"]}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    Image.new("RGB", (100, 200), "blue").save(tmp_path / "b.png")
    return tmp_path


def imported(folder, *rows, **options):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_dataset(path, folder / "ours", **options)
    return report, load_examples(report.path)


@pytest.mark.parametrize(
    ("entry", "corners"),
    [
        ({"bbox": [10, 20, 50, 60], "bbox_mode": 1}, (10, 20, 60, 80)),  # detectron2's XYWH_ABS
        ({"bbox": [10, 20, 50, 60], "format": "xywh"}, (10, 20, 60, 80)),
        ({"bbox": [30, 40, 20, 20], "bbox_format": "CxCyWH"}, (20, 30, 40, 50)),
        ({"bbox": [0.1, 0.2, 0.5, 0.6], "normalized": True}, (20, 20, 100, 60)),
        ({"bbox": [0.5, 0.5, 0.2, 0.2], "format": "yolo"}, (80, 40, 120, 60)),
        (
            {"value": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["a"]}},
            (20, 20, 80, 60),
        ),
        ({"BBox": [10, 20, 50, 60]}, (10, 20, 50, 60)),
        ({"boundingBox": [10, 20, 50, 60]}, (10, 20, 50, 60)),
        ({"XMin": 10, "YMin": 20, "XMax": 50, "YMax": 60}, (10, 20, 50, 60)),
    ],
)
def test_import_box_keys_state_format_and_unit(folder, entry, corners):
    _, (example,) = imported(folder, ROW | {"objects": [entry]})
    box = example.evidence.boxes[0]
    assert (box.x0, box.y0, box.x1, box.y1) == corners
    assert box.label in ("", "a")


@pytest.mark.parametrize("key", ["img_id", "image_path", "file_name", "image_index"])
def test_import_box_of_second_image_is_left_out(folder, key):
    of_second = {"bbox": [1, 2, 30, 40], key: 1 if key in ("img_id", "image_index") else "b.png"}
    report, (example,) = imported(
        folder, ROW | {"images": ["a.png", "b.png"], "objects": [{"bbox": [10, 20, 50, 60]}, of_second]}
    )
    assert example.evidence.boxes == (Box(10, 20, 50, 60),)
    assert report.notes["box of an image after the first left out"] == 1


def test_import_rotated_box_is_left_out_and_counted(folder):
    report, (example,) = imported(folder, ROW | {"objects": [{"bbox": [10, 20, 50, 60], "angle": 30}]})
    assert example.evidence.boxes == ()
    assert report.notes == {"box left out: it is rotated": 1}
    assert "boxes" not in report.columns


def test_import_unknown_box_format_skips_row(folder):
    report, examples = imported(folder, ROW, ROW | {"objects": [{"bbox": [1, 2, 30, 40], "format": "tlbr2"}]})
    assert len(examples) == 1
    assert report.skipped.total() == 1


def test_import_size_of_another_image_is_counted(folder):
    report, _ = imported(folder, ROW | {"bbox": [10, 20, 50, 60], "width": 400, "height": 200})
    assert any("width and height" in note for note in report.notes)
    same, _ = imported_again(folder, ROW | {"bbox": [10, 20, 50, 60], "width": 200, "height": 100})
    assert not same.notes


def imported_again(folder, *rows):
    (folder / "again").mkdir()
    Image.new("RGB", (200, 100), "red").save(folder / "again/a.png")
    return imported(folder / "again", *rows)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("<answer> 27 </answer>", "27"),
        ("\\boxed{\\text{red}}", "red"),
        ("She has 9 * 8 = 72.\n#### 72", "72"),
        ('["red", "red"]', "red"),
        ("[10, 20, 50, 60]", "[10, 20, 50, 60]"),
        ("#### Title\nred", "#### Title\nred"),
    ],
)
def test_import_wrapped_answer_is_unwrapped(folder, answer, wanted):
    report, (example,) = imported(folder, ROW | {"answer": answer})
    assert example.answer == wanted
    assert bool(report.notes) == (answer != wanted)


def test_import_solution_around_answer_is_counted(folder):
    solution = "The door on the left is the green one, and on it stands a number. <answer>27</answer>"
    report, (example,) = imported(folder, ROW | {"solution": solution})
    assert example.answer == "27"
    assert report.notes["answer taken out of <answer>"] == 1
    assert any("worked solution" in note for note in report.notes)


def test_import_short_floats_in_lists_keep_digits(folder):
    table = pyarrow.table(
        {
            "question": ["Q"] * 2,
            "answer": pyarrow.array([[0.1], [27.0]], pyarrow.list_(pyarrow.float32())),
            "domain": pyarrow.array(numpy.array([0.1, 0.2], numpy.float16)),
        }
    )
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    examples = load_examples(import_dataset(folder / "rows.parquet", folder / "ours").path)
    assert [(example.answer, example.domain) for example in examples] == [("0.1", "0.1"), ("27", "0.2")]


@pytest.mark.parametrize(
    ("question", "note"),
    [
        ("<image_1> What?", "an image mark of another form stays in the text: <image_1>"),
        ("<img>a.png</img> What?", "an image mark of another form stays in the text: </img>"),
        ("<|endoftext|>What?", "a special token of some tokenizer stays in the text: <|endoftext|>"),
        ("Human: What?\n\nAssistant:", "a text that looks like turns (User: ... Assistant: ...) is one question"),
    ],
)
def test_import_marks_that_stay_in_text_are_counted(folder, question, note):
    report, (example,) = imported(folder, ROW | {"question": question})
    assert example.question == question
    assert note in report.notes


def test_import_keys_beside_turns_are_counted(folder):
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Which?", "cache_control": {"type": "x"}}]},
        {"role": "assistant", "content": "red", "reasoning_content": "it looks red", "name": None},
    ]
    report, _ = imported(folder, {"messages": turns, "images": ["a.png"]})
    assert report.notes == {
        "key not read in a turn: reasoning_content": 1,
        "key not read in a part of a turn: cache_control": 1,
    }


@pytest.mark.parametrize(
    "text",
    [
        "<｜User｜>What?<｜Assistant｜>red",
        "<|start|>user<|message|>What?<|end|>",
        "<|header_start|>user<|header_end|>\n\nWhat?<|eot|>",
    ],
)
def test_import_chat_template_of_other_family_skips_row(folder, text):
    report, _ = imported(folder, ROW, ROW | {"question": text})
    assert report.skipped == {"a chat template is written into the text; give the turns instead": 1}


def test_import_completion_with_user_turns_skips_row(folder):
    turns = [{"role": "user", "content": "again?"}, {"role": "assistant", "content": "red"}]
    report, (example, *_) = imported(folder, ROW | {"completion": turns[1:]}, ROW | {"completion": turns})
    assert example.reference == "red"
    assert report.skipped == {"a reference holds turns that are not the assistant's": 1}


@pytest.mark.parametrize("question", ["\u200b", "\ufeff \u2060", "\x00\x07"])
def test_import_invisible_question_raises(folder, question):
    with pytest.raises(DataError, match="question"):
        imported(folder, ROW | {"question": question})


def test_import_missing_values_as_text_are_counted(folder):
    report, _ = imported(folder, ROW | {"hint": "nan", "answer": 0, "choices": ["red", "blue"]})
    assert report.notes["hint is the text nan, kept unchanged"] == 1
    assert any(note.startswith("choices not written into the question") for note in report.notes)
