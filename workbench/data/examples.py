"""Load examples from JSONL, Parquet, folders saved by `datasets`, Hugging Face names, and the built-in scenes.

1. Every row is validated when it is loaded, so that a faulty row is reported before training.
2. A message names file, row (from 1; the line of a JSONL file), column, value, allowed values and remedy.
3. Relative paths start at the data file. Absolute paths and ".." are followed: see docs/data.md.
4. Image files must exist; their pixels are read, and bounded, when first opened. Images embedded in Parquet are decoded
   at once and kept in memory, up to MAX_EMBEDDED_BYTES.
"""

import dataclasses
import decimal
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from workbench.data.contexts import missing_evidence
from workbench.data.conversations import holds_turns
from workbench.data.counterparts import Counterparts
from workbench.data.embedded import NotAPicture, resolve_picture
from workbench.data.images import decode_image, image_size
from workbench.data.picture_bounds import PictureBounds
from workbench.data.scenes import SPLITS, check_split, make_examples
from workbench.data.scenes.sentences import as_sentences
from workbench.data.scenes.turns import split_into_turns
from workbench.data.scripts import is_blank
from workbench.data.sources import no_rows, open_table, parse_source, show
from workbench.data.values import is_missing, number_text
from workbench.errors import ConfigError, DataError, unknown
from workbench.types import PRIVILEGED, VISIBLE, Box, Evidence, Example, Mark, Turn

COLUMNS = {
    "id": "text, unique; row number if absent",
    "question": "text, required",
    "images": "list of image paths, or of embedded images",
    "answer": "text or a number: the final answer alone, for scoring",
    "reference": "text: a whole worked answer",
    "boxes": "list of {x0, y0, x1, y1, label} in pixels of the first image",
    "crop": "image path or embedded image, or a list of them",
    "crop_box": "{x0, y0, x1, y1}: place of the first crop in the first image, drawn for people and shown to no model",
    "caption": "text: a description",
    "hint": "text: where to look, without the answer",
    "history": "list of {role, text}: earlier turns",
    "turns": "list of {text, images}: the question revealed part by part",
    "domain": "text: question family",
    "marks": "list of {pattern, kind, truth}: what parts of an answer are",
}
MAX_EMBEDDED_BYTES = 4 * 2**30  # of decoded embedded images in one load
SCENES_DEFAULTS = {"count": 256, "seed": 0, "start": 0}
_ROLES = ("system", "user", "assistant")
_FOREIGN = ("prompt", "messages", "image", "privileged_context", "teacher_images", "solution", "bbox", "objects")
_MAY_BE_NUMBERS = ("id", "answer", "domain")  # 27.0, as pandas writes 27 beside a missing value, is read as 27
VIDEO_COLUMNS = ("video", "videos")
FRAMES = "Write some of its frames as image files (ffmpeg -i FILE -vf fps=1 frame-%03d.png) and list them in images"
_SHOWN = 3  # rows named in a message about many


class EvidenceSplit(NamedTuple):
    """Examples with all evidence of some contexts, and the others with the first column that they lack."""

    usable: list[Example]
    skipped: list[tuple[Example, str]]


def load_examples(
    source: str | Path,
    *,
    max_examples: int | None = None,
    root: Path | None = None,
    folders: Sequence[Path] | None = None,
    max_bytes: int | None = None,
) -> list[Example]:
    """Load all examples of `source`, or the first `max_examples`.

    source     scenes:SPLIT?count=N&seed=N&start=N&families=A,B, a .jsonl, .json or .parquet file, a folder saved by
               `datasets`, or hf:NAME?split=S
    root       folder for relative image paths; None = the folder of the data file
    folders    further allowed folders of image files; None = those of this process (picture_bounds.py)
    max_bytes  limit of decoded embedded images; None = MAX_EMBEDDED_BYTES
    Raises     ConfigError for an unknown `source`, DataError at the first faulty row, TooManyPicturesError before
               decoding an image that exceeds max_bytes
    """
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples must be at least 1, got {max_examples}. Leave it out to load all examples.")
    if str(source).startswith("scenes:"):
        return _load_scenes(str(source), max_examples)
    table = open_table(source)
    examples: list[Example] = []
    seen: dict[str, str] = {}
    folder = root or table.folder
    bounds = PictureBounds(table.name, folder, folders, MAX_EMBEDDED_BYTES if max_bytes is None else max_bytes)
    for row in table.rows:
        values = row.values()
        bounds.check_row(values, row.origin, row.number)
        example = example_from_values(values, row.origin, folder=folder, default_id=str(row.number))
        bounds.check_files(example)
        if example.id in seen:
            raise DataError(
                f'{row.origin}, column "id": "{example.id}" is also the id of {seen[example.id]}. '
                "Ids must be unique; rename one, or drop the column to use row numbers."
            )
        seen[example.id] = row.origin
        examples.append(example)
        if len(examples) == max_examples:
            break
    if not examples:
        raise no_rows(table.name)
    others = Counterparts(examples)
    return [dataclasses.replace(example, others=others) for example in examples]


def check_evidence(examples: Iterable[Example], contexts: Iterable[str]) -> None:
    """Raise DataError if examples lack evidence for any of the contexts; it counts them and names the first."""
    examples = list(examples)
    faults = []
    for context in contexts:
        lacking: dict[str, list[str]] = {}
        for example in examples:
            column = missing_evidence(example, context)
            if column is not None:
                lacking.setdefault(column, []).append(example.origin or example.id)
        for column, origins in lacking.items():
            more = ", ..." if len(origins) > _SHOWN else ""
            faults.append(
                f'{len(origins)} of {len(examples)} examples have no "{column}", which context "{context}" needs: '
                f"{', '.join(origins[:_SHOWN])}{more}"
            )
    if faults:
        raise DataError("; ".join(faults) + ". Add the column, drop such rows, or choose another context.")


def split_by_evidence(examples: Iterable[Example], contexts: Iterable[str]) -> EvidenceSplit:
    """Split examples into those with all evidence of the contexts and the others."""
    contexts = tuple(contexts)
    split = EvidenceSplit([], [])
    for example in examples:
        lacking = next((column for context in contexts if (column := missing_evidence(example, context))), None)
        if lacking is None:
            split.usable.append(example)
        else:
            split.skipped.append((example, lacking))
    return split


def _load_scenes(source: str, max_examples: int | None) -> list[Example]:
    """Load "scenes:eval?count=256&seed=3&start=0&families=tag,color"; defaults: SCENES_DEFAULTS, all families.

    "style=sentences" writes questions and answers as sentences; "turns=caption" or "turns=rows" reveals the questions
    over turns.
    """
    split, query = parse_source(source, "scenes:", (*SCENES_DEFAULTS, "families", "style", "turns"))
    if not split:
        raise ConfigError(f'"{source}" names no split. Write scenes:SPLIT, with SPLIT one of {", ".join(SPLITS)}.')
    check_split(split)
    families, style, form = (query.pop(name, None) for name in ("families", "style", "turns"))
    numbers = dict(SCENES_DEFAULTS)
    for name, value in query.items():
        low = 1 if name == "count" else 0
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < low:
            raise ConfigError(f'"{source}": {name} must be a whole number of at least {low}, got "{value}".')
        numbers[name] = int(value)
    if max_examples is not None:
        numbers["count"] = min(max_examples, numbers["count"])
    chosen = None if families is None else tuple(name.strip() for name in families.split(","))
    try:
        examples = make_examples(split, **numbers, families=chosen)
        if style is not None:
            examples = [as_sentences(example, style) for example in examples]
        return examples if form is None else [split_into_turns(example, form) for example in examples]
    except ConfigError as error:
        raise ConfigError(f'"{source}": {error}') from None


def example_from_values(values: dict[str, Any], origin: str, *, folder: Path, default_id: str) -> Example:
    """Build an example from the columns of a row.

    origin  file and row, for messages
    folder  where relative image paths start
    Raises  DataError naming origin and column
    """
    _refuse_unknown_columns(values, origin)
    question = _text(values, "question", origin)
    if question is None or is_blank(question):
        raise fault(origin, "question", question, "must be text that is not empty", "Fill it in, or drop the row")
    if holds_turns(question):
        remedy = "`workbench import` parses them"
        raise fault(origin, "question", question, "must be the question alone, not turns kept as text", remedy)
    images = _images(values, origin, folder)
    crops = _crops(values.get("crop"), origin, folder)
    if values.get("crop_box") is not None and not crops:
        remedy = "Give it, or drop this: a crop is cut from the first box"
        raise fault(origin, "crop_box", values["crop_box"], "needs a crop", remedy)
    return Example(
        id=_id(values, origin) or default_id,
        question=question,
        images=images,
        answer=_text(values, "answer", origin),
        reference=_text(values, "reference", origin),
        evidence=Evidence(
            boxes=_boxes(_list(values, "boxes", origin), "boxes", images, origin),
            crops=crops,
            caption=_text(values, "caption", origin),
            hint=_text(values, "hint", origin),
            crop_box=next(iter(_boxes([values["crop_box"]], "crop_box", images, origin)), None)
            if values.get("crop_box") is not None
            else None,
        ),
        history=tuple(_turn(entry, origin, idx) for idx, entry in enumerate(_list(values, "history", origin))),
        turns=_revealed(values, origin, folder),
        domain=_text(values, "domain", origin) or "",
        marks=tuple(_mark(entry, origin, idx) for idx, entry in enumerate(_list(values, "marks", origin))),
        origin=origin,
    )


def fault(origin: str, column: str, value: Any, allowed: str, remedy: str) -> DataError:
    """Build the error for one value, from its place, value, allowed values and remedy."""
    return DataError(f'{origin}, column "{column}": {allowed}, got {show(value)}. {remedy}.')


def _refuse_unknown_columns(values: dict[str, Any], origin: str) -> None:
    for column in VIDEO_COLUMNS:
        if not is_missing(values.get(column)):
            raise fault(origin, column, values[column], "videos are not read", FRAMES)
    for column in values:
        if column not in COLUMNS:
            message = f"{origin}: " + unknown("column", column, COLUMNS)
            if column in _FOREIGN:
                message += " Data of TRL or ms-swift is converted by `workbench import`."
            raise DataError(message)


def _text(values: dict[str, Any], column: str, origin: str) -> str | None:
    value = values.get(column)
    if column in _MAY_BE_NUMBERS and _is_number(value):
        value = number_text(value) or value
    if value is None or isinstance(value, str):
        return _unicode(value, column, origin)
    raise fault(origin, column, value, "must be text", f'Write it in quotes, as in "{column}": "..."')


def _unicode(text: str | None, column: str, origin: str) -> str | None:
    """Return the text. Raises DataError for half of a surrogate pair ("\\ud83d"), which JSON can express."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise fault(
            origin, column, text, f"must be whole characters (character {error.start} is half of one)", "Write it again"
        ) from None
    return text


def _id(values: dict[str, Any], origin: str) -> str | None:
    name = _text(values, "id", origin)
    if name is not None and is_blank(name):
        raise fault(origin, "id", name, "must not be empty", "Name the row, or drop the column to use row numbers")
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)


def _list(values: dict[str, Any], column: str, origin: str) -> list[Any]:
    value = values.get(column)
    if value is None:
        return []
    if not isinstance(value, list):
        raise fault(origin, column, value, "must be a list", f"Write it in brackets; {column} is a {COLUMNS[column]}")
    return value


def _record(entry: Any, column: str, origin: str, keys: tuple[str, ...], required: int) -> dict[str, Any]:
    """Check that an entry of a list column is a dict with known keys, including the first `required`."""
    form = "{" + ", ".join(keys) + "}"
    if not isinstance(entry, dict):
        raise fault(origin, column, entry, f"must be {form}", "Write the keys out")
    for key in entry:
        if key not in keys:
            raise DataError(f'{origin}, column "{column}": ' + unknown("key", str(key), keys))
    for key in keys[:required]:
        if entry.get(key) is None:
            raise fault(origin, column, entry, f'must be {form} with "{key}"', "Add it")
    return entry


def _entry_text(entry: dict[str, Any], key: str, column: str, origin: str) -> str:
    value = entry.get(key)
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise fault(origin, f"{column}.{key}", value, "must be text", "Write it in quotes")
    return _unicode(value, f"{column}.{key}", origin) or ""


def _images(values: dict[str, Any], origin: str, folder: Path) -> tuple[Image.Image | Path, ...]:
    entries = _list(values, "images", origin)
    return tuple(_image(entry, f"images[{idx}]", origin, folder) for idx, entry in enumerate(entries))


def _crops(value: Any, origin: str, folder: Path) -> tuple[Image.Image | Path, ...]:
    if isinstance(value, list):
        return tuple(_image(entry, f"crop[{idx}]", origin, folder) for idx, entry in enumerate(value))
    return () if value is None else (_image(value, "crop", origin, folder),)


def _image(value: Any, column: str, origin: str, folder: Path) -> Image.Image | Path:
    """Return the path of an existing image file, or the decoded embedded image."""
    try:
        resolved = resolve_picture(value)
    except NotAPicture as error:
        raise fault(origin, column, value, error.allowed, error.remedy) from None
    if isinstance(resolved, bytes):
        try:
            return decode_image(resolved)
        except DataError as error:
            raise DataError(f'{origin}, column "{column}": {error}') from None
    path = folder / resolved
    if not os.path.isfile(path):  # unlike Path.is_file, false for names that are too long
        remedy = f"Relative paths start at {show(str(folder))}"
        raise fault(origin, column, resolved, "must be an image file that exists", remedy)
    return path


def _boxes(entries: list[Any], name: str, images: tuple[Image.Image | Path, ...], origin: str) -> tuple[Box, ...]:
    if not entries:
        return ()
    if not images:
        raise DataError(f'{origin}, column "{name}": the row has boxes and no image. Add the image, or drop the boxes.')
    try:
        size = image_size(images[0])
    except DataError as error:
        raise DataError(f'{origin}, column "images[0]": {error}') from None
    return tuple(
        _box(entry, f"{name}[{idx}]" if name == "boxes" else name, size, origin) for idx, entry in enumerate(entries)
    )


def _box(entry: Any, column: str, size: tuple[int, int], origin: str) -> Box:
    entry = _record(entry, column, origin, ("x0", "y0", "x1", "y1", "label"), required=4)
    for key in ("x0", "y0", "x1", "y1"):
        number = entry[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise fault(origin, f"{column}.{key}", number, "must be a finite number", "Give pixels of the first image")
    x0, y0, x1, y1 = (float(entry[key]) for key in ("x0", "y0", "x1", "y1"))
    box = Box(x0, y0, x1, y1, _entry_text(entry, "label", column, origin))
    corners = f"[{box.x0:g}, {box.y0:g}, {box.x1:g}, {box.y1:g}]"
    width, height = size
    if not (box.x0 < box.x1 and box.y0 < box.y1):
        raise DataError(
            f'{origin}, column "{column}": {corners} is empty; x0 < x1 and y0 < y1 must hold. '
            "If it is x, y, width, height, convert it: x1 = x + width."
        )
    if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height:
        raise DataError(
            f'{origin}, column "{column}": {corners} leaves the image of {width} x {height} pixels. Boxes are in '
            "pixels of the upright first image. `workbench import` converts other units (--box-units)."
        )
    return box


def _turn(entry: Any, origin: str, idx: int) -> Turn:
    column = f"history[{idx}]"
    entry = _record(entry, column, origin, ("role", "text"), required=2)
    if entry["role"] not in _ROLES:
        raise fault(origin, f"{column}.role", entry["role"], f"must be one of {', '.join(_ROLES)}", "Rename or drop it")
    return Turn(entry["role"], _entry_text(entry, "text", column, origin))


def _revealed(values: dict[str, Any], origin: str, folder: Path) -> tuple[Turn, ...]:
    entries = _list(values, "turns", origin)
    if len(entries) == 1:
        raise fault(origin, "turns", entries, "must be at least two turns", "Split the question, or drop the column")
    turns = []
    for idx, entry in enumerate(entries):
        column = f"turns[{idx}]"
        entry = _record(entry, column, origin, ("text", "images"), required=1)
        if not isinstance(entry.get("images") or [], list):
            raise fault(origin, f"{column}.images", entry["images"], "must be a list", "Write it in brackets")
        pictures = enumerate(entry.get("images") or ())
        images = tuple(_image(image, f"{column}.images[{image_idx}]", origin, folder) for image_idx, image in pictures)
        turns.append(Turn("user", _entry_text(entry, "text", column, origin), images))
    return tuple(turns)


def _mark(entry: Any, origin: str, idx: int) -> Mark:
    column = f"marks[{idx}]"
    entry = _record(entry, column, origin, ("pattern", "kind", "truth"), required=2)
    pattern, kind = (_entry_text(entry, key, column, origin) for key in ("pattern", "kind"))
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(
            f'{origin}, column "{column}.pattern": {show(pattern)} is not a regular expression ({error}). Correct it.'
        ) from None
    if groups < 1:
        raise fault(
            origin, f"{column}.pattern", pattern, "must have a group", "Put (...) around the part that is meant"
        )
    truth = entry.get("truth")
    if truth not in (VISIBLE, PRIVILEGED, None):
        raise fault(origin, f"{column}.truth", truth, f"must be {VISIBLE}, {PRIVILEGED} or null", "Correct it")
    return Mark(pattern, kind, truth)
