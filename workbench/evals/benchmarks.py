"""Results of benchmarks that other tools measured on an exported student, kept in the run.

benchmarks.json has one entry per benchmark and metric. An import replaces earlier entries of the same tool, benchmark,
metric, learner and step.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import DataError, RunError, show
from workbench.files.atomic import write_text
from workbench.files.folders import saving
from workbench.files.parsing import Malformed, decode, parse_json
from workbench.runs.folder import RunFolder

FILE = "benchmarks.json"
HUB = "hf:"
_OVERALL = re.compile(r"overall|final|average", re.IGNORECASE)


@dataclass(frozen=True)
class BenchmarkResult:
    """One number of a benchmark, in the unit in which the tool gives it.

    num_samples   evaluated questions; None: the file does not say
    num_questions questions of the whole benchmark; None: the file does not say
    model         path or name of the model in the tool's file; None: the file does not say
    is_export     whether that is a recorded export of the run
    file, sha256  of the file that was read
    """

    benchmark: str
    metric: str
    value: float
    stderr: float | None
    num_samples: int | None
    num_questions: int | None
    tool: str
    version: str | None
    model: str | None
    file: str
    sha256: str
    learner: str = ""
    step: int | None = None
    is_export: bool = False

    @property
    def key(self) -> tuple:
        return self.tool, self.benchmark, self.metric, self.learner, self.step


Reader = Callable[[Path, list[str]], tuple[list[BenchmarkResult], list[str]]]  # results, and notes on what is left out


def load_benchmarks(run_dir: str | Path) -> list[BenchmarkResult]:
    """Load the imported results of a run; empty without any. Raises RunError for a damaged file."""
    file = Path(run_dir) / FILE
    try:
        rows = parse_json(decode(file.read_bytes()))
        return [BenchmarkResult(**row) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, Malformed, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}). Delete it, and import the results again.") from None


def import_benchmarks(
    source: str | Path, run_dir: str | Path, readers: Mapping[str, Reader], *, any_model: bool = False
) -> tuple[list[BenchmarkResult], list[str]]:
    """Read result files of a file or folder into a run; return what was imported and notes on what was left out.

    readers    by the pattern of their file names
    any_model  import results of a model that is not a recorded export of the run too, marked as such

    Raises: DataError for files that cannot be read, or of another model; RunError for an unknown run.
    """
    run, source = RunFolder.open(run_dir), Path(source)
    exports = run.status.get("exports") or []
    names = [_export_name(export["to"]) for export in exports]
    results: dict[tuple, BenchmarkResult] = {}
    notes: list[str] = []
    for file, reader in _files(source, readers):
        rows, left_out = reader(file, names)
        notes += left_out
        for row in (_with_export(row, exports, run, any_model=any_model) for row in rows):
            results[row.key] = row
    kept = {row.key: row for row in load_benchmarks(run.path)} | results
    with saving(run.path):
        write_text(run.path / FILE, json.dumps([asdict(row) for row in kept.values()], indent=1))
    return list(results.values()), notes


def _files(source: Path, readers: Mapping[str, Reader]) -> list[tuple[Path, Reader]]:
    """Result files with their readers, the oldest name first."""
    if not source.exists():
        raise DataError(f"{source} does not exist. Give a result file of lmms-eval or VLMEvalKit, or their folder.")
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    matches = [
        (file, reader) for file in files for pattern, reader in readers.items() if re.fullmatch(pattern, file.name)
    ]
    unique = {file.resolve(): reader for file, reader in matches if file.is_file()}  # VLMEvalKit links its files
    if not unique:
        raise DataError(
            f"{source} has no result file. Expected names such as 20250101_000000_results.json (lmms-eval), or "
            "MODEL_BENCHMARK_acc.csv and MODEL_BENCHMARK_score.json (VLMEvalKit)."
        )
    return list(unique.items())


def _with_export(row: BenchmarkResult, exports: list[dict], run: RunFolder, *, any_model: bool) -> BenchmarkResult:
    """Add learner and step of the export that the file names. Raises DataError for another model."""
    for export in reversed(exports):
        if row.model is not None and _is_export(row.model, str(export["to"])):
            return replace(row, learner=export["learner"], step=export["step"], is_export=True)
    if any_model:
        return row
    names = ", ".join(str(export["to"]) for export in exports) or "none"
    raise DataError(
        f"{row.file}: the evaluated model is {show(row.model) if row.model else 'not named'}, which is not an exported "
        f"student of {run.path} (exports: {names}). Import it into its own run, or add --any-model to keep it here, "
        "marked as of another model."
    )


def _export_name(target: str) -> str:
    return target.removeprefix(HUB).rstrip("/").rpartition("/")[2]


def _is_export(model: str, target: str) -> bool:
    """Whether a model's path or name is that of an export; a relative path may leave out leading folders."""
    if target.startswith(HUB):
        return model in (target.removeprefix(HUB), _export_name(target))
    path = Path(os.path.normpath(model))
    return path.resolve() == Path(target).resolve() or (
        not path.is_absolute() and Path(target).resolve().parts[-len(path.parts) :] == path.parts
    )


def number(value: Any, file: Path, key: str) -> float:
    """A finite number of a result file. Raises DataError naming file and key."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{file}: {key} must be a finite number, got {show(value)}. Run the evaluation again.")
    return float(value)


def headlines(results: Iterable[BenchmarkResult]) -> tuple[list[BenchmarkResult], int]:
    """The results to show, and how many are left out: of a benchmark with overall values, those alone."""
    results = list(results)
    overall = {row.benchmark for row in results if _OVERALL.search(row.metric)}
    chosen = [row for row in results if row.benchmark not in overall or _OVERALL.search(row.metric)]
    return chosen, len(results) - len(chosen)


def benchmark_rows(results: Iterable[BenchmarkResult]) -> list[tuple[str, ...]]:
    """Text cells of a table of results: benchmark, metric, value, standard error, questions, tool, model."""
    rows: list[tuple[str, ...]] = []
    for row in results:
        count = "-" if row.num_samples is None else f"{row.num_samples:,}"
        if row.num_questions is not None and row.num_questions != row.num_samples:
            count += f" of {row.num_questions:,}"
        model = f"{row.learner} @{row.step}" if row.is_export else f"another model: {row.model}"
        stderr = "-" if row.stderr is None else f"{row.stderr:.4g}"
        tool = row.tool if row.version is None else f"{row.tool} {row.version}"
        rows.append((row.benchmark, row.metric, f"{row.value:.6g}", stderr, count, tool, model))
    return rows


BENCHMARK_COLUMNS = ("benchmark", "metric", "value", "std. error", "questions", "tool", "model")
