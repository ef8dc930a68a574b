"""Columns of the table of runs: their values for sorting, CSV and JSON, and their texts for a person."""

import csv
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.analysis.run_table import ALL, Ends, RunRow
from workbench.errors import ConfigError, show
from workbench.files.terminal import clean
from workbench.types import PRIVILEGED, VISIBLE

NONE = "–"
ARROW = " → "


@dataclass(frozen=True)
class RunColumn:
    """A column. value: for sorting, None sorts last; text: for a person; is_number: aligned to the right."""

    key: str
    title: str
    help: str
    value: Callable[[RunRow], Any]
    text: Callable[[RunRow], str]
    is_number: bool = True


def _accuracy(group: str) -> tuple[Callable[[RunRow], float | None], Callable[[RunRow], str]]:
    def value(row: RunRow) -> float | None:
        return _last(row.measures.accuracy.get(group))

    def text(row: RunRow) -> str:
        return _ends(row.measures.accuracy.get(group), "{:.1%}")

    return value, text


def _last(ends: Ends | None) -> float | None:
    return None if ends is None else ends[1]


def _ends(ends: Ends | None, form: str) -> str:
    """First and last value; of a run with one evaluation only that one."""
    if ends is None:
        return NONE
    texts = [form.format(value).replace("-", "\u2212") for value in ends]
    return texts[0] if ends[0] == ends[1] else ARROW.join(texts)


def _overconfidence(row: RunRow) -> str:
    ends = row.measures.overconfidence
    return _ends(None if ends is None else (100 * ends[0], 100 * ends[1]), "{:+.1f}")


def span(seconds: float | None) -> str:
    """A duration in a suitable unit."""
    if seconds is None:
        return NONE
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def _steps(row: RunRow) -> str:
    return f"{row.step:,}" if row.steps is None or row.step == row.steps else f"{row.step:,} of {row.steps:,}"


def _started(row: RunRow) -> str:
    return NONE if row.started is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row.started))


COLUMNS = (
    RunColumn("name", "run", "name of its folder", lambda row: row.name, lambda row: row.name, is_number=False),
    RunColumn("state", "state", "of its process", lambda row: row.status, lambda row: row.status, is_number=False),
    RunColumn("method", "method", "", lambda row: row.method, lambda row: row.method or NONE, is_number=False),
    RunColumn("seed", "seed", "", lambda row: row.seed, lambda row: NONE if row.seed is None else str(row.seed)),
    RunColumn("steps", "steps", "steps done, of those configured", lambda row: row.step, _steps),
    RunColumn(
        "accuracy", "accuracy", "of the student on all questions, at the first and last evaluation", *_accuracy(ALL)
    ),
    RunColumn(
        "visible",
        "visible",
        "accuracy on questions that the image answers, at the first and last evaluation",
        *_accuracy(VISIBLE),
    ),
    RunColumn(
        "privileged",
        "privileged",
        "accuracy on questions that only the evidence answers, at the first and last evaluation",
        *_accuracy(PRIVILEGED),
    ),
    RunColumn(
        "overconfidence",
        "over-confidence",
        "confidence minus accuracy in percentage points, on privileged questions (on all, if none is), at the first "
        "and last evaluation",
        lambda row: _last(row.measures.overconfidence),
        _overconfidence,
    ),
    RunColumn(
        "speed",
        "tokens/s",
        "tokens of answers per second, median over steps",
        lambda row: row.measures.tokens_per_second,
        lambda row: NONE if row.measures.tokens_per_second is None else f"{row.measures.tokens_per_second:,.0f}",
    ),
    RunColumn(
        "duration", "duration", "from start to last update", lambda row: row.duration, lambda row: span(row.duration)
    ),
    RunColumn("started", "started", "", lambda row: row.started, _started),
    RunColumn(
        "tags",
        "tags",
        "",
        lambda row: ", ".join(row.labels.tags).lower() or None,
        lambda row: ", ".join(row.labels.tags),
        is_number=False,
    ),
    RunColumn(
        "note", "note", "", lambda row: row.labels.note.lower() or None, lambda row: row.labels.note, is_number=False
    ),
)
_FIRST_AND_LAST = ("accuracy_all", "accuracy_visible", "accuracy_privileged", "overconfidence")
CSV_COLUMNS = (
    *("name", "path", "state", "reason", "method", "seed", "step", "steps"),
    *(f"{name}_{end}" for name in _FIRST_AND_LAST for end in ("first", "last")),
    *("tokens_per_second", "duration_s", "started", "tags", "note", "archived"),
)
BY_KEY = {column.key: column for column in COLUMNS}
_OPTIONAL = ("accuracy", "visible", "privileged", "overconfidence", "tags", "note")  # left out where no row has a value


def shown_columns(rows: Iterable[RunRow]) -> list[RunColumn]:
    """Columns that some row has a value for. Accuracy on all questions only where a row has none on visible ones."""
    rows = list(rows)
    columns = [column for column in COLUMNS if column.key not in _OPTIONAL or any(_has(column, row) for row in rows)]
    if not any(_has(BY_KEY["accuracy"], row) and not _has(BY_KEY["visible"], row) for row in rows):
        columns = [column for column in columns if column.key != "accuracy"]
    return columns


def _has(column: RunColumn, row: RunRow) -> bool:
    return column.value(row) is not None


def sort_rows(rows: Sequence[RunRow], key: str) -> list[RunRow]:
    """Sort by a column, rows without a value last. key: of a column; "-KEY" for the largest first."""
    name, descending = key.removeprefix("-"), key.startswith("-")
    if name not in BY_KEY:
        raise ConfigError(
            f"cannot sort runs by {show(key)}. Choose: {', '.join(BY_KEY)}; with - for the largest first."
        )
    column = BY_KEY[name]
    with_value = [row for row in rows if _has(column, row)]
    with_value.sort(key=column.value, reverse=descending)
    return with_value + [row for row in rows if not _has(column, row)]


def filter_rows(rows: Iterable[RunRow], text: str, *, archived: bool = False) -> list[RunRow]:
    """Rows in whose texts every word of `text` occurs, in any case. archived: include archived runs."""
    words = text.lower().split()
    return [
        row for row in rows if (archived or not row.labels.archived) and all(word in search_text(row) for word in words)
    ]


def search_text(row: RunRow) -> str:
    """Texts of a row in which a search looks, in lower case."""
    return "\n".join((row.name, row.status, row.method or "", *row.labels.tags, row.labels.note, row.reason)).lower()


def row_values(row: RunRow) -> dict[str, object]:
    """A row as plain values, for JSON. Shares from 0 to 1, times in seconds; first and last value as a list."""
    measures = row.measures
    return {
        "name": row.name,
        "path": str(row.run_dir),
        "state": row.status,
        "reason": row.reason,
        "method": row.method,
        "seed": row.seed,
        "step": row.step,
        "steps": row.steps,
        "accuracy": {group: list(ends) for group, ends in measures.accuracy.items()},
        "overconfidence": None if measures.overconfidence is None else list(measures.overconfidence),
        "tokens_per_second": measures.tokens_per_second,
        "duration_s": row.duration,
        "started": row.started,
        "tags": list(row.labels.tags),
        "note": row.labels.note,
        "archived": row.labels.archived,
    }


def csv_lines(rows: Iterable[RunRow]) -> list[str]:
    """A header and a line of CSV for each row, with line ends; first and last values in columns of their own."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    lines = []
    header: dict[str, Any] = dict(zip(CSV_COLUMNS, CSV_COLUMNS, strict=True))
    for values in (header, *map(_csv_values, rows)):
        writer.writerow(values)
        lines.append(stream.getvalue())
        stream.seek(0)
        stream.truncate()
    return lines


def _csv_values(row: RunRow) -> dict[str, Any]:
    values: dict[str, Any] = row_values(row)
    values |= {f"accuracy_{group}": row.measures.accuracy.get(group) for group in (ALL, VISIBLE, PRIVILEGED)}
    for name in (*(f"accuracy_{group}" for group in (ALL, VISIBLE, PRIVILEGED)), "overconfidence"):
        first, last = values.pop(name) or (None, None)
        values |= {f"{name}_first": first, f"{name}_last": last}
    del values["accuracy"]
    values["tags"] = ", ".join(row.labels.tags)
    return {key: _safe_cell(value) for key, value in values.items()}


def _safe_cell(value: object) -> object:
    """Keep a text of a run from being read as a formula by a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def table_texts(rows: Sequence[RunRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for a terminal, and the reasons of runs without a result after the state."""
    columns = shown_columns(rows)
    return [column.title for column in columns], [
        [clean(" ".join(column.text(row).split())) for column in columns] for row in rows
    ]
