"""Read the state, runs and comparisons of a study from its folder, also while it runs or after it was killed.

study.json holds the plan and the outcomes, run.json the state of each run, comparisons.parquet and table.md the last
report. Nothing is measured here.
"""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from workbench.analysis.table import Table, table
from workbench.errors import RunError
from workbench.runs.folder import safe_run_dir
from workbench.runs.jobs import JobState, find_jobs
from workbench.runs.processes import identify
from workbench.studies.measures import Comparison
from workbench.studies.plan import UNTRAINED
from workbench.studies.report import HEADLINES, difference_text, interval_text, value_text

RECORD = "study.json"
RUN_COLUMNS = ["run", "status", "step", "of", "seconds", "what"]
COMPARED_COLUMNS = [
    "variant",
    "seeds",
    "mean",
    "difference",
    "difference_interval",
    "verdict",
    "gain",
    "gain_interval",
    "gain_verdict",
]
NO_TABLE = "No comparisons yet. The study writes them at its end. To compare the finished runs now: {command}"
_OUTCOMES = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class StudyStatus:
    """Content of a study's folder.

    plan         source, command, seeds, baseline, runs (names), notes and faults by variant; {} in old folders
    outcomes     run or reference -> status, error, seconds
    jobs         run -> its state now
    is_running   whether a process works on it
    comparisons  of the last report; empty if none was written
    report       table.md of the last report, or ""
    """

    name: str
    folder: Path
    plan: dict
    sessions: list[dict]
    outcomes: dict[str, dict]
    jobs: dict[str, JobState]
    is_running: bool
    comparisons: list[Comparison] = field(default_factory=list)
    report: str = ""

    @property
    def runs(self) -> list[str]:
        """Names of its runs in the order in which they start."""
        names = dict.fromkeys(self.plan.get("runs") or ())
        return list(names | dict.fromkeys(sorted(self.jobs)))

    @property
    def baseline(self) -> str:
        """Variant that the others are compared with; "" if unknown."""
        planned = self.plan.get("baseline")
        others = {
            comparison.against
            for comparison in self.comparisons
            if comparison.against and comparison.against.split()[0] != UNTRAINED
        }
        return planned or next(iter(others), "")

    @property
    def command(self) -> str:
        """Command that resumes it, with all overrides."""
        called = self.plan.get("command") or ""
        if called.startswith("workbench study "):
            return called
        return f"workbench study {self.plan['source']}" if self.plan.get("source") else ""

    def status_of(self, run: str) -> str:
        """State of a run: of its process, else its outcome, else "not started"."""
        job, outcome = self.jobs.get(run), self.outcomes.get(run, {}).get("status")
        if job is not None and job.is_alive:
            return job.status
        return outcome if outcome in _OUTCOMES else job.status if job is not None else "not started"

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of runs, most frequent first."""
        states = [self.status_of(run) for run in self.runs]
        return dict(sorted(((status, states.count(status)) for status in set(states)), key=lambda pair: -pair[1]))

    @property
    def state(self) -> str:
        """State of the study: running, finished or unfinished."""
        if self.is_running:
            return "running"
        return "finished" if self.runs and set(self.counts) == {"finished"} else "unfinished"


def find_studies(runs_dir: str | Path) -> list[str]:
    """List the names of the studies in a runs folder, most recently changed first."""
    studies = []
    for file in Path(runs_dir).glob(f"*/{RECORD}"):
        with contextlib.suppress(RunError, OSError):  # a link out of the folder, or a study deleted meanwhile
            studies.append((file.stat().st_mtime, safe_run_dir(runs_dir, file.parent.name).name))
    return [name for _, name in sorted(studies, reverse=True)]


def read_study(runs_dir: str | Path, name: str) -> StudyStatus:
    """Read one study. Raises RunError if it does not exist or its files cannot be read."""
    folder = safe_run_dir(runs_dir, name)
    try:
        facts = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sessions, outcomes = list(facts.get("sessions") or ()), dict(facts.get("runs") or {})
    except FileNotFoundError:
        raise RunError(f'study "{name}" does not exist in {runs_dir}. Choose one from the list.') from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RunError(
            f"{folder / RECORD} cannot be read ({error}). Run the study again: it resumes its runs."
        ) from None
    jobs = {state.name: state for state in find_jobs(folder)}
    is_running = any(_is_at_work(session) for session in sessions[-1:]) or any(job.is_alive for job in jobs.values())
    report = folder / "table.md"
    text = report.read_text(encoding="utf-8") if report.is_file() else ""
    plan = facts.get("plan") or {}
    return StudyStatus(folder.name, folder, plan, sessions, outcomes, jobs, is_running, _comparisons(folder), text)


def runs_of(study: StudyStatus) -> Table:
    """Table of all runs with their states, failed ones first."""
    rows = []
    for run in study.runs:
        job, outcome, status = study.jobs.get(run), study.outcomes.get(run, {}), study.status_of(run)
        rows.append(
            {
                "run": run,
                "status": status,
                "step": job.step if job else None,
                "of": job.steps if job else None,
                "seconds": _whole(outcome.get("seconds")),
                "what": outcome.get("error") or (job.error if job else None) or "",
            }
        )
    rows.sort(key=lambda row: row["status"] not in ("failed", "died", "unreadable"))
    empty = f"No run has started. Start the study in a terminal: {study.command or 'workbench study FILE'}"
    return table(rows, RUN_COLUMNS, run=study.name, empty=empty, units={"seconds": "s"})


def groups_of(study: StudyStatus) -> list[tuple[str, str]]:
    """List the evaluated (data, context) pairs in the report's order."""
    return list(
        dict.fromkeys((comparison.data, comparison.context) for comparison in study.comparisons if comparison.context)
    )


def measures_of(study: StudyStatus, data: str, context: str) -> list[tuple[str, str]]:
    """List the (measure, visibility) pairs of a dataset and context, the report's headlines first."""
    compared_keys = dict.fromkeys(
        (comparison.measure, comparison.visibility)
        for comparison in study.comparisons
        if (comparison.data, comparison.context) == (data, context)
    )
    return [key for key in HEADLINES if key in compared_keys] + [key for key in compared_keys if key not in HEADLINES]


def compared(study: StudyStatus, data: str, context: str, measure: str, visibility: str) -> Table:
    """Table of every row's mean and its differences to the baseline and to the untrained student, with intervals."""
    comparisons = [
        comparison
        for comparison in study.comparisons
        if (comparison.data, comparison.context, comparison.measure, comparison.visibility)
        == (data, context, measure, visibility)
    ]
    rows = []
    for comparison in comparisons:
        if comparison.against is None:
            row = {"variant": comparison.variant, "seeds": comparison.num_seeds or None, "mean": value_text(comparison)}
            for other in (
                other for other in comparisons if other.variant == comparison.variant and other.against is not None
            ):
                prefix = "" if other.against == study.baseline else "gain_"
                name = "gain" if prefix else "difference"
                row |= {
                    name: _minus(difference_text(other)),
                    f"{name}_interval": _minus(interval_text(other, comparison)),
                    f"{prefix}verdict": other.verdict,
                }
            rows.append(row)
    empty = NO_TABLE.format(command=f"{study.command or 'workbench study FILE'} --report")
    return table(rows, COMPARED_COLUMNS, run=study.name, empty=empty)


def _minus(text: str) -> str:
    """Use the minus sign of the app's other numbers."""
    return text.replace("-", "\u2212")


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _comparisons(folder: Path) -> list[Comparison]:
    file = folder / "comparisons.parquet"
    try:
        rows = pq.read_table(file).drop_columns(["study"]).to_pylist() if file.is_file() else []
        return [Comparison(**row) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{file} cannot be read ({error}). Write it again: workbench study FILE --report.") from None


def _is_at_work(session: dict) -> bool:
    pid, identity = session.get("pid"), session.get("identity")
    return isinstance(pid, int) and identity is not None and identify(pid) == identity
