"""Iterate over the raw rows of a data file, a folder saved by `datasets`, or a Hugging Face dataset.

A line of JSON is parsed only by Row.values, so that a reader can skip a bad line. Embedded images keep their stored
form {"bytes", "path"}.
"""

import codecs
import importlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow
import pyarrow.parquet

from workbench.data.arrow_rows import batch_rows
from workbench.data.values import row_without_missing
from workbench.errors import ConfigError, DataError, show, unknown
from workbench.files.packages import importing
from workbench.files.parsing import Malformed, parse_json

_TABLES = (".csv", ".tsv")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_ADVICE = {  # suffixes of a file's name -> how to convert it
    _TABLES: 'Convert it with every value as text: pandas.read_csv("NAME", dtype=str, keep_default_na=False)'
    '.to_json("rows.jsonl", orient="records", lines=True), with sep="\\t" for .tsv',
    (".zip", ".tar", ".tgz", ".7z"): "Unpack it and name the .jsonl, .json or .parquet file in it",
    (".gz", ".bz2", ".xz", ".zst"): "Unpack it first",
    (".arrow", ".feather"): "Name the folder that save_to_disk wrote, or write it again as Parquet",
    _PICTURES: 'An image needs a row: write {"question": ..., "images": [...]} to a .jsonl file',
    (".yaml", ".yml"): "Put the recipe before the keys: workbench train RECIPE data.train=FILE",
}
_LONGEST_BLANK = 2**16  # largest size in bytes of a blank file
_LIST_NAMES = ("data", "rows", "examples", "samples", "items", "questions", "train", "validation", "test")
_HF_PARAMETERS = ("split", "config", "revision", "streaming")


@dataclass(frozen=True)
class Row:
    """One raw row: an unparsed line of JSON, a dict of values, or an error message for values that cannot be read."""

    origin: str  # file:row
    number: int
    raw: bytes | dict[str, Any] | str

    def values(self) -> dict[str, Any]:
        """Return the row's columns, None if missing. Raises DataError if the line is not a JSON object in UTF-8."""
        if isinstance(self.raw, dict):
            return row_without_missing(self.raw)
        if isinstance(self.raw, str):
            raise DataError(f"{self.origin}: {self.raw}.")
        try:
            values = parse_json(self.raw, unique_keys=True)
        except Malformed as error:
            raise DataError(
                f"{self.origin} is not valid JSON ({error}): {show(self.raw[:80])}. Each line must be one JSON object."
            ) from None
        if not isinstance(values, dict):
            raise DataError(f"{self.origin} is {show(values)}; each line must be one JSON object, {{...}}.")
        return row_without_missing(values)


@dataclass(frozen=True)
class Table:
    """Rows of a data file, a saved folder or a Hugging Face dataset, as an iterator."""

    name: str
    folder: Path  # where relative image paths start
    rows: Iterator[Row]


def parse_source(source: str, scheme: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Split SCHEME:NAME?key=value&key=value into name and parameters."""
    name, _, query = source.removeprefix(scheme).partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(f'"{source}": after "?" write key=value, several joined by "&"; got "{query}".') from None
    for key, _ in pairs:
        if key not in allowed:
            raise ConfigError(f'"{source}": ' + unknown("parameter", key, allowed))
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ConfigError(f'"{source}" gives {repeated[0]} twice. Give it once.')
    return name, dict(pairs)


def open_table(source: str | Path, *, split: str | None = None) -> Table:
    """Open a file, a saved folder or hf:NAME?split=S. Its rows are read on demand.

    split  split of a saved folder or Hugging Face dataset; an `hf:` source can name it itself
    """
    if str(source).startswith("hf:"):
        return _open_hub(str(source), split)
    path = Path(source)
    if path.is_dir():
        return _open_saved(path, split)
    if split is not None:
        raise ConfigError(f'{path} is one file and has no splits; leave split "{split}" out.')
    if not os.path.isfile(path):
        raise DataError(
            f"{path} does not exist. Give a .jsonl, .json or .parquet file, a saved folder, hf:NAME or scenes:SPLIT."
            + (" Several sources are a list: data.train=[FILE, FILE]." if "," in str(path) else "")
        )
    rows_of = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".json": _json_rows}.get(path.suffix)
    if rows_of is not None:
        if _is_blank(path):
            raise no_rows(path)
        return Table(str(path), path.parent, rows_of(path))
    advice = next((text for ends, text in _ADVICE.items() if path.name.lower().endswith(ends)), "")
    raise DataError(
        f'{path} ends in "{path.suffix}"; data files are .jsonl or .parquet, or one list in .json.'
        + (f" {advice}." if advice else "")
    )


def no_rows(name: str | Path) -> DataError:
    """Build the error for a source without rows."""
    return DataError(f"{name} is empty: it has no rows. Check that it is the right file and was written to its end.")


def _is_blank(path: Path) -> bool:
    """Whether a file has only blanks and a byte order mark. False for an unreadable file: its reader raises."""
    try:
        with path.open("rb") as file:
            return not file.read(_LONGEST_BLANK).removeprefix(codecs.BOM_UTF8).strip() and not file.read(1)
    except OSError:
        return False


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(f"{path}:{number}", number, line)


def _json_rows(path: Path) -> Iterator[Row]:
    """Yield rows of a JSON list of objects, alone or under a key of _LIST_NAMES, of one object, or of JSON lines."""
    try:
        raw = path.read_bytes()
        content = parse_json(raw, unique_keys=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except Malformed as error:
        if not _is_object(raw.strip().partition(b"\n")[0]):
            raise DataError(f"{path} is not valid JSON ({error}). Write it again, as one list of objects.") from None
        yield from _jsonl_rows(path)
        return
    if isinstance(content, dict):
        lists = [content[name] for name in _LIST_NAMES if isinstance(content.get(name), list)]
        is_by_column = bool(content) and all(isinstance(column, dict) for column in content.values())  # pandas' default
        content = lists[0] if len(lists) == 1 else content if is_by_column else [content]
    if not isinstance(content, list):
        raise DataError(
            f"{path} is {show(content)}; a .json file holds one list of objects, [{{...}}, ...]. "
            'With pandas, write rows instead of columns: to_json("rows.jsonl", orient="records", lines=True).'
        )
    for number, values in enumerate(content, start=1):
        problem = f"this entry is {show(values)}; each must be a JSON object, {{...}}"
        yield Row(f"{path}:{number}", number, values if isinstance(values, dict) else problem)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except Malformed:
        return False


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(batch_size=64):
                for values in batch_rows(batch):
                    number += 1
                    yield Row(f"{path}:{number}", number, values)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet after row {number} ({error}). Write it again.") from None


def _open_saved(folder: Path, split: str | None) -> Table:
    """Open a folder written by save_to_disk of `datasets`, with one split or several."""
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        files = sorted(path.name for pattern in ("*.jsonl", "*.json", "*.parquet") for path in folder.glob(pattern))
        instead = f"Name one of its files: {', '.join(files[:8])}." if files else "Give a .jsonl or .parquet file."
        if (not files and any(folder.rglob("*.png"))) or any(folder.rglob("*.jpg")):
            instead = (
                f"To read a folder of images, add a metadata.jsonl of {{file_name, question}} and give "
                f"hf:{folder}?split=train."
            )
        raise DataError(f"{folder} is not a dataset saved with save_to_disk. {instead}")
    library = _require_library(str(folder))
    try:
        saved = library.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{folder} cannot be read as a saved dataset ({error}). Save it again.") from None
    if isinstance(saved, dict):
        if split is None and len(saved) == 1:
            split = next(iter(saved))
        if split not in saved:
            problem = f'has no split "{split}"' if split else "has several splits"
            raise DataError(
                f"{folder} {problem}: {', '.join(saved)}. Name one, as in {folder / next(iter(saved), 'train')}."
            )
        saved = saved[split]
    elif split is not None:
        raise ConfigError(f'{folder} is one split already; leave split "{split}" out.')
    return Table(str(folder), folder, _arrow_rows(saved, str(folder)))


def _open_hub(source: str, split: str | None) -> Table:
    """Open a dataset of the Hugging Face Hub or of its local cache. Never runs code of the dataset."""
    name, query = parse_source(source, "hf:", _HF_PARAMETERS)
    split = query.get("split", split)
    if not name or split is None:
        raise ConfigError(f'"{source}" must name a dataset and a split, as in hf:owner/name?split=train.')
    streaming = query.get("streaming", "false")
    if streaming not in ("true", "false"):
        raise ConfigError(f'"{source}": streaming must be true or false, got "{streaming}".')
    library = _require_library(source)
    try:
        loaded = library.load_dataset(
            name, query.get("config"), split=split, revision=query.get("revision"), streaming=streaming == "true"
        )
    except (OSError, ValueError, KeyError, pyarrow.ArrowException, library.exceptions.DatasetsError) as error:
        raise DataError(
            f'dataset "{name}", split "{split}" cannot be loaded ({error}). '
            "Check name, split and network, or download it and give the file."
        ) from None
    return Table(source, Path.cwd(), _arrow_rows(loaded, source))


def _require_library(source: str) -> Any:
    with importing(f"{source} needs", "data", ", or use a .jsonl or .parquet file"):
        return importlib.import_module("datasets")  # takes a second


def _arrow_rows(saved: Any, name: str) -> Iterator[Row]:
    """Yield rows with images in their stored form {"bytes", "path"}, not decoded."""
    number = 0
    try:
        for batch in saved.with_format("arrow").iter(batch_size=64):
            for values in batch_rows(batch):
                number += 1
                yield Row(f"{name}:{number}", number, values)
    except DataError as error:
        raise DataError(f"{name}: {error}.") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read after row {number} ({error}). Save it again.") from None
