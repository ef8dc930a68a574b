"""Read the rollouts of a file or folder, with those that cannot be read."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from workbench.data.conversations import Refused
from workbench.data.rollouts.layouts import (
    ROLLOUT_COLUMNS,
    ROLLOUT_LAYOUTS,
    RolloutLayout,
    load_rollout_layout,
    recognize,
)
from workbench.data.rollouts.rows import RolloutRow, convert_row, split_table, unread_columns
from workbench.data.sources import Row, no_rows, open_table
from workbench.errors import ConfigError, DataError, unknown

_SUFFIXES = (".jsonl", ".json", ".parquet")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


@dataclass(frozen=True)
class SkippedRow:
    """A row that is not scored, with the reason that rows are counted by."""

    origin: str
    reason: str
    message: str


@dataclass
class RolloutFile:
    """The rows of a file or folder of rollouts, with those that cannot be read."""

    source: str
    layout: str = ""
    folder: Path = Path()  # where relative image paths start
    rows: list[RolloutRow] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)  # columns of the file that are not used
    num_rows: int = 0  # of the file; `skipped` also lists those of `rows` that turn out to lack an example or evidence


def read_rollouts(
    source: str | Path, *, layout: str | None = None, columns: Mapping[str, str] | None = None
) -> RolloutFile:
    """Read all rollouts of a file, or of all files of a folder in the order of the numbers in their names.

    layout   one of ROLLOUT_LAYOUTS; None: recognized by the name of the file and its columns
    columns  our column -> theirs, where the layout does not apply
    Raises   ConfigError for an unknown layout or column; DataError if a file cannot be read or has no rows
    """
    chosen = None if layout is None else load_rollout_layout(layout)
    for name in columns or {}:
        if name not in ROLLOUT_COLUMNS:
            raise ConfigError(unknown("column", name, ROLLOUT_COLUMNS) + " Write ours=theirs, as in reward=accuracy.")
    files = _files(Path(source), chosen)
    result = RolloutFile(str(source), layout or "", files[0].parent)
    for file in files:
        for row in open_table(file).rows:
            _add(result, file, row, columns or {})
    result.num_rows = len(result.rows) + len(result.skipped)
    if not result.num_rows:
        raise no_rows(source)
    return result


def _files(path: Path, layout: RolloutLayout | None) -> list[Path]:
    if path.suffix.lower() in _PICKLES:
        raise _pickled(path)
    if not path.is_dir():
        return [path]
    inside = [file for file in path.rglob("*") if file.is_file()]
    patterns = ("*",) if layout is None else layout.files
    files = [
        file for file in inside if file.suffix in _SUFFIXES and any(fnmatch(file.name, pattern) for pattern in patterns)
    ]
    if not files:
        if pickles := sorted(file for file in inside if file.suffix.lower() in _PICKLES):
            raise _pickled(pickles[0])
        named = "" if layout is None else f" named {' or '.join(layout.files)}"
        raise DataError(f"{path} holds no .jsonl, .json or .parquet file{named}. Name the folder of the rollouts.")
    return sorted(files, key=_by_numbers)


def _by_numbers(file: Path) -> list[tuple[int, int | str]]:
    """Sort key by which step_2 comes before step_10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(file)) if part]


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path} is a pickle, which can run code when it is read, so it is not opened. Where you trust it, write its "
        "samples as JSON lines and give that file: docs/rollouts.md has the three lines for slime."
    )


def _add(result: RolloutFile, file: Path, row: Row, columns: Mapping[str, str]) -> None:
    """Convert a row, or the rows of a table; those that cannot be converted are listed with the reason."""
    try:
        values = row.values()
        result.layout = result.layout or recognize(file, values)
        layout = ROLLOUT_LAYOUTS[result.layout]
        tables = split_table(values) if layout.tabular else [values]
    except (Refused, DataError) as error:
        result.skipped.append(_skipped(row.origin, error))
        return
    paths = dict(layout.columns) | {ours: (theirs,) for ours, theirs in columns.items()}
    for idx, entry in enumerate(tables):
        origin = f"{row.origin}[{idx}]" if layout.tabular else row.origin
        notes: Counter[str] = Counter()
        try:
            converted = convert_row(entry, origin, result.layout, layout, paths, notes)
        except Refused as refused:
            result.skipped.append(_skipped(origin, refused))
        else:
            step = converted.step if converted.step is not None else _step_of(file, layout)
            result.rows.append(replace(converted, step=step))
            result.notes.update(+notes)
            result.unread |= unread_columns(entry, converted, paths)


def _skipped(origin: str, error: Refused | DataError) -> SkippedRow:
    if isinstance(error, Refused):
        return SkippedRow(origin, error.reason, f"{error.reason}: {error.detail}" if error.detail else error.reason)
    return SkippedRow(origin, "row cannot be read", str(error))


def _step_of(file: Path, layout: RolloutLayout) -> int | None:
    number = re.search(layout.step_of, file.as_posix()) if layout.step_of else None
    return None if number is None else int(number.group(1))
