"""Data with TRL's or ms-swift's columns -> a folder with `data.jsonl` in the workbench's columns, and `images/`.

1. The first column of COLUMN_NAMES that a row has is read as ours; `columns` says otherwise where names differ.
2. A row that cannot be converted is skipped, counted by reason and named; it never ends the import.
3. What is written loads: each row goes through the loader's own checks first.
4. Nothing is changed in silence: removed `<image>` marks, boxes left out or moved by a rounding are counted as notes.
5. The folder appears under its name when it is whole; a killed import leaves only a hidden `.NAME.*.partial` folder,
   which the next one clears.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from workbench.conversations import Refused, plain_text, split_conversation
from workbench.datasets import decode_image, example_from_values, image_size
from workbench.errors import ConfigError, DataError, unknown
from workbench.folders import new_folder
from workbench.layouts import LAYOUTS, Layout, load_layout
from workbench.tables import Table, open_table, show

BOX_FORMATS = ("xyxy", "xywh", "cxcywh")
BOX_UNITS = {"pixels": None, "normalised": 1.0, "percent": 100.0, "thousand": 1000.0}  # the number that is a whole side
PRIVILEGED_AS = ("caption", "hint")
COLUMN_NAMES = {
    "id": ("id",),
    "question": ("question", "prompt", "messages", "conversations", "query"),
    "images": ("images", "image"),
    "answer": ("answer", "solution", "ground_truth"),
    "reference": ("reference", "completion", "response"),
    "boxes": ("boxes", "bboxes", "bbox", "objects", "privileged_boxes"),
    "crop": ("crop", "teacher_images", "privileged_images"),
    "caption": ("caption",),
    "hint": ("hint",),
    "domain": ("domain",),
}
DATA_FILE, IMAGES_FOLDER = "data.jsonl", "images"
_MOST_OVERSHOOT = 1.0  # pixels by which a box may leave the image through rounding; it is then cut, and counted
_SHOWN = 3  # rows named per reason
_BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)


@dataclass
class ImportReport:
    """What an import wrote and what it left out."""

    path: Path  # the data file
    written: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # rows by reason
    first_skipped: dict[str, list[str]] = field(default_factory=dict)  # per reason: file:row and detail
    notes: Counter[str] = field(default_factory=Counter)  # changes to rows that were written
    columns: dict[str, str] = field(default_factory=dict)  # ours -> theirs, as used
    unused: tuple[str, ...] = ()  # their columns that nothing was read from

    def __str__(self) -> str:
        lines = [f"{self.written:,} rows written to {self.path}, {self.skipped.total():,} skipped."]
        lines += [f"columns: {', '.join(f'{ours} from {theirs}' for ours, theirs in self.columns.items())}"]
        if self.unused:
            lines.append(f"not read: {', '.join(self.unused)}")
        lines += [f"note: {count:,} x {note}" for note, count in self.notes.most_common()]
        for reason, count in self.skipped.most_common():
            lines += [f"skipped: {count:,} x {reason}", *(f"    {first}" for first in self.first_skipped[reason])]
        return "\n".join(lines)

    def skip(self, reason: str, where: str) -> None:
        self.skipped[reason] += 1
        firsts = self.first_skipped.setdefault(reason, [])
        if len(firsts) < _SHOWN:
            firsts.append(where)


@dataclass(frozen=True)
class _Importer:
    """Where rows come from and go to, and how they are read."""

    table: Table
    target: Path  # the folder while it is written
    destination: Path  # its name when it is whole
    box_format: str
    box_units: str
    names: dict[str, tuple[str, ...]]
    layout: Layout
    report: ImportReport


def import_dataset(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str = "plain",
    box_format: str | None = None,
    box_units: str | None = None,
    privileged_as: str = "caption",
    split: str | None = None,
    columns: dict[str, str] | None = None,
    limit: int | None = None,
) -> ImportReport:
    """Convert `source` (a file, saved folder or hf:NAME?split=S) into the new folder `destination`.

    layout         whose columns these are, one of LAYOUTS
    box_format     xyxy corners, xywh corner and size, cxcywh centre and size; None = the layout's
    box_units      pixels, normalised (0 to 1), percent (0 to 100), thousand (0 to 1000); None = the layout's
    privileged_as  what the text of `privileged_context` is: caption or hint
    columns        ours -> theirs, where COLUMN_NAMES does not find them
    limit          convert only the first so many rows
    Raises         ConfigError for an unknown option; DataError if the source cannot be read, the destination exists or
                   cannot be written, or not one row could be converted
    """
    chosen = load_layout(layout)
    names = _column_names(columns or {}, privileged_as, chosen)
    box_format, box_units = box_format or chosen.box_format, box_units or chosen.box_units
    _check_options(box_format, box_units, limit)
    destination = Path(destination)
    if os.path.lexists(destination):
        raise DataError(f"{destination} exists already. Name a new folder; an import never writes into an old one.")
    table = open_table(source, split=split)
    report = ImportReport(destination / DATA_FILE)
    try:
        with new_folder(destination) as target:
            (target / IMAGES_FOLDER).mkdir()
            importer = _Importer(table, target, destination, box_format, box_units, names, chosen, report)
            _convert_all(importer, columns or {}, limit)
    except OSError as error:
        raise DataError(
            f"{destination} cannot be written ({error}). Check space and rights, or name another."
        ) from None
    return report


def _column_names(columns: dict[str, str], privileged_as: str, layout: Layout) -> dict[str, tuple[str, ...]]:
    if privileged_as not in PRIVILEGED_AS:
        raise ConfigError(unknown("privileged_as", privileged_as, PRIVILEGED_AS))
    names = {**COLUMN_NAMES, **layout.columns}
    names[privileged_as] += ("privileged_context",)
    for ours, theirs in columns.items():
        if ours not in names:
            raise ConfigError(unknown("column", ours, names) + " Write ours=theirs, as in answer=label.")
        names[ours] = (theirs,)
    return names


def _check_options(box_format: str, box_units: str, limit: int | None) -> None:
    if box_format not in BOX_FORMATS:
        raise ConfigError(unknown("box format", box_format, BOX_FORMATS))
    if box_units not in BOX_UNITS:
        raise ConfigError(unknown("box units", box_units, BOX_UNITS))
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}. Leave it out to convert all rows.")


def _convert_all(importer: _Importer, columns: dict[str, str], limit: int | None) -> None:
    report, seen, theirs = importer.report, set(), {}
    with (importer.target / DATA_FILE).open("w", encoding="utf-8") as data:
        for count, row in enumerate(importer.table.rows, start=1):
            try:
                values = row.values()
                theirs.update(dict.fromkeys(values))
                converted, notes = _convert(importer, values, default_id=str(row.number))
                if converted["id"] in seen:
                    raise Refused("id repeated", show(converted["id"]))
                example_from_values(converted, row.origin, folder=importer.target, default_id="")
            except Refused as refused:
                report.skip(refused.reason, f"{row.origin}: {refused.detail}" if refused.detail else row.origin)
            except DataError as error:
                report.skip("row cannot be read", str(error))
            else:
                seen.add(converted["id"])
                report.notes.update(+notes)
                report.written += 1
                data.write(json.dumps(converted, ensure_ascii=False) + "\n")
            if count == limit:
                break
    for ours, name in columns.items():
        if theirs and name not in theirs:
            raise ConfigError(f"{ours}={name}: {importer.table.name}: " + unknown("column", name, theirs))
    report.unused = tuple(name for name in theirs if name not in {*report.columns.values(), *importer.layout.also_read})
    if report.written == 0:
        reasons = str(report).partition("\n")[2] if report.skipped else "it has no rows"
        raise DataError(
            f"not one row of {importer.table.name} could be converted.\n{reasons}\n"
            f"Columns of other names: --column ours=theirs, or --layout, one of {', '.join(LAYOUTS)}."
        )


def _convert(importer: _Importer, values: dict[str, Any], default_id: str) -> tuple[dict[str, Any], Counter[str]]:
    """A row in our columns, and what was changed on the way. Raises Refused."""
    notes: Counter[str] = Counter()
    found = {ours: _find(importer, values, ours) for ours in importer.names}
    talk = split_conversation(found["question"], notes)
    pictures = _as_list(found["images"]) or talk.images
    if not talk.question:
        raise Refused("question is empty")
    if talk.num_image_marks > len(pictures):
        raise Refused("more <image> marks than images", f"{talk.num_image_marks} marks, {len(pictures)} images")
    crops, answer = _as_list(found["crop"]), _scalar_text(found["answer"], "answer")
    if importer.layout.boxed_answer and answer and (boxed := _BOXED.search(answer)):
        answer = boxed.group(1)
        notes["answer taken out of \\boxed{}"] += 1
    if len(crops) > 1:
        notes["teacher image after the first left out"] += len(crops) - 1
    converted = {
        "id": _scalar_text(found["id"], "id") or default_id,
        "question": "\n".join((talk.question, *_choices(importer, values))),
        "images": [_store(importer, picture) for picture in pictures],
        "answer": answer,
        "reference": plain_text(found["reference"], notes) or talk.reference,
        "boxes": [],
        "crop": _store(importer, crops[0]) if crops else None,
        "caption": plain_text(found["caption"], notes),
        "hint": plain_text(found["hint"], notes),
        "history": [{"role": role, "text": text} for role, text in talk.history],
        "domain": _scalar_text(found["domain"], "domain"),
    }
    if found["boxes"] is not None:
        if not pictures:
            raise Refused("boxes without an image")
        size = _size(importer.target / converted["images"][0])
        boxes, labels = found["boxes"], values.get(importer.layout.box_labels or "")
        if labels and isinstance(boxes, list):
            boxes = {"bbox": boxes, "ref": labels}
        converted["boxes"] = _boxes(boxes, size, importer.box_format, importer.box_units, notes)
    return {name: value for name, value in converted.items() if value not in (None, [], "")}, notes


def _choices(importer: _Importer, values: dict[str, Any]) -> list[str]:
    """The answers to choose from, a line each, as (A), (B), ...; none if the layout or the row has none."""
    found = [values.get(name) for name in importer.layout.choices]
    if len(found) == 1:
        found = _as_list(found[0])
    given = [(letter, _scalar_text(one, "choice")) for letter, one in zip(ascii_uppercase, found, strict=False)]
    return [f"({letter}) {text}" for letter, text in given if text]


def _find(importer: _Importer, values: dict[str, Any], ours: str) -> Any:
    """The first of their columns for ours that the row fills."""
    for name in importer.names[ours]:
        if values.get(name) not in (None, "", []):
            importer.report.columns.setdefault(ours, name)
            return values[name]
    return None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _scalar_text(value: Any, column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{column} is neither text nor a number", show(value))
    return str(value)


def _store(importer: _Importer, picture: Any) -> str:
    """The path that the row gets: of the source's own file, or of the embedded image, written once under its digest."""
    if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
        return _store_embedded(importer, picture["bytes"])
    path = picture.get("path") if isinstance(picture, dict) else picture
    if not isinstance(path, str) or not path:
        raise Refused("an image is neither a path nor embedded", show(picture))
    if "://" in path:
        raise Refused("an image is a web address; download it first", show(path))
    full = importer.table.folder / path
    if not os.path.isfile(full):
        raise Refused("image file does not exist", show(str(full)))
    _size(full)
    if Path(path).is_absolute():
        return path
    return os.path.relpath(os.path.realpath(full), os.path.realpath(importer.target))


def _store_embedded(importer: _Importer, data: bytes) -> str:
    name = f"{IMAGES_FOLDER}/{hashlib.sha256(data).hexdigest()[:20]}.png"
    if not (importer.target / name).is_file():
        try:
            image = decode_image(data)
        except DataError as error:
            raise Refused("image cannot be read", str(error)) from None
        image.save(importer.target / name)
    return name


def _size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except DataError as error:
        raise Refused("image cannot be read", str(error)) from None


def _boxes(
    value: Any, size: tuple[int, int], box_format: str, box_units: str, notes: Counter[str]
) -> list[dict[str, float | str]]:
    """Boxes of any known form as {x0, y0, x1, y1, label} in pixels of an image of `size`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Refused("boxes cannot be read", show(value)) from None
    converted = []
    for numbers, label, units in _listed_boxes(value, box_units, notes):
        corners = _corners(numbers, size, box_format, units, notes)
        converted.append(
            dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True)) | ({"label": label} if label else {})
        )
    return converted


def _listed_boxes(value: Any, box_units: str, notes: Counter[str]) -> list[tuple[list[Any], str, str]]:
    """(four numbers, label, units) of each box: of [..], [[..], ..], [{bbox, label}, ..] or {bbox: [[..], ..], ref: ..}."""
    if isinstance(value, dict):
        entries = value.get("bbox") or []
        labels = value.get("ref") or value.get("label") or value.get("category") or []
        images = value.get("image_id") or []
        units = "normalised" if value.get("bbox_type") == "norm1" else box_units
    else:
        entries, labels, images, units = value, [], [], box_units
    if not isinstance(entries, list):
        raise Refused("boxes cannot be read", show(value))
    if len(entries) == 4 and not any(isinstance(entry, list | dict) for entry in entries):
        entries = [entries]
    labels = labels if isinstance(labels, list) else [labels]
    if len(labels) not in (1, len(entries)):
        notes["label left out: not one for each box"] += len(labels)
        labels = []
    listed = []
    for idx, entry in enumerate(entries):
        label = labels[idx if len(labels) > 1 else 0] if labels else ""
        if isinstance(entry, dict):
            label = entry.get("label") or entry.get("ref") or label
            corners = [entry.get(key) for key in ("x0", "y0", "x1", "y1")]
            entry = entry.get("bbox") if entry.get("bbox") is not None else corners
        if idx < len(images) and images[idx] not in (0, None):
            notes["box of an image after the first left out"] += 1
        elif isinstance(entry, list) and len(entry) == 2:
            notes["point left out: not a box"] += 1
        else:
            listed.append((entry, label if isinstance(label, str) else "", units))
    return listed


def _corners(
    numbers: Any, size: tuple[int, int], box_format: str, box_units: str, notes: Counter[str]
) -> tuple[float, float, float, float]:
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_number(number) for number in numbers):
        raise Refused("a box is not four numbers", show(numbers))
    a, b, c, d = numbers
    if box_format == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif box_format == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    width, height = size
    whole = BOX_UNITS[box_units]
    scale_x, scale_y = (1.0, 1.0) if whole is None else (width / whole, height / whole)
    x0, y0, x1, y1 = (round(number, 2) for number in (a * scale_x, b * scale_y, c * scale_x, d * scale_y))
    shown = f"{show(numbers)} is [{x0:g}, {y0:g}, {x1:g}, {y1:g}] in pixels of {width} x {height}"
    if x1 <= x0 or y1 <= y0:
        raise Refused("a box is empty (is the box format right?)", shown)
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise Refused("a box is smaller than a pixel (are the box units right?)", shown)
    if min(x0, y0) < -_MOST_OVERSHOOT or x1 > width + _MOST_OVERSHOOT or y1 > height + _MOST_OVERSHOOT:
        raise Refused("a box leaves the image (are box format and units right?)", shown)
    cut = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
    if cut != (x0, y0, x1, y1):
        notes["box cut at the image's edge, by a pixel at most"] += 1
    return cut


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
