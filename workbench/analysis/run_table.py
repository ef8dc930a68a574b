"""Table of all runs of a folder: one row each, also for runs that failed early, are half-written or cannot be read.

What a file holds is parsed again only after it has changed, so that a thousand runs are listed in a fraction of a
second. This file imports no pandas: the command line prints the table too.
"""

import functools
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from workbench.config.renamed import RENAMED, upgrade_config
from workbench.config.schema import known_keys
from workbench.data.contexts import is_privileged
from workbench.errors import RunError
from workbench.files.atomic import stamp
from workbench.files.folders import reason
from workbench.files.parsing import Malformed, read_object
from workbench.runs.folder import parse_metrics
from workbench.runs.job_state import JobState
from workbench.runs.jobs import find_jobs, job_folder, job_names
from workbench.runs.labels import LABELS_FILE, Labels, read_labels
from workbench.types import PRIVILEGED, STUDENT

ALL = "all"
MAX_RUNS = 20_000  # whose parsed files are kept in memory
_EVALUATION = b'{"kind": "eval"'
_SPEED = re.compile(rb"[0-9.eE+-]+")
_FORMER_KEYS = [key.split(".") for key in RENAMED]
_ACCURACY = re.compile(r"accuracy/([^/]+)/([^/]+)/all")

Ends = tuple[float, float]  # values at the first and at the last evaluation


@dataclass(frozen=True)
class Measures:
    """Numbers of a run's metrics.

    accuracy           group of questions (all, visible, privileged) -> share correct of the student without evidence
    overconfidence     mean confidence minus accuracy on privileged questions; on all, if none is known to be privileged
    tokens_per_second  of answers, median over steps; None before the first step
    fault              why metrics.jsonl cannot be read, or ""
    """

    accuracy: dict[str, Ends] = field(default_factory=dict)
    overconfidence: Ends | None = None
    tokens_per_second: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class RunRow:
    """A run in the table. Times are seconds since the epoch; None = unknown.

    reason    why it has no result, or what is wrong with its files; "" if nothing is
    duration  seconds from its start to its last update; of a resumed run with the time between
    """

    name: str
    run_dir: Path
    status: str
    reason: str = ""
    method: str | None = None
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    started: float | None = None
    duration: float | None = None
    measures: Measures = field(default_factory=Measures)
    labels: Labels = field(default_factory=Labels)


def list_run_rows(runs_dir: str | Path) -> list[RunRow]:
    """Rows of all runs of a folder, newest first; those of studies are named STUDY/NAME."""
    rows = [_row(state) for state in find_jobs(runs_dir)]
    for name in sorted(job_names(runs_dir) - {row.name for row in rows}):
        run_dir = Path(runs_dir, name)
        if run_dir.is_symlink():
            reason = f"{run_dir} is a link out of the runs folder {runs_dir}. Open that folder with --runs."
            rows.append(RunRow(name, run_dir, "unreadable", reason))
    return rows


def _row(state: JobState) -> RunRow:
    status_file, metrics_file = state.run_dir / "run.json", state.run_dir / "metrics.jsonl"
    former = _describe_former(status_file, stamp(status_file))
    measures = _read_measures(metrics_file, stamp(metrics_file))
    labels, damage = _read_labels(state.run_dir, stamp(job_folder(state.run_dir) / LABELS_FILE))
    end = time.time() if state.is_alive else state.updated
    return RunRow(
        state.name,
        state.run_dir,
        state.status,
        " ".join(filter(None, (state.error or state.doing, former, measures.fault, damage))),
        state.method,
        state.seed,
        state.step,
        state.steps,
        state.started,
        None if state.started is None or end is None else max(0.0, end - state.started),
        measures,
        labels,
    )


@functools.lru_cache(MAX_RUNS)
def _describe_former(file: Path, stamp: tuple | None) -> str:
    """How to convert a run that an earlier version wrote; "" for others. stamp: tells versions of run.json apart."""
    try:
        config = read_object(file).get("config")
    except (OSError, Malformed):  # the run's state names the fault
        return ""
    former = isinstance(config, dict) and any(name in (config.get(section) or ()) for section, name in _FORMER_KEYS)
    if not former or upgrade_config(config, known_keys(config)) == config:  # an option of a method may have such a name
        return ""
    return f"An earlier version of the workbench wrote it. Run: workbench upgrade {file.parent}"


@functools.lru_cache(MAX_RUNS)
def _read_labels(run_dir: Path, stamp: tuple | None) -> tuple[Labels, str]:
    if stamp is None:
        return Labels(), ""
    try:
        return read_labels(run_dir), ""
    except RunError as error:
        return Labels(), str(error)


@functools.lru_cache(MAX_RUNS)
def _read_measures(file: Path, stamp: tuple | None) -> Measures:
    """Measures of a metrics.jsonl. Only its lines of evaluations are parsed."""
    if stamp is None:
        return Measures()
    try:
        raw = file.read_bytes()
        complete = b"\n" + raw[: raw.rfind(b"\n") + 1]
        first, last = complete.find(b"\n" + _EVALUATION), complete.rfind(b"\n" + _EVALUATION)
        ends = [_parse_line(complete, start, file) for start in (first, last) if start >= 0]
        # searched for rather than parsed, which would take ten times as long
        parts = raw.split(b'"tokens_per_second": ')[1:]
        speeds = [float(match[0]) for match in map(_SPEED.match, parts) if match]
    except OSError as error:
        return Measures(fault=f"{file} cannot be read ({reason(error)}).")
    except (RunError, ValueError) as error:
        return Measures(fault=str(error))
    context = next((context for context in map(_context, ends[0] if ends else ()) if context), None)
    if context is None:
        return Measures(tokens_per_second=statistics.median(speeds) if speeds else None)
    accuracy, confidence = (_by_group(ends, f"{name}/{context}/") for name in ("accuracy", "confidence"))
    group = PRIVILEGED if PRIVILEGED in accuracy and PRIVILEGED in confidence else ALL
    speed = statistics.median(speeds) if speeds else None
    if group not in confidence:
        return Measures(accuracy, tokens_per_second=speed)
    before, after = (sure - right for sure, right in zip(confidence[group], accuracy[group], strict=True))
    return Measures(accuracy, (before, after), speed)


def _parse_line(raw: bytes, start: int, file: Path) -> dict:
    """Parse the line after the line end at `start`."""
    return parse_metrics(raw[start + 1 : raw.index(b"\n", start + 1)], file, raw.count(b"\n", 0, start + 1))


def _context(metric: str) -> str | None:
    """Return POLICY/CONTEXT of a student's accuracy without evidence; None for another metric."""
    match = _ACCURACY.fullmatch(metric)
    return f"{match[1]}/{match[2]}" if match and match[1] == STUDENT and not is_privileged(match[2]) else None


def _by_group(ends: list[dict], prefix: str) -> dict[str, Ends]:
    """Group of questions -> first and last value, of groups that both evaluations have."""
    first, last = ends
    return {
        name.removeprefix(prefix): (value, last[name])
        for name, value in first.items()
        if name.startswith(prefix) and name in last
    }
