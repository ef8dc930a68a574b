"""Convert one foreign row to our columns. Raises Refused if that fails; counts all changes."""

import datetime
import decimal
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from workbench.data.conversations import (
    VIDEO,
    Refused,
    decode_text,
    plain_text,
    reference_text,
    split_conversation,
    split_history,
)
from workbench.data.examples import VIDEO_COLUMNS
from workbench.data.grading import final_answer
from workbench.data.importing.boxes import BoxContext, read_boxes
from workbench.data.importing.corners import to_number
from workbench.data.importing.pictures import picture_size, store_picture
from workbench.data.importing.report import ImportReport
from workbench.data.layouts import Layout
from workbench.data.scripts import is_blank
from workbench.data.sources import Table
from workbench.data.values import EXACT_FLOAT, date_text, number_text, parse_structure, without_missing
from workbench.errors import show

COLUMN_NAMES = {
    "id": ("id",),
    "question": ("question", "prompt", "messages", "conversations", "query"),
    "images": ("images", "image", "image_path", "file_name"),
    "answer": ("answer", "solution", "ground_truth"),
    "reference": ("reference", "completion", "response"),
    "boxes": ("boxes", "bboxes", "bbox", "objects", "privileged_boxes"),
    "crop": ("crop", "teacher_images", "privileged_images"),
    "crop_box": ("crop_box",),
    "caption": ("caption",),
    "hint": ("hint",),
    "history": ("history",),
    "turns": ("turns",),
    "domain": ("domain",),
    "marks": ("marks",),
}
NO_QUESTION = "question is empty"
_TEXT_LIST = re.compile(r"\s*\[\s*['\"]")  # a list of texts; numbers in brackets may be the answer itself
_HASHED = re.compile(r"####\s*([^\n#]+)\s*\Z")  # the last line, as in GSM8K
_MOST_WRAPPER = 30  # more characters around an answer are a worked solution
_TEXTS = ("answer", "reference", "caption", "hint", "domain")
_MISSING_AS_TEXT = ("nan", "NaN", "None", "null", "NULL", "<NA>", "NaT")
_CHOICES = ("choices", "options")
_MISSING = (None, "", [], {})


@dataclass(frozen=True)
class Importer:
    """Source, destination and options of an import."""

    table: Table
    target: Path  # temporary folder
    destination: Path  # final folder
    box_format: str
    box_units: str
    names: dict[str, tuple[str, ...]]
    layout: Layout
    report: ImportReport


def convert_row(
    importer: Importer, values: dict[str, Any], default_id: str
) -> tuple[dict[str, Any], Counter[str], dict[str, str]]:
    """Convert a row. Returns our columns, notes on changes, and their column for each of ours. Raises Refused."""
    notes: Counter[str] = Counter()
    columns = {ours: _first_filled(importer, values, ours) for ours in importer.names}
    given = {ours: None if name is None else values[name] for ours, name in columns.items()}
    for column in VIDEO_COLUMNS:
        if values.get(column) not in _MISSING:
            raise Refused(VIDEO, show(values[column]))
    talk = split_conversation(given["question"], notes)
    pictures = as_list(given["images"]) or list(talk.images)
    if is_blank(talk.question):
        raise Refused(NO_QUESTION)
    if talk.num_image_marks > len(pictures):
        raise Refused("more <image> marks than images", f"{talk.num_image_marks} marks, {len(pictures)} images")
    crops = [_store(importer, crop) for crop in as_list(given["crop"])]
    earlier = _history(given["history"], notes)
    converted: dict[str, Any] = {
        "id": scalar_text(given["id"], "id", notes) or default_id,
        "question": "\n".join((talk.question, *_choices(importer, values, notes))),
        "images": [_store(importer, picture) for picture in pictures],
        "answer": _answer(importer, given["answer"], notes),
        "reference": reference_text(given["reference"], notes) or talk.reference,
        "crop": crops if len(crops) > 1 else next(iter(crops), None),
        "caption": plain_text(given["caption"], notes),
        "hint": plain_text(given["hint"], notes),
        "history": [{"role": role, "text": text} for role, text in (*earlier, *talk.history)],
        "turns": _turns(importer, given["turns"], notes),
        "domain": scalar_text(given["domain"], "domain", notes),
        "marks": _marks(given["marks"], notes),
    }
    converted |= _evidence_boxes(importer, given, values, pictures, converted["images"], notes)
    _note_doubtful(importer, values, converted, notes)
    converted = {name: value for name, value in converted.items() if value not in _MISSING}
    used = {ours: name for ours, name in columns.items() if name is not None and ours in converted}
    return converted, notes, used


def _note_doubtful(importer: Importer, values: dict[str, Any], converted: dict[str, Any], notes: Counter[str]) -> None:
    """Count texts that may mean a missing value, and choices that the question does not contain."""
    for name in _TEXTS:
        if (converted[name] or "").strip() in _MISSING_AS_TEXT:
            notes[f"{name} is the text {converted[name].strip()}, kept unchanged"] += 1
    for name in _CHOICES:
        if isinstance(values.get(name), list) and name not in importer.layout.choices:
            notes[f"{name} not written into the question (layouts do), but the answer may refer to them"] += 1


def _first_filled(importer: Importer, values: dict[str, Any], ours: str) -> str | None:
    """Return the first of their columns for ours that the row fills."""
    return next((name for name in importer.names[ours] if values.get(name) not in _MISSING), None)


def _evidence_boxes(
    importer: Importer,
    given: dict[str, Any],
    values: dict[str, Any],
    pictures: list[Any],
    stored: list[str],
    notes: Counter[str],
) -> dict[str, Any]:
    """Build the columns boxes and crop_box, in pixels of the first image."""
    if given["boxes"] is None and given["crop_box"] is None:
        return {}
    size = picture_size(importer.target / stored[0]) if stored else None
    context = BoxContext(pictures, size, importer.box_format, importer.box_units)
    boxes, labels = given["boxes"], values.get(importer.layout.box_labels or "")
    if labels and isinstance(boxes, list):
        boxes = {"bbox": boxes, "ref": labels}
    read: dict[str, Any] = {} if boxes is None else {"boxes": read_boxes(boxes, context, notes)}
    if read.get("boxes") and _stated_size(values) not in (None, size):
        notes["boxes of a row whose width and height differ from its image: are they pixels of another size?"] += 1
    if given["crop_box"] is not None:
        places = read_boxes(given["crop_box"], context, notes)
        if len(places) > 1:
            raise Refused("crop_box is several boxes", show(given["crop_box"]))
        read |= {"crop_box": places[0]} if places else {}
    return read


def _stated_size(values: dict[str, Any]) -> tuple[float, float] | None:
    """Return the width and height given in columns of a row."""
    for names in (("width", "height"), ("image_width", "image_height")):
        numbers = [to_number(values.get(name)) for name in names]
        if None not in numbers:
            return numbers[0], numbers[1]
    return None


def _answer(importer: Importer, value: Any, notes: Counter[str]) -> str | None:
    """Extract the final answer from a list stored as text, or from <answer>, \\boxed{} or #### in a worked solution."""
    if isinstance(value, str) and _TEXT_LIST.match(value) and isinstance(parsed := parse_structure(value), list):
        value = parsed
    answer = scalar_text(value, "answer", notes)
    if answer is None or not isinstance(value, str):
        return answer
    final, mark = _stated_answer(answer)
    if not final:
        return answer
    notes[f"answer taken out of {mark}"] += 1
    if len(answer) > len(final) + _MOST_WRAPPER:
        notes["a worked solution around an answer left out (--column reference=NAME reads it too)"] += 1
    return final


def _stated_answer(text: str) -> tuple[str, str]:
    """Return the answer that a worked solution states and the mark before it; both empty without a mark."""
    if last := _HASHED.search(text):
        return last.group(1).strip(), "####"
    mark = next((mark for mark in ("<answer>", "\\boxed{") if mark in text), "")
    return (final_answer(text), mark.replace("{", "{}")) if mark else ("", "")


def _choices(importer: Importer, values: dict[str, Any], notes: Counter[str]) -> list[str]:
    """Format the choices as lines (A), (B), ...; none if the layout or the row has none."""
    choices = [values.get(name) for name in importer.layout.choices]
    if len(choices) == 1:
        choices = as_list(choices[0])
    texts = [
        (letter, scalar_text(choice, "choice", notes)) for letter, choice in zip(ascii_uppercase, choices, strict=False)
    ]
    return [f"({letter}) {text}" for letter, text in texts if text]


def _history(value: Any, notes: Counter[str]) -> tuple[tuple[str, str], ...]:
    """Convert earlier turns; text that is not a list of turns is left out."""
    if value is None or (isinstance(value, str) and parse_structure(value) is None):
        notes["history not read: it is not a list of turns"] += value is not None
        return ()
    return split_history(value, notes)


def _turns(importer: Importer, value: Any, notes: Counter[str]) -> list[dict[str, Any]]:
    """Convert the column turns; lists of another form are left out."""
    if value is None:
        return []
    value = parse_structure(value) if isinstance(value, str) else value
    entries = (
        [{"text": entry} if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else []
    )
    if not entries or not all(isinstance(item, dict) and set(item) <= {"text", "images"} for item in entries):
        notes["turns not read: not a list of {text, images}"] += 1
        return []
    return [
        {"text": entry.get("text"), "images": [_store(importer, item) for item in as_list(entry.get("images"))]}
        for entry in entries
    ]


def _marks(value: Any, notes: Counter[str]) -> list[dict[str, Any]]:
    """Return marks unchanged, since the loader checks them; lists of another form are left out."""
    value = parse_structure(value) if isinstance(value, str) else value
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) and "pattern" in entry for entry in value):
        notes["marks not read: not a list of {pattern, kind, truth}"] += 1
        return []
    return value


def as_list(value: Any) -> list[Any]:
    """Convert a value to a list: empty if missing, parsed if it is text of a list, else of the value itself."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        parsed = parse_structure(value)
        value = value if parsed is None else parsed
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def scalar_text(value: Any, column: str, notes: Counter[str]) -> str | None:
    """Convert a text, number, date, UTF-8 bytes, or a list of one of these, to text. Raises Refused."""
    if isinstance(value, list) and value and all(entry == value[0] for entry in value):
        notes[f"{column} taken out of a list of one, or of equal ones"] += 1
        value = without_missing(value[0])
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return decode_text(value, notes)
    if isinstance(value, datetime.date | datetime.time):
        notes[f"{column} is a date, written as ISO 8601"] += 1
        return date_text(value)
    if isinstance(value, bool):
        raise Refused(f"{column} is neither text nor a number", f"{value}: write a word instead, such as yes or true")
    if not isinstance(value, int | float | decimal.Decimal) or (text := number_text(value)) is None:
        raise Refused(f"{column} is neither text nor a number", show(value))
    if isinstance(value, float) and abs(value) > EXACT_FLOAT:
        notes[f"{column} is a floating-point number beyond 2^53, its last digits may be lost"] += 1
    return text


def _store(importer: Importer, picture: Any) -> str:
    return store_picture(picture, importer.table.folder, importer.target)
