"""Convert single values of foreign rows: missing values, numbers, dates, and structures stored as text."""

import ast
import datetime
import decimal
import json
import math
from typing import Any

EXACT_FLOAT = 2**53  # larger whole numbers are rounded when stored as floats
_PLAIN_FLOAT = 10**21  # smaller whole floats are written as integers, as in JavaScript
_LONGEST_LITERAL = 1_000_000  # longest Python literal to parse, in characters; JSON has no limit


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, or the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float | decimal.Decimal) and math.isnan(value))


def without_missing(value: Any) -> Any:
    """Replace every NaN by None, also in lists and dicts.

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
    """Replace every NaN in a row by None; see without_missing."""
    return {str(key): None if is_missing(value) else without_missing(value) for key, value in values.items()}


def number_text(value: int | float | decimal.Decimal) -> str | None:
    """Format a number as in an answer: "27" for 27.0, "-0.5". None for NaN, infinity and very long integers."""
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
    """Format a date in ISO 8601. A timestamp at midnight, as tables store dates, loses its time."""
    if isinstance(value, datetime.datetime):
        if value.time() == datetime.time() and value.tzinfo is None:
            return value.date().isoformat()
        return value.isoformat(sep=" ")
    return value.isoformat()


def parse_structure(text: str) -> list[Any] | dict[Any, Any] | None:
    """Parse a list or dict stored as JSON or as Python's repr; None if the text is neither."""
    text = text.strip().removeprefix("\ufeff")
    for _ in range(2):  # also JSON inside a JSON string
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
