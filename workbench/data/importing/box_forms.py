"""Read the format, unit and rotation of a box from the keys beside it, in any spelling."""

import re
from collections.abc import Iterable
from typing import Any

from workbench.data.conversations import Refused
from workbench.data.importing.corners import to_number
from workbench.errors import show

_FORMAT_KEYS = ("format", "bbox_format", "box_format", "bbox_mode", "box_mode")
_UNIT_KEYS = ("bbox_type", "bbox_types", "bbox_units", "box_units", "unit", "units")
_NORMALIZED_KEYS = ("normalized", "normalised", "is_normalized", "is_normalised", "relative", "is_relative")
_ANGLE_KEYS = ("rotation", "angle", "theta")
_PERCENT_KEY = "rectanglelabels"  # Label Studio, whose numbers are percentages
FORM_KEYS = (*_FORMAT_KEYS, *_UNIT_KEYS, *_NORMALIZED_KEYS, *_ANGLE_KEYS)
_FORMATS = {
    "xyxy": ("xyxy", None),
    "pascalvoc": ("xyxy", None),
    "voc": ("xyxy", None),
    "albumentations": ("xyxy", "normalized"),
    "xywh": ("xywh", None),
    "coco": ("xywh", None),
    "cxcywh": ("cxcywh", None),
    "yolo": ("cxcywh", "normalized"),
    "xyxyabs": ("xyxy", "pixels"),
    "xywhabs": ("xywh", "pixels"),
    "xyxyrel": ("xyxy", "normalized"),
    "xywhrel": ("xywh", "normalized"),
    "0": ("xyxy", "pixels"),  # detectron2's BoxMode
    "1": ("xywh", "pixels"),
    "2": ("xyxy", "normalized"),
    "3": ("xywh", "normalized"),
}
_UNITS = {
    "real": "pixels",
    "pixel": "pixels",
    "pixels": "pixels",
    "px": "pixels",
    "absolute": "pixels",
    "norm1": "normalized",
    "normalized": "normalized",
    "normalised": "normalized",
    "relative": "normalized",
    "percent": "percent",
    "norm1000": "thousand",
    "thousand": "thousand",
}
_SPELLING = re.compile(r"[^a-z0-9]")


def spelled(value: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Rename keys to the spelling of `names`: BBox, boundingBox and XMin become bbox, bounding_box and xmin."""
    plain = {_plain(name): name for name in reversed(list(names))}
    renamed = {}
    for name, entry in value.items():
        key = plain.get(_plain(name), name)
        renamed[name if key in value or key in renamed else key] = entry
    return renamed


def stated_form(entry: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the format and unit stated by a box's own keys, or None. Raises Refused for unknown values."""
    box_format = box_units = None
    for key in _FORMAT_KEYS:
        if (value := _single(entry.get(key))) is not None:
            if _plain(str(value)) not in _FORMATS:
                raise Refused(f"{key} is not a known format (xyxy, xywh, cxcywh)", show(value))
            box_format, box_units = _FORMATS[_plain(str(value))]
    for key in _UNIT_KEYS:
        if (value := _single(entry.get(key))) is not None:
            if not isinstance(value, str) or _plain(value) not in _UNITS:
                raise Refused(f"{key} is none of real, norm1 and norm1000", show(value))
            box_units = _UNITS[_plain(value)]
    for key in _NORMALIZED_KEYS:
        if (value := _single(entry.get(key))) is not None and value not in (0, False):
            if value not in (1, True):
                raise Refused(f"{key} is neither true nor false", show(value))
            box_units = "normalized"
    if _PERCENT_KEY in entry and box_units is None:
        box_units = "percent"
    return box_format, box_units


def is_turned(entry: dict[str, Any]) -> bool:
    """Whether a box is rotated, which four numbers cannot express."""
    return any(to_number(_single(entry.get(key))) not in (None, 0.0) for key in _ANGLE_KEYS)


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _plain(text: str) -> str:
    return _SPELLING.sub("", text.lower())
