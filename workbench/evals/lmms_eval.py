"""Read the results of lmms-eval 0.7: OUTPUT/MODEL/DATE_results.json, with DATE_samples_TASK.jsonl beside it.

The layout is that of lmms_eval 0.7.3 (loggers/evaluation_tracker.py, evaluator.py): `results` has a mapping per task of
"metric,filter" to a value and "metric_stderr,filter" to its standard error or "N/A".
"""

import hashlib
from pathlib import Path
from typing import Any

from workbench.errors import DataError, show
from workbench.evals.benchmarks import BenchmarkResult, number
from workbench.files.jsonlines import split_lines
from workbench.files.parsing import Malformed, decode, parse_json

TOOL, PATTERN = "lmms-eval", r".*_results\.json"
_STDERR = ("_stderr", "_stderr_clt")  # by bootstrap, or where that is not available of the mean


def read_lmms_eval(file: Path, exports: list[str]) -> tuple[list[BenchmarkResult], list[str]]:
    """Read one results file. Raises DataError naming file and key."""
    raw = file.read_bytes()
    try:
        values = parse_json(decode(raw))
    except Malformed as error:
        raise DataError(f"{file} is not a results file of lmms-eval: {error}. Run the evaluation again.") from None
    if not isinstance(values, dict) or not isinstance(values.get("results"), dict):
        raise DataError(f'{file}: "results" must be a mapping of tasks. Give the results file of lmms-eval.')
    model, version = _model(values), values.get("lmms_eval_version")
    results: list[BenchmarkResult] = []
    notes: list[str] = []
    for task, metrics in values["results"].items():
        if not isinstance(metrics, dict):
            raise DataError(f"{file}: results.{task} must be a mapping of metrics, got {show(metrics)}.")
        used, all_questions = _counts(values, task, file)
        _check_samples(file, task, used)
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or any(name in metric for name in ("_stderr", "_pooled")):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                notes.append(f"{file.name}: results.{task}.{key} is {show(value)}, which is not a number; left out")
                continue
            results.append(
                BenchmarkResult(
                    benchmark=task,
                    metric=metric if filtered == "none" else key,
                    value=number(value, file, f"results.{task}.{key}"),
                    stderr=_stderr(metrics, metric, filtered, file, task),
                    num_samples=used,
                    num_questions=all_questions,
                    tool=TOOL,
                    version=None if version is None else str(version),
                    model=model,
                    file=file.name,
                    sha256=hashlib.sha256(raw).hexdigest(),
                )
            )
    if not results:
        raise DataError(f"{file}: results has no metric with a number. Run the evaluation again. {' '.join(notes)}")
    return results, notes


def _model(values: dict[str, Any]) -> str | None:
    """Path or name of the evaluated model."""
    if isinstance(values.get("model_name"), str) and values["model_name"]:
        return values["model_name"]
    config = values.get("config")
    arguments = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(arguments, str):
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    named = (arguments or {}).get("pretrained") if isinstance(arguments, dict) else None
    return str(named) if named else None


def _counts(values: dict[str, Any], task: str, file: Path) -> tuple[int | None, int | None]:
    """Evaluated and all questions of a task; None for a group of tasks, which has no count."""
    counts = (values.get("n-samples") or {}).get(task)
    if counts is None:
        return None, None
    if not isinstance(counts, dict):
        raise DataError(f"{file}: n-samples.{task} must be a mapping, got {show(counts)}.")
    pair = [counts.get(name) for name in ("effective", "original")]
    if not all(isinstance(count, int) and count >= 0 for count in pair):
        raise DataError(f"{file}: n-samples.{task} must have whole numbers effective and original, got {show(counts)}.")
    return pair[0], pair[1]


def _stderr(metrics: dict[str, Any], metric: str, filtered: str, file: Path, task: str) -> float | None:
    for suffix in _STDERR:
        key = f"{metric}{suffix},{filtered}"
        if metrics.get(key) not in (None, "N/A"):
            return number(metrics[key], file, f"results.{task}.{key}")
    return None


def _check_samples(file: Path, task: str, used: int | None) -> None:
    """Raise DataError if the samples file of a task has fewer or more lines than evaluated questions."""
    samples = file.with_name(f"{file.name.removesuffix('_results.json')}_samples_{task}.jsonl")
    if used is None or not samples.is_file():
        return
    count = sum(1 for line in split_lines(decode(samples.read_bytes())) if line.strip())
    if count != used:
        raise DataError(
            f"{samples} has {count:,} lines, and {file.name} says n-samples.{task}.effective={used:,}. One of the two "
            "is not complete. Run the evaluation again."
        )
