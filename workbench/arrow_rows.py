"""Batches of Arrow -> rows of Python values: names for class numbers, single-precision numbers as they were written."""

import json
from collections.abc import Iterator
from typing import Any

import numpy
import pyarrow

from workbench.errors import DataError


def batch_rows(batch: pyarrow.RecordBatch | pyarrow.Table) -> Iterator[dict[str, Any] | str]:
    """The values of each row, or the sentence for a row with a value that Python cannot hold.

    Images stay as they are stored, {"bytes", "path"}. Raises: DataError for columns of the same name.
    """
    names = batch.schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f'the column "{repeated}" is there twice. Rename one of them')
    features = _class_features(batch.schema.metadata)
    single = [
        field.name
        for field in batch.schema
        if pyarrow.types.is_float32(field.type) or pyarrow.types.is_float16(field.type)
    ]
    try:
        rows = batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, LookupError):
        rows = [_single_row(batch, idx) for idx in range(batch.num_rows)]
    for row in rows:
        if isinstance(row, dict):
            for name, feature in features.items():
                row[name] = _with_class_names(row[name], feature)
            for name in single:
                row[name] = None if row[name] is None else float(str(numpy.float32(row[name])))
        yield row


def _single_row(batch: pyarrow.RecordBatch | pyarrow.Table, idx: int) -> dict[str, Any] | str:
    """One row of a batch of which some row cannot be converted."""
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[idx].as_py()
        except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, LookupError) as error:
            return f'column "{name}" has a value of type {column.type} that cannot be read ({error}). Correct it, or drop the row'
    return values


def _class_features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Columns with class numbers in them, as the package `datasets` describes them in a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if '"ClassLabel"' in json.dumps(feature)}


def _with_class_names(value: Any, feature: Any) -> Any:
    """The value with names in place of class numbers; -1, which stands for no class, becomes None."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    if (
        isinstance(feature, dict) and "feature" in feature and isinstance(feature.get("_type"), str)
    ):  # a list of something
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
