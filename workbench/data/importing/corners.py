"""Convert four numbers in any format and unit to the corners of a box in pixels."""

import decimal
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from workbench.data.conversations import Refused
from workbench.errors import show

BOX_FORMATS = ("xyxy", "xywh", "cxcywh")
BOX_UNITS = {"pixels": None, "normalized": 1.0, "percent": 100.0, "thousand": 1000.0}  # number for a whole side
_MOST_OVERSHOOT = 1.0  # pixels by which rounding may move a box out of the image; it is then clipped and counted
_SAME_AREA = 0.01  # largest relative difference between a stated area and that of the box


@dataclass(frozen=True)
class BoxForm:
    """Format and unit of four numbers. is_stated: the data's own keys state the format."""

    box_format: str
    box_units: str
    is_stated: bool = False


def box_corners(
    numbers: Any, size: tuple[int, int], form: BoxForm, area: float | None, notes: Counter[str]
) -> tuple[float, float, float, float]:
    """Return corners (x0, y0, x1, y1) in pixels of an image of `size`.

    area    area of the box in the data, or None; it distinguishes xywh from xyxy
    Raises  Refused unless the numbers are four finite ones of a non-empty box inside the image
    """
    read = [to_number(number) for number in numbers] if isinstance(numbers, list) else []
    if len(read) != 4 or None in read:
        raise Refused("a box is not four numbers", show(numbers))
    a, b, c, d = read
    if (
        form.box_format == "xyxy"
        and not form.is_stated
        and area
        and _is_area(c * d, area)
        and not _is_area((c - a) * (d - b), area)
    ):
        raise Refused(
            "a box's area is that of corner and size (give --box-format xywh)", f"{show(numbers)}, area {area:g}"
        )
    if form.box_format == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif form.box_format == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    width, height = size
    whole = BOX_UNITS[form.box_units]
    scale_x, scale_y = (1.0, 1.0) if whole is None else (width / whole, height / whole)
    x0, y0, x1, y1 = (round(number, 2) for number in (a * scale_x, b * scale_y, c * scale_x, d * scale_y))
    description = f"{show(numbers)} is [{x0:g}, {y0:g}, {x1:g}, {y1:g}] in pixels of {width} x {height}"
    if x1 <= x0 or y1 <= y0:
        raise Refused("a box is empty (check --box-format)", description)
    if x1 - x0 < 1 or y1 - y0 < 1:
        is_share = form.box_units == "pixels" and max(map(abs, read)) <= 1
        remedy = "give --box-units normalized" if is_share else "check --box-units"
        raise Refused(f"a box is smaller than a pixel ({remedy})", description)
    if min(x0, y0) < -_MOST_OVERSHOOT or x1 > width + _MOST_OVERSHOOT or y1 > height + _MOST_OVERSHOOT:
        raise Refused("a box leaves the image (check --box-format and --box-units)", description)
    cut = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
    if cut != (x0, y0, x1, y1):
        notes["box cut at the image's edge, by a pixel at most"] += 1
    return cut


def is_rectangle(points: Any, *, is_stated: bool) -> tuple[float, float, float, float] | None:
    """Return the corners of the upright rectangle [[x, y], ...] or [{x, y}, ...]; None if it is not one.

    is_stated  whether the data calls the points a rectangle, so that two opposite corners suffice
    """
    if not isinstance(points, list) or len(points) not in (2, 4, 5):
        return None
    read = []
    for point in points:
        pair = [point.get("x"), point.get("y")] if isinstance(point, dict) else point
        if not isinstance(pair, list) or len(pair) != 2 or None in (numbers := [to_number(entry) for entry in pair]):
            return None
        read.append(tuple(numbers))
    xs, ys = sorted({x for x, _ in read}), sorted({y for _, y in read})
    if len(xs) != 2 or len(ys) != 2:
        return None
    corners = {(x, y) for x in xs for y in ys}
    if (len(points) == 2 and is_stated) or set(read) == corners:
        return xs[0], ys[0], xs[1], ys[1]
    return None


def is_scalar_list(value: Any, count: int) -> bool:
    """Whether a value is a list of `count` entries without lists and dicts."""
    return (
        isinstance(value, list) and len(value) == count and not any(isinstance(entry, list | dict) for entry in value)
    )


def to_number(value: Any) -> float | None:
    """Convert a number, text or decimal to a finite float; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | decimal.Decimal):
        return None
    if isinstance(value, str) and "_" in value:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_area(area: float, expected: float) -> bool:
    return math.isclose(area, expected, rel_tol=_SAME_AREA)
