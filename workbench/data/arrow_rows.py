"""Convert Arrow batches to rows of Python values, with class names for numbers and short floats as written."""

import json
from collections.abc import Iterator
from typing import Any

import numpy
import pyarrow

from workbench.errors import DataError


def batch_rows(batch: pyarrow.RecordBatch | pyarrow.Table) -> Iterator[dict[str, Any] | str]:
    """Yield the values of each row, or an error message for a row with a value that Python cannot represent.

    Images stay in their stored form, {"bytes", "path"}. Raises: DataError for columns of the same name.
    """
    names = batch.schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f'the column "{repeated}" exists twice. Rename one of them')
    features = _class_features(batch.schema.metadata)
    single = {field.name: field.type for field in batch.schema if _holds_short_floats(field.type)}
    try:
        rows = batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, LookupError):
        rows = [_single_row(batch, idx) for idx in range(batch.num_rows)]
    for row in rows:
        if isinstance(row, dict):
            for name, feature in features.items():
                row[name] = _with_class_names(row[name], feature)
            for name, kind in single.items():
                row[name] = _as_written(row[name], kind)
        yield row


def _single_row(batch: pyarrow.RecordBatch | pyarrow.Table, idx: int) -> dict[str, Any] | str:
    """Convert one row of a batch in which some row cannot be converted."""
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[idx].as_py()
        except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, LookupError) as error:
            return (
                f'column "{name}" has a value of type {column.type} that cannot be read ({error}). Correct it, or drop '
                "the row"
            )
    return values


def _holds_short_floats(kind: pyarrow.DataType) -> bool:
    """Whether a column holds floats of less than 64 bits, also in lists and structs."""
    if pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind):
        return True
    return any(_holds_short_floats(kind.field(idx).type) for idx in range(kind.num_fields))


def _as_written(value: Any, kind: pyarrow.DataType) -> Any:
    """Replace floats of 32 or 16 bits by the shortest decimal with the same bits: 0.1 instead of 0.10000000149."""
    if isinstance(value, float):
        if pyarrow.types.is_float32(kind):
            return float(str(numpy.float32(value)))
        return float(str(numpy.float16(value))) if pyarrow.types.is_float16(kind) else value
    if isinstance(value, dict) and pyarrow.types.is_struct(kind):
        return {name: _as_written(entry, kind.field(name).type) for name, entry in value.items()}
    if isinstance(value, list) and kind.num_fields == 1:
        return [_as_written(entry, kind.field(0).type) for entry in value]
    return value


def _class_features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Return the columns with class numbers, from the description of `datasets` in a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if '"ClassLabel"' in json.dumps(feature)}


def _with_class_names(value: Any, feature: Any) -> Any:
    """Replace class numbers by names; -1, which means no class, becomes None."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    is_sequence = isinstance(feature, dict) and "feature" in feature and isinstance(feature.get("_type"), str)
    if is_sequence:
        feature = feature["feature"]
    if isinstance(value, list):
        return [_with_class_names(entry, feature) for entry in value]
    if not isinstance(feature, dict) or value is None:
        return value
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        if not isinstance(names, list) or not isinstance(value, int) or isinstance(value, bool):
            return value
        return None if value == -1 else names[value] if 0 <= value < len(names) else value
    if isinstance(value, dict):
        return {key: _with_class_names(entry, feature.get(key)) for key, entry in value.items()}
    return value
