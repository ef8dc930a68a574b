"""Boxes in every form in use: a rectangle 10 <= x < 50, 20 <= y < 60 of an image of 100 x 80, or counted as unread."""

import json
from collections import Counter
from decimal import Decimal

import pytest
from failures import raises
from PIL import Image

from workbench.data.conversations import Refused
from workbench.data.examples import load_examples
from workbench.data.importing import import_dataset
from workbench.data.importing.boxes import BoxContext, read_boxes
from workbench.types import Box

BOX = [10, 20, 50, 60]
PLAIN = {"x0": 10, "y0": 20, "x1": 50, "y1": 60}
LABELED = PLAIN | {"label": "dog"}


def read(value, *, pictures=("a.png", "b.png"), box_format="xyxy", box_units="pixels"):
    context = BoxContext(list(pictures), (100, 80), box_format, box_units)
    boxes = read_boxes(value, context, notes := Counter())
    return boxes, {name: count for name, count in notes.items() if count}


READ = {
    "four numbers": (BOX, [PLAIN]),
    "a list of them": ([BOX], [PLAIN]),
    "JSON": (json.dumps([BOX]), [PLAIN]),
    "Python": ("({'bbox': (10, 20, 50, 60), 'label': 'dog'},)", [LABELED]),
    "numbers as text and decimals": (["10", "20.0", Decimal("50"), 60.0], [PLAIN]),
    "ms-swift 3": ({"ref": ["dog"], "bbox": [BOX]}, [LABELED]),
    "ms-swift 3, image_id": ({"ref": ["dog"], "bbox": [BOX], "image_id": [0], "bbox_type": "real"}, [LABELED]),
    "ms-swift 3, one label for two": ({"ref": ["dog"], "bbox": [BOX, BOX]}, [LABELED, LABELED]),
    "ms-swift 2": ([{"caption": "dog", "bbox": BOX, "bbox_type": "real", "image": 0}], [LABELED]),
    "ms-swift 2, JSON": (json.dumps([{"caption": "dog", "bbox": BOX, "bbox_type": "real", "image": 0}]), [LABELED]),
    "ms-swift 2, two boxes": ([{"caption": "dog", "bbox": [BOX, BOX], "image": 0}], [LABELED, LABELED]),
    "ms-swift 2, norm_1000": ([{"caption": "dog", "bbox": [100, 250, 500, 750], "bbox_type": "norm_1000"}], [LABELED]),
    "norm1 of one entry alone": ([{"bbox": [0.1, 0.25, 0.5, 0.75], "bbox_type": "norm1"}, {"bbox": BOX}], [PLAIN] * 2),
    "a type for each box": ({"bbox": [[0.1, 0.25, 0.5, 0.75], BOX], "bbox_type": ["norm1", "real"]}, [PLAIN] * 2),
    "picture by name": ([{"bbox": BOX, "image": "folder/a.png", "label": "dog"}], [LABELED]),
    "Qwen": ([{"bbox_2d": BOX, "label": "dog"}], [LABELED]),
    "Qwen, one": ({"bbox_2d": BOX, "label": "dog"}, [LABELED]),
    "datasets": ({"bbox": [BOX, BOX], "category": ["dog", "dog"]}, [LABELED] * 2),
    "bboxes and labels": ({"bboxes": [BOX], "labels": ["dog"]}, [LABELED]),
    "boxes": ({"boxes": [BOX]}, [PLAIN]),
    "corners": (LABELED, [LABELED]),
    "lists of corners": ({"x0": [10], "y0": [20], "x1": [50], "y1": [60], "label": ["dog"]}, [LABELED]),
    "x1 to y2": ([{"x1": 10, "y1": 20, "x2": 50, "y2": 60, "class": "dog"}], [LABELED]),
    "xmin": ({"xmin": 10, "ymin": 20, "xmax": 50, "ymax": 60}, [PLAIN]),
    "Pascal VOC": ({"name": "dog", "bndbox": {"xmin": "10", "ymin": "20", "xmax": "50", "ymax": "60"}}, [LABELED]),
    "left to bottom": ([{"left": 10, "top": 20, "right": 50, "bottom": 60, "text": "dog"}], [LABELED]),
    "corner and size": ({"x": 10, "y": 20, "width": 40, "height": 40}, [PLAIN]),
    "Visual Genome": ([{"x": 10, "y": 20, "w": 40, "h": 40, "names": ["dog"]}], [LABELED]),
    "center and size": ([{"cx": 30, "cy": 40, "w": 40, "h": 40}], [PLAIN]),
    "xywh by its key": ([{"bbox_xywh": [10, 20, 40, 40]}], [PLAIN]),
    "boxes by name": ({"dog": BOX}, [LABELED]),
    "several boxes by name": ({"dog": [BOX, BOX]}, [LABELED] * 2),
    "dicts by name": ({"dog": {"bbox": BOX}}, [LABELED]),
    "a scene graph": ({"681": {"name": "dog", "x": 10, "y": 20, "w": 40, "h": 40}}, [LABELED]),
    "a box in a box": ([{"box": {"xmin": 10, "ymin": 20, "xmax": 50, "ymax": 60}, "label": "dog"}], [LABELED]),
    "LabelMe": ({"shapes": [{"label": "dog", "points": [[10, 20], [50, 60]], "shape_type": "rectangle"}]}, [LABELED]),
    "four corners": ({"points": [[10, 20], [50, 20], [50, 60], [10, 60]]}, [PLAIN]),
    "four corners as dicts": (
        [{"points": [{"x": x, "y": y} for x, y in ((10, 20), (50, 20), (50, 60), (10, 60))]}],
        [PLAIN],
    ),
    "empty keys of Arrow's structs": ([{"bbox": BOX, "label": None, "points": None, "image": None}], [PLAIN]),
    "nothing": ({"bbox": [], "category": []}, []),
    "nothing at all": ([], []),
}


@pytest.mark.parametrize("form", READ)
def test_read_boxes_form_gives_the_rectangle(form):
    value, expected = READ[form]
    assert read(value) == (expected, {})


COCO = {"id": 7, "bbox": [10, 20, 40, 40], "area": 1600.0, "iscrowd": 0, "category_id": 18}
POINT = "point left out: not a box"
SECOND = "box of an image after the first left out"
UNREAD = {
    "points of Qwen": ([{"point_2d": [30, 40], "label": "x"}], [], {f"{POINT} (point_2d)": 1}),
    "points of Molmo": ({"points": [[30, 40], [3, 4]], "label": "x"}, [], {f"{POINT} (points)": 1}),
    "points under bbox": ({"bbox": [BOX, [30, 40]]}, [PLAIN], {POINT: 1}),
    "one point under bbox": ({"bbox": [30, 40]}, [], {POINT: 1}),
    "a triangle": ({"polygon": [[10, 20], [50, 20], [50, 60]]}, [], {f"{POINT} (polygon)": 1}),
    "second picture, ms-swift 2": ([{"bbox": BOX, "image": 1}, {"bbox": BOX, "image": 0}], [PLAIN], {SECOND: 1}),
    "second picture, image_id": ([{"bbox": BOX, "image_id": 1}], [], {SECOND: 1}),
    "second picture, one number": ({"bbox": [BOX], "image_id": 1}, [], {SECOND: 1}),
    "second picture, list": ({"bbox": [BOX, BOX], "image_id": [0, 1.0]}, [PLAIN], {SECOND: 1}),
    "second picture by name": ([{"bbox": BOX, "image": "b.png"}], [], {SECOND: 1}),
    "no such picture": (
        [{"bbox": BOX, "image_id": 397133}],
        [],
        {"box left out: its image_id names no image of the row (they count from 0)": 1},
    ),
    "a number as label": (
        {"bbox": [BOX], "category": [3]},
        [PLAIN],
        {"label left out: a number, not a name (category)": 1},
    ),
    "labels of another length": (
        {"bbox": [BOX] * 3, "ref": ["a", "b"]},
        [PLAIN] * 3,
        {"label left out: not one for each box": 2},
    ),
    "two labels": (
        [{"bbox": BOX, "label": "dog", "caption": "a brown dog"}],
        [LABELED],
        {"second label left out (caption)": 1},
    ),
    "other keys": ([{"bbox": BOX, "score": 0.5}], [PLAIN], {"key not read beside boxes: score": 1}),
    "no key of a box": (
        {"segments": [1], "text": "x"},
        [],
        {"boxes not read: no box under the keys segments, text": 1},
    ),
    "Gemini": (
        [{"box_2d": BOX}],
        [],
        {"boxes not read: box_2d has y first for some, x first for others (put x first, and name it bbox)": 1},
    ),
    "names alone": (["dog", "cat"], [], {"names without boxes not read": 2}),
}


@pytest.mark.parametrize("form", UNREAD)
def test_read_boxes_unread_form_is_counted(form):
    value, expected, notes = UNREAD[form]
    assert read(value) == (expected, notes)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("left", "boxes cannot be read"),
        (5, "boxes cannot be read"),
        ([[1, 2, 3]], "a box is not four numbers"),
        ([None], "a box is not four numbers"),
        ({"bbox": [BOX, None]}, "a box is not four numbers"),
        ([{"bbox": [1, 2, 3, "x"]}], "a box is not four numbers"),
        ([{"bbox": [True, 2, 3, 4]}], "a box is not four numbers"),
        ([{"bbox": [1, 2, float("nan"), 4]}], "a box is not four numbers"),
        ({"bbox": "left"}, "boxes cannot be read"),
        ({"bbox": [BOX], "image_id": [0, 1]}, "image_id is not one for each box"),
        ({"bbox": [BOX], "bbox_type": "inches"}, "bbox_type is none of real, norm1 and norm1000"),
        ({"x0": [1, 2], "y0": [1], "x1": [3], "y1": [3]}, "boxes with lists of unequal length under x0, y0, x1, y1"),
        ([COCO], "a box's area is that of corner and size (give --box-format xywh)"),
    ],
)
def test_read_boxes_damaged_box_raises(value, reason):
    with pytest.raises(Refused) as caught:
        read(value)
    assert caught.value.reason == reason


def test_read_boxes_coco_counts_what_it_leaves_out():
    boxes, notes = read([COCO], box_format="xywh", pictures=["a.png"])
    assert boxes == [PLAIN]
    assert notes == {
        "label left out: a number, not a name (category_id)": 1,
        "key not read beside boxes: id": 1,
        "key not read beside boxes: area": 1,
        "key not read beside boxes: iscrowd": 1,
    }


def test_read_boxes_format_in_keys_wins_over_option():
    assert read(LABELED, box_format="xywh") == ([LABELED], {})
    assert read({"x": 30, "y": 40, "width": 40, "height": 40}, box_format="cxcywh") == ([PLAIN], {})


def test_read_boxes_deep_nesting_raises():
    value = BOX
    for _ in range(500):
        value = {"bbox": value}
    with raises(Refused, "nested"):
        read(value)


def test_import_report_names_objects_with_boxes_only(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 80)).save(tmp_path / name)
    row = {"question": "Where?", "images": ["a.png", "b.png"]}
    path = tmp_path / "rows.jsonl"
    rows = [row | {"objects": {"bbox": [BOX], "image_id": 1}}, row | {"objects": {"point_2d": [1, 2]}}]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    report = import_dataset(path, tmp_path / "none")
    assert "boxes" not in report.columns and report.unused == ("objects",)
    path.write_text("".join(json.dumps(item) + "\n" for item in [*rows, row | {"objects": {"dog": BOX}}]))
    report = import_dataset(path, tmp_path / "one")
    assert report.columns["boxes"] == "objects" and report.unused == ()
    assert load_examples(report.path)[2].evidence.boxes == (Box(10, 20, 50, 60, "dog"),)
