"""Read the results of VLMEvalKit: WORK_DIR/MODEL/T20250101_G0123abcd/MODEL_BENCHMARK_acc.csv, and _score files.

The layout is that of open-compass/VLMEvalKit (run.py, vlmeval/smp/file.py, dataset/utils/multiple_choice.py): tables
with a header, whose text cells name a row (a split, a skill), or a JSON object of numbers. The file name has the name
under which the model was evaluated, and neither its path nor a standard error.
"""

import csv
import hashlib
import importlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import DataError, show
from workbench.evals.benchmarks import BenchmarkResult, number
from workbench.files.packages import importing
from workbench.files.parsing import Malformed, decode, flatten, parse_json

TOOL = "VLMEvalKit"
PATTERN = r".+_(acc\.csv|score\.(csv|json|xlsx))"
_RUN = re.compile(r"T\d{8}(_G(?P<commit>[0-9a-fA-F]+)|-\d{6})")
_UNNAMED = ("", "none")  # the split of a benchmark without splits
_COUNT = "tot"  # column with a row's number of questions
# of a broken workbook: the archive's, SyntaxError of its XML, and what openpyxl raises for values that are not its own
_BROKEN = (zipfile.BadZipFile, zlib.error, SyntaxError, LookupError, ValueError, TypeError, NotImplementedError)


def read_vlmevalkit(file: Path, exports: list[str]) -> tuple[list[BenchmarkResult], list[str]]:
    """Read one table of results; `exports` are names that a model may have. Raises DataError naming file and key."""
    model, benchmark = _named(file, exports)
    raw = file.read_bytes()
    commit = _RUN.fullmatch(file.parent.name)
    results, notes = [], []
    for metric, value, count in _metrics(file, raw):
        try:
            numeric = number(value, file, metric)
        except DataError:
            notes.append(f"{file.name}: {metric} is {show(value)}, which is not a number; left out")
            continue
        results.append(
            BenchmarkResult(
                benchmark=benchmark,
                metric=metric,
                value=numeric,
                stderr=None,
                num_samples=count,
                num_questions=None,
                tool=TOOL,
                version=commit["commit"] if commit else None,
                model=model,
                file=file.name,
                sha256=hashlib.sha256(raw).hexdigest(),
            )
        )
    if not results:
        raise DataError(
            f"{file} has no number. Expected a table of scores. Run the evaluation again. {' '.join(notes)}"
        )
    return results, notes


def _named(file: Path, exports: list[str]) -> tuple[str | None, str]:
    """Name of the model, None if neither the folders nor the exports tell it, and of the benchmark."""
    stem = re.sub(r"_(acc|score)$", "", file.stem)
    folder = file.parent.parent if _RUN.fullmatch(file.parent.name) else file.parent
    for name in [folder.name, *sorted(exports, key=len, reverse=True)]:
        if name and stem.startswith(f"{name}_"):
            return name, stem.removeprefix(f"{name}_")
    return None, stem


def _metrics(file: Path, raw: bytes) -> Iterator[tuple[str, Any, int | None]]:
    """Name, value and number of questions of every metric of a file."""
    if file.suffix == ".xlsx":
        yield from _of_table(file, _sheet(file))
        return
    try:
        text = decode(raw)
        values = parse_json(text) if file.suffix == ".json" else None
    except Malformed as error:
        raise DataError(f"{file} is not a result file of VLMEvalKit: {error}. Run the evaluation again.") from None
    if file.suffix == ".csv":
        yield from _of_table(file, list(csv.reader(io.StringIO(text))))
    elif isinstance(values, list) and values and all(isinstance(row, dict) for row in values):  # a table, as records
        yield from _of_table(file, [list(values[0]), *([row.get(key) for key in values[0]] for row in values)])
    elif isinstance(values, dict):
        yield from ((key, value, None) for key, value in flatten(values).items())
    else:
        raise DataError(f"{file}: expected an object of scores, got {show(values)}. Run the evaluation again.")


def _of_table(file: Path, table: list[list[Any]]) -> Iterator[tuple[str, Any, int | None]]:
    """Metrics of a table with a header: ROW/COLUMN, or COLUMN for a row without a name."""
    header, rows = (table[0], table[1:]) if table else ([], [])
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{file}: row {line} has {len(row)} cells, the header {len(header)}. The file is not whole."
            )
        cells = {str(column): _number_of(cell) for column, cell in zip(header, row, strict=True)}
        names = [cell for cell in cells.values() if isinstance(cell, str) and cell.lower() not in _UNNAMED]
        count = cells.pop(_COUNT, None)
        for column, cell in cells.items():
            if not isinstance(cell, str):
                yield "/".join([*names, column]), cell, int(count) if isinstance(count, (int, float)) else None


def _number_of(cell: Any) -> Any:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return "" if cell is None else str(cell).strip()


def _sheet(file: Path) -> list[list[Any]]:
    with importing(f"{file} needs", None, ", or save the table as .csv beside it"):
        openpyxl: Any = importlib.import_module("openpyxl")
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        return [list(row) for row in book.worksheets[0].values]
    except _BROKEN as error:
        raise DataError(
            f"{file} is not a workbook ({type(error).__name__}: {error}). Run the evaluation again."
        ) from None
