"""Single values of foreign rows: missing values, numbers written as text, structures kept as text."""

import ast
import datetime
import decimal
import json
import math
from typing import Any

EXACT_FLOAT = 2**53  # whole numbers beyond this are rounded when a table stores them as floating-point numbers
_PLAIN_FLOAT = 10**21  # whole floats below this are written as integers, as JavaScript does
_LONGEST_LITERAL = 1_000_000  # characters of Python text that are parsed; JSON has no such limit


def is_missing(value: Any) -> bool:
    """Whether a value stands for a missing one: None, or the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float | decimal.Decimal) and math.isnan(value))


def without_missing(value: Any) -> Any:
    """The value with None for every NaN, in lists and dicts too.

    A NaN beside numbers, as in a box [1, 2, 3, NaN], is a damaged number and stays.
    """
    if isinstance(value, dict):
        if any(_is_number(entry) for entry in value.values()):
            return {key: entry if _is_nan(entry) else without_missing(entry) for key, entry in value.items()}
        return {key: without_missing(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        numeric = any(_is_number(entry) for entry in value)
        return [entry if numeric and _is_nan(entry) else without_missing(entry) for entry in value]
    return None if is_missing(value) else value


def row_without_missing(values: dict[str, Any]) -> dict[str, Any]:
    """A row's columns with None for every NaN; see without_missing."""
    return {str(key): None if is_missing(value) else without_missing(value) for key, value in values.items()}


def number_text(value: int | float | decimal.Decimal) -> str | None:
    """A number as an answer states it: "27" for 27.0, "-0.5"; None for NaN, infinity and integers of over 1,000 digits."""
    if not isinstance(value, int) and not math.isfinite(value):
        return None
    if isinstance(value, int):
        return str(int(value)) if value.bit_length() < 3_000 else None
    if isinstance(value, decimal.Decimal):
        if abs(value.adjusted()) > 1_000:
            return None
        return str(int(value)) if value == value.to_integral_value() else format(value, "f")
    return str(int(value)) if value.is_integer() and abs(value) < _PLAIN_FLOAT else repr(float(value))


def date_text(value: datetime.date | datetime.time) -> str:
    """A date in ISO 8601; a time stamp at midnight, which is how tables keep a date, without its time."""
    if isinstance(value, datetime.datetime):
        if value.time() == datetime.time() and value.tzinfo is None:
            return value.date().isoformat()
        return value.isoformat(sep=" ")
    return value.isoformat()


def parse_structure(text: str) -> list[Any] | dict[Any, Any] | None:
    """The list or dict that a text column keeps as JSON or as Python's repr of it; None if the text is neither."""
    text = text.strip().removeprefix("\ufeff")
    for _ in range(2):  # JSON of a JSON text too
        if not text.startswith(("[", "{", '"', "(")):
            return None
        value = _parse(text)
        if isinstance(value, list | dict):
            return without_missing(value)
        if not isinstance(value, str):
            return None
        text = value.strip()
    return None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not _is_nan(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
