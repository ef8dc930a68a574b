"""Convert boxes of common formats to {x0, y0, x1, y1, label} in pixels of a row's first image.

1. Formats: four numbers, lists of them, dicts with a box under a key of BOX_KEYS or a corner under each of CORNER_KEYS,
   dicts of lists, several boxes in an entry, LabelMe's shapes, {label: box}, and each of these as JSON or Python text.
2. Keys that state format or unit take precedence over the chosen ones: xmin, ymin, xmax, ymax; bbox_type, format
   (box_forms.py).
3. Notes count everything that is not read, by name: points, keys, labels that are numbers, boxes of other images.
4. A row is refused if a box is empty, outside the image, or not four numbers.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.data.conversations import Refused
from workbench.data.importing.box_forms import FORM_KEYS, is_turned, spelled, stated_form
from workbench.data.importing.corners import BoxForm, box_corners, is_rectangle, is_scalar_list, to_number
from workbench.data.values import is_missing, parse_structure
from workbench.errors import show

BOX_KEYS = {
    "bbox": None,
    "bboxes": None,
    "bboxs": None,
    "box": None,
    "boxes": None,
    "bbox_2d": None,
    "bboxes_2d": None,
    "bndbox": None,
    "bounding_box": None,
    "bounding_boxes": None,
    "rect": None,
    "rectangle": None,
    "xyxy": "xyxy",
    "bbox_xyxy": "xyxy",
    "xywh": "xywh",
    "bbox_xywh": "xywh",
    "cxcywh": "cxcywh",
    "bbox_cxcywh": "cxcywh",
}
CORNER_KEYS = {
    ("x0", "y0", "x1", "y1"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("xtl", "ytl", "xbr", "ybr"): "xyxy",
    ("x", "y", "width", "height"): "xywh",
    ("x", "y", "w", "h"): "xywh",
    ("left", "top", "width", "height"): "xywh",
    ("cx", "cy", "w", "h"): "cxcywh",
    ("cx", "cy", "width", "height"): "cxcywh",
    ("x_center", "y_center", "width", "height"): "cxcywh",
}
_LABEL_KEYS = (
    "label ref caption name category_name class_name category class text text_label phrase description object "
    "labels refs captions names category_names categories classes texts phrases category_id label_id class_id "
    "rectanglelabels"
)
LABEL_KEYS = tuple(_LABEL_KEYS.split())
_PICTURE_KEYS = (
    "image_id image_ids image images image_index image_idx img_id img_idx img image_path image_name image_file "
    "img_path img_name file_name filename"
)
PICTURE_KEYS = tuple(_PICTURE_KEYS.split())
POINT_KEYS = ("points", "point", "point_2d", "points_2d", "keypoints", "polygon", "segmentation", "quad")
_WRAPPERS = ("objects", "annotations", "shapes", "instances", "detections", "regions", "value")
_Y_FIRST = "box_2d"  # ambiguous: [y0, x0, y1, x1] of 0 to 1000 in Gemini, x first elsewhere
_MOST_DEPTH = 8
_KNOWN = (
    *BOX_KEYS,
    *(key for keys in CORNER_KEYS for key in keys),
    *LABEL_KEYS,
    *PICTURE_KEYS,
    *POINT_KEYS,
    *FORM_KEYS,
)


@dataclass(frozen=True)
class BoxContext:
    """Images and chosen box format of a row."""

    pictures: list[Any]  # names in the row
    size: tuple[int, int] | None  # of the first image, in pixels; None without images
    box_format: str
    box_units: str


def read_boxes(value: Any, context: BoxContext, notes: Counter[str]) -> list[dict[str, float | str]]:
    """Read the boxes of the first image. Raises Refused; counts changes and unread values in `notes`."""
    if isinstance(value, str):
        parsed = parse_structure(value)
        if parsed is None:
            raise Refused("boxes cannot be read", show(value))
        value = parsed
    if not isinstance(value, list | dict):
        raise Refused("boxes cannot be read", show(value))
    boxes = []
    for entry in _entries(value, notes, 0):
        geometry = _geometry(entry, context, notes)
        if geometry is None or not _is_of_first(entry, context, notes):
            continue
        numbers, box_format = geometry
        if context.size is None:
            raise Refused("boxes without an image")
        if is_turned(entry):
            notes["box left out: it is rotated"] += 1
            continue
        stated, units = stated_form(entry)
        box_format = box_format or stated
        form = BoxForm(box_format or context.box_format, units or context.box_units, is_stated=box_format is not None)
        area = to_number(entry.get("area"))
        corners = box_corners(numbers, context.size, form, area, notes)
        label = _label(entry, notes)
        _note_unread_keys(entry, notes)
        boxes.append(dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True)) | ({"label": label} if label else {}))
    return boxes


def _entries(value: Any, notes: Counter[str], depth: int) -> Iterator[dict[str, Any]]:
    """Yield a dict for each box, with its numbers, label, image and type."""
    if depth > _MOST_DEPTH:
        raise Refused("boxes cannot be read: too deeply nested", show(value))
    if isinstance(value, list):
        if is_scalar_list(value, 4):
            yield {"bbox": value}
            return
        for entry in value:
            if isinstance(entry, dict):
                yield from _of_dict(entry, notes, depth + 1)
            elif isinstance(entry, str):
                notes["names without boxes not read"] += 1
            else:
                yield {"bbox": entry}
    else:
        yield from _of_dict(value, notes, depth + 1)


def _of_dict(value: dict[str, Any], notes: Counter[str], depth: int) -> Iterator[dict[str, Any]]:
    value = {str(key): entry for key, entry in value.items() if not is_missing(entry) and entry not in ([], "", {})}
    value = spelled(value, _KNOWN)
    if not value:
        return
    key = next((key for key in BOX_KEYS if key in value), None)
    corners = next((keys for keys in CORNER_KEYS if all(key in value for key in keys)), None)
    points = next((key for key in POINT_KEYS if key in value), None)
    wrapper = next((key for key in _WRAPPERS if isinstance(value.get(key), list | dict)), None)
    if key is None and _Y_FIRST in value:
        notes[
            f"boxes not read: {_Y_FIRST} has y first for some, x first for others (put x first, and name it bbox)"
        ] += 1
    elif key is not None:
        yield from _of_box_key(value, key, notes, depth)
    elif corners is not None:
        lists = [value[key] for key in corners if isinstance(value[key], list)]
        if not lists:
            yield value
        elif len(lists) == 4 and len({len(numbers) for numbers in lists}) == 1:
            yield from _split(value, len(lists[0]), corners, notes)
        else:
            raise Refused(f"boxes with lists of unequal length under {', '.join(corners)}", show(value))
    elif points is not None:
        several = isinstance(value[points], list) and all(_holds_lists(entry) for entry in value[points])
        yield from _split(value, len(value[points]), (points,), notes) if several else (value,)
    elif wrapper is not None:
        for name in value.keys() - {wrapper}:
            notes[f"key not read beside boxes: {_cut(name)}"] += 1
        yield from _entries(value[wrapper], notes, depth)
    elif all(_is_boxlike(entry) for entry in value.values()):
        for label, entry in value.items():
            entry = entry if isinstance(entry, dict) else {"bbox": entry}
            named = any(isinstance(entry.get(key), str) for key in LABEL_KEYS)  # under a number, as in scene graphs
            yield from _of_dict(entry if named else {"label": label, **entry}, notes, depth + 1)
    else:
        names = ", ".join(map(_cut, list(value)[:8]))
        notes[f"boxes not read: no box under the keys {names}"] += 1


def _of_box_key(value: dict[str, Any], key: str, notes: Counter[str], depth: int) -> Iterator[dict[str, Any]]:
    """Yield the entries of a dict with a box, a dict of corners, or a list of boxes under `key`."""
    boxes = value[key]
    if isinstance(boxes, str):
        boxes = parse_structure(boxes)
    if isinstance(boxes, dict):
        rest = {name: entry for name, entry in value.items() if name != key}
        if depth > _MOST_DEPTH:
            raise Refused("boxes cannot be read: too deeply nested", show(value))
        yield from _of_dict({**rest, **boxes}, notes, depth + 1)
    elif not isinstance(boxes, list):
        raise Refused("boxes cannot be read", show(value[key]))
    elif is_scalar_list(boxes, 4) or is_scalar_list(boxes, 2):
        yield {**value, key: boxes}
    else:
        for entry in _split({**value, key: boxes}, len(boxes), (key,), notes):
            box = entry[key]
            nested = isinstance(box, dict) or (
                isinstance(box, list) and any(isinstance(part, list | dict) for part in box)
            )
            if nested:
                yield from _of_dict(entry, notes, depth + 1)
            else:
                yield entry


def _split(value: dict[str, Any], count: int, keys: tuple[str, ...], notes: Counter[str]) -> Iterator[dict[str, Any]]:
    """Split a dict of lists into one dict per box. Other values, and a list of one label, belong to every box."""
    shared, lists = {}, {key: value[key] for key in keys}
    for name, entry in value.items():
        if name in keys:
            continue
        if not isinstance(entry, list):
            shared[name] = entry
        elif len(entry) == count:
            lists[name] = entry
        elif name in LABEL_KEYS and len(entry) == 1:
            shared[name] = entry[0]
        elif name in LABEL_KEYS:
            notes["label left out: not one for each box"] += len(entry)
        elif name in (*PICTURE_KEYS, *FORM_KEYS):
            raise Refused(f"{name} is not one for each box", f"{len(entry)} for {count} boxes")
        else:
            shared[name] = entry
    for idx in range(count):
        yield shared | {name: entries[idx] for name, entries in lists.items()}


def _geometry(entry: dict[str, Any], context: BoxContext, notes: Counter[str]) -> tuple[Any, str | None] | None:
    """Return four values and the format that their keys state; None (and a note) if the entry is not a box."""
    for key, box_format in BOX_KEYS.items():
        if key in entry:
            numbers = entry[key]
            if is_scalar_list(numbers, 2):
                notes["point left out: not a box"] += 1
                return None
            return numbers, box_format
    for keys, box_format in CORNER_KEYS.items():
        if all(key in entry for key in keys):
            centered = keys[:2] == ("x", "y") and context.box_format == "cxcywh"
            return [entry[key] for key in keys], "cxcywh" if centered else box_format
    key = next(key for key in POINT_KEYS if key in entry)
    rectangle = is_rectangle(entry[key], is_stated=entry.get("shape_type") == "rectangle")
    if rectangle is None:
        notes[f"point left out: not a box ({key})"] += 1
        return None
    return list(rectangle), "xyxy"


def _is_of_first(entry: dict[str, Any], context: BoxContext, notes: Counter[str]) -> bool:
    """Whether the box belongs to the first image, by a number from 0 or by the image's name."""
    key = next((key for key in PICTURE_KEYS if not is_missing(entry.get(key))), None)
    if key is None:
        return True
    picture = entry[key][0] if isinstance(entry[key], list) and len(entry[key]) == 1 else entry[key]
    number = None if isinstance(picture, bool) else to_number(picture)
    if number is None and isinstance(picture, str):
        names = [os.path.basename(name) if isinstance(name, str) else None for name in context.pictures]
        number = names.index(os.path.basename(picture)) if os.path.basename(picture) in names else None
    if number == 0:
        return True
    if number is not None and 0 < number < len(context.pictures):
        notes["box of an image after the first left out"] += 1
    else:
        notes[f"box left out: its {key} names no image of the row (they count from 0)"] += 1
    return False


def _label(entry: dict[str, Any], notes: Counter[str]) -> str:
    """Return the first label that is text; others are counted by key."""
    label = ""
    for key in LABEL_KEYS:
        value = entry.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if is_missing(value) or value == "":
            continue
        if not isinstance(value, str):
            is_list = isinstance(value, list | dict)
            notes[f"label left out: {'several names' if is_list else 'a number, not a name'} ({key})"] += 1
        elif label:
            notes[f"second label left out ({key})"] += 1
        else:
            label = value
    return label


def _note_unread_keys(entry: dict[str, Any], notes: Counter[str]) -> None:
    read = {*LABEL_KEYS, *PICTURE_KEYS, *FORM_KEYS, "shape_type"}
    geometry = next((key for key in BOX_KEYS if key in entry), None)
    corners = next((keys for keys in CORNER_KEYS if all(key in entry for key in keys)), ())
    points = next((key for key in POINT_KEYS if key in entry), None)
    read |= {geometry} if geometry else set(corners) if corners else {points}
    for key, value in entry.items():
        if key not in read and not is_missing(value):
            notes[f"key not read beside boxes: {_cut(key)}"] += 1


def _is_boxlike(value: Any) -> bool:
    if isinstance(value, list):
        return is_scalar_list(value, 4) or (bool(value) and all(is_scalar_list(entry, 4) for entry in value))
    has_box_key = isinstance(value, dict) and (any(key in value for key in BOX_KEYS))
    return has_box_key or (isinstance(value, dict) and any(all(key in value for key in keys) for keys in CORNER_KEYS))


def _holds_lists(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, list | dict) for entry in value)


def _cut(key: str) -> str:
    return key if len(key) <= 40 else key[:39] + "\u2026"
