"""Start, stop, resume and inspect runs as separate processes, which outlive the browser and the app.

1. `start_run` starts `workbench train` in its own session, with its output in a file.
2. `.jobs/NAME/`, beside the run folders, has config.yaml (its configuration), train.out (its output) and job.json (its
   process). Only training writes to the run folder itself.
3. The state of a run is derived from files and the process table: `find_jobs`.
4. A process is identified by pid and start time. A run whose run.json says "running" but whose process has exited died.
5. A run is stopped with one SIGTERM: the loop finishes its step, saves and exits. A second one would lose the
   checkpoint.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench.config.models import check_models, refuse_remote_code
from workbench.config.schema import RunConfig, read_yaml
from workbench.data.picture_bounds import as_variable
from workbench.errors import ConfigError, RunError
from workbench.files.atomic import stamp, write_text
from workbench.files.locks import lock
from workbench.files.parsing import read_object
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.commands import unedited_config
from workbench.runs.folder import (
    RunFolder,
    find_run_dir,
    is_run_folder,
    safe_run_dir,
    status_fault,
    subfolders,
)
from workbench.runs.job_state import ALIVE, JobState
from workbench.runs.printed import is_exception, tail
from workbench.runs.processes import born_at, child_environment, identify, send
from workbench.runs.run_queue import limit_of, place_of, refuse_full

_FOLDER = ".jobs"
_resting: dict[Path, tuple[tuple, JobState]] = {}  # states of runs at rest, with the stamps of their files


@dataclass(frozen=True)
class _Record:
    """Contents of job.json: the process of a run.

    identity  see workbench.runs.processes
    seen_ns   modification time of run.json at the start; unchanged = the process has not written it yet
    offset    start of its output in train.out
    queue     runs folder of its queue; empty if it started at once
    method, seed, steps   of its configuration; None in records of older versions
    """

    pid: int
    identity: str | None
    started: float
    command: tuple[str, ...] = ()
    folder: str = "."
    seen_ns: int = 0
    offset: int = 0
    stop_asked: bool = False
    queue: str = ""
    method: str | None = None
    seed: int | None = None
    steps: int | None = None


def start_run(
    config: RunConfig,
    runs_dir: str | Path | None = None,
    *,
    folders: Sequence[Path] | None = None,
    queue: Path | None = None,
) -> JobState:
    """Start training in a separate process and return at once.

    runs_dir  folder for the run, instead of the configuration's output_dir
    folders   allowed folders of images besides the data's own; None = any
    queue     runs folder in whose queue it waits; None = start at once

    Raises: RunError if the name is taken or leads out of the folder; ConfigError if a model is missing, or may run
        Python code (models.trust_remote_code).
    """
    runs_dir = Path(config.output_dir if runs_dir is None else runs_dir)
    config = replace(config, output_dir=str(runs_dir))
    run_dir = safe_run_dir(runs_dir, config.name)
    refuse_remote_code(config, "workbench train RECIPE")
    check_models(config)
    refuse_full(queue)
    folder = job_folder(run_dir, make=True)
    with lock_job(folder):
        if run_dir.exists():
            raise RunError(f"run folder {run_dir} exists. Resume that run, or choose another name.")
        record = _read_record(run_dir)
        if record is not None and _is_alive(record):
            raise RunError(f'run "{config.name}" is already starting (process {record.pid}). Choose another name.')
        file = folder / "config.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        _spawn(run_dir, ["train", str(file.resolve())], config, Path.cwd(), folders, queue)
    return read_job(run_dir)


def resume_run(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    folders: Sequence[Path] | None = None,
    queue: Path | None = None,
) -> JobState:
    """Resume a run that stopped, failed or died, in a new process.

    overrides  allowed overrides of `workbench resume`, such as training.save_every=...
    folders    allowed folders of images besides the data's own; None = any
    queue      runs folder in whose queue it waits; None = start at once

    Raises: RunError if the run does not exist, is running, or has finished; ConfigError if an override is not allowed,
        or the model may run Python code (models.trust_remote_code). The run is then unchanged.
    """
    run_dir = Path(run_dir)
    safe_run_dir(run_dir.parent, run_dir.name)
    folder = RunFolder.open(run_dir)
    refuse_full(queue)
    with lock_job(job_folder(run_dir, make=True)):
        state = read_job(run_dir)
        if state.is_alive:
            raise RunError(f"run {run_dir} is {state.status} (process {state.pid}). Stop it first.")
        if state.status == "finished":
            raise RunError(
                f"run {run_dir} has finished all {state.steps} steps. Start a new run from its configuration instead."
            )
        config = unedited_config(folder, overrides)
        refuse_remote_code(config, f"workbench resume {run_dir}")
        record = _read_record(run_dir)
        start = Path(record.folder) if record and Path(record.folder).is_dir() else Path.cwd()
        _spawn(run_dir, ["resume", str(run_dir.resolve()), *overrides], config, start, folders, queue)
    return read_job(run_dir)


def stop_run(run_dir: str | Path, *, at_once: bool = False) -> JobState:
    """Stop a run after its current step, with a checkpoint. Repeated calls have no effect.

    at_once  kill a run that hangs; resuming it repeats the steps since its newest checkpoint

    Raises: RunError if it is not running.
    """
    run_dir = Path(run_dir)
    safe_run_dir(run_dir.parent, run_dir.name)
    with lock_job(job_folder(run_dir, make=True)):
        record = _living(_read_record(run_dir), _read_status(run_dir)[0])
        if record is None:
            raise RunError(f"run {run_dir} cannot be stopped: its status is {read_job(run_dir).status}.")
        if at_once:
            send(record.pid, record.identity, signal.SIGKILL)
        elif not record.stop_asked and send(record.pid, record.identity, signal.SIGTERM):
            _write_record(run_dir, replace(record, stop_asked=True))
    return read_job(run_dir)


def find_jobs(runs_dir: str | Path) -> list[JobState]:
    """List all runs of a folder, newest first, including runs without a run folder; those of studies as study/name.

    The state of a run at rest is read again only after one of its files has changed.
    """
    jobs = []
    for name in job_names(runs_dir):
        with contextlib.suppress(RunError):  # a link out of the folder, or a run deleted meanwhile
            jobs.append(replace(_state_of(find_run_dir(runs_dir, name)), name=name))
    return sorted(jobs, key=lambda state: (state.started or 0.0, state.name), reverse=True)


def job_names(runs_dir: str | Path) -> set[str]:
    """Names of all runs of a folder, also of half-written ones and of links; those of studies as study/name."""
    names = set()
    for folder in subfolders(Path(runs_dir)):
        if is_run_folder(folder):
            names.add(folder.name)
        else:
            names |= {f"{folder.name}/{nested.name}" for nested in subfolders(folder) if is_run_folder(nested)}
    return names | {path.parent.name for path in Path(runs_dir, _FOLDER).glob("*/job.json")}


def _state_of(run_dir: Path) -> JobState:
    """As read_job, from memory while the run is at rest and its files are unchanged."""
    job = job_folder(run_dir)
    files = (run_dir / "run.json", run_dir / "config.yaml", job / "job.json", job / "train.out", job / "config.yaml")
    now = tuple(map(stamp, files))
    before, state = _resting.get(run_dir, (None, None))
    if before != now:
        state = read_job(run_dir)
        if state.is_alive:
            _resting.pop(run_dir, None)
        else:
            _resting[run_dir] = now, state
    return state


def read_job(run_dir: str | Path) -> JobState:
    """Return the state of one run. Raises RunError if it does not exist."""
    run_dir = Path(run_dir)
    record = _read_record(run_dir)
    facts, change_ns, fault = _read_status(run_dir)
    living = _living(record, facts)
    process = living or record
    if facts is None and record is None and fault is None:
        raise RunError(f"run {run_dir} does not exist. It may have been deleted; choose another run.")
    if facts is None and fault is None and living is None and _has_run(run_dir, record):
        raise RunError(f"run {run_dir} was deleted. Choose another run.")
    facts = facts or {}
    is_stale = record is not None and change_ns == record.seen_ns  # run.json is older than the process
    reported = "starting" if is_stale else facts.get("status", "starting")
    if fault is not None:
        status = "unreadable"
    elif living is not None:
        status = "stopping" if living.stop_asked else reported
    elif reported == "starting":
        status = "stopped" if record is not None and record.stop_asked else "failed"
    else:
        status = "died" if reported == "running" else reported
    if living is not None and status not in ALIVE:
        status = "running"  # its final status is written, and it is about to exit
    position = place_of(Path(living.queue), living.pid) if status == "starting" and living and living.queue else None
    if position is not None:
        status = "queued"
        limit = limit_of(Path(living.queue))
        facts["doing"] = f"queued, position {position[0]} of {position[1]}: at most {limit} runs at once"
    updated = _epoch(facts.get("updated"))
    configured = record or _Record(0, None, 0.0)
    return JobState(
        name=run_dir.name,
        run_dir=run_dir,
        status=status,
        method=facts.get("method") or configured.method or _configured(run_dir, "method", "name", str),
        seed=facts.get("seed", configured.seed),
        step=facts.get("steps_done") or 0,
        steps=facts.get("steps") or configured.steps or _configured(run_dir, "training", "steps", int),
        remaining_s=_remaining(facts, updated) if status == "running" else None,
        started=_epoch(facts.get("started")) or (record.started if record else None),
        updated=updated,
        pid=process.pid if process else facts.get("pid"),
        doing=facts.get("doing") if status in ALIVE else None,
        error=fault or _error(run_dir, status, None if is_stale else facts.get("error"), record),
        warnings=tuple(map(str, [*(facts.get("missing") or ()), *(facts.get("warnings") or ())])),
        skipped=dict(facts.get("skipped") or {}),
        command=tuple(map(str, process.command if process and process.command else facts.get("command") or ())),
    )


def config_file(run_dir: str | Path) -> Path | None:
    """Return the path of a run's config.yaml, or of its job's if it has no run folder; None if both are missing."""
    files = (Path(run_dir) / "config.yaml", job_folder(Path(run_dir)) / "config.yaml")
    return next((file for file in files if file.is_file()), None)


def log_tail(run_dir: str | Path) -> str:
    """Return the last 200 lines of a run's output, with only the last state of a progress bar."""
    run_dir = Path(run_dir)
    for file in (job_folder(run_dir) / "train.out", run_dir / "train.log"):
        if file.is_file():
            return "\n".join(tail(file)[-200:])
    return ""


def _spawn(
    run_dir: Path,
    arguments: list[str],
    config: RunConfig,
    start: Path,
    folders: Sequence[Path] | None = None,
    queue: Path | None = None,
) -> None:
    """Start the process and write its record. No shell is involved."""
    command = (sys.executable, "-m", "workbench", *arguments)
    out = job_folder(run_dir) / "train.out"
    seen_ns = _read_status(run_dir)[1]
    bounds = {} if folders is None else as_variable(folders)
    waits: tuple[str, ...] = ()
    if queue is not None:
        module = ("-m", "workbench.runs.waiting")
        waits = (sys.executable, *module, str(queue.resolve()), str(run_dir.resolve()), str(time.time_ns()))
    with out.open("ab") as stream:
        offset = stream.tell()
        process = subprocess.Popen(
            [*waits, *command],
            cwd=start,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals of the app's terminal do not reach it
            # with the interval the progress bar does not fill the disk
            env=child_environment() | bounds | {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "2"},
        )
    # reap it when it exits, or it stays in the process table as long as the app runs
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()
    root = "" if queue is None else str(queue.resolve())
    facts = {"method": config.method["name"], "seed": config.seed, "steps": config.training.steps}
    _write_record(
        run_dir,
        _Record(
            process.pid, identify(process.pid), time.time(), command, str(start), seen_ns, offset, queue=root, **facts
        ),
    )


def _living(record: _Record | None, facts: dict | None) -> _Record | None:
    """Return the run's living process: the one in job.json, or the one in run.json (`facts`), started in a terminal."""
    if record is not None and _is_alive(record):
        return record
    facts = facts or {}
    pid, updated = facts.get("pid"), _epoch(facts.get("updated"))
    if facts.get("status") != "running" or not isinstance(pid, int) or updated is None:
        return None
    born = born_at(pid)
    if born is None or born > updated + 2:  # started after the last heartbeat: another process
        return None
    if "process" in facts and facts["process"] != identify(pid):  # another machine or container, or before a reboot
        return None
    return _Record(pid, identify(pid), born, tuple(facts.get("command") or ()))


def _is_alive(record: _Record) -> bool:
    return record.identity is not None and identify(record.pid) == record.identity


def job_folder(run_dir: Path, *, make: bool = False) -> Path:
    """Return the folder beside the runs for the files of a run's process. Raises RunError if it leads elsewhere."""
    folder = run_dir.parent / _FOLDER / run_dir.name
    if make:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be created ({error.strerror}). Choose another runs folder.") from None
    is_link = folder.is_symlink() or folder.parent.is_symlink()
    if is_link and folder.resolve() != run_dir.parent.resolve() / _FOLDER / run_dir.name:
        raise RunError(f"{folder} leads out of the runs folder {run_dir.parent}. Remove the link.")
    return folder


def lock_job(folder: Path) -> AbstractContextManager[None]:
    """Serialize starts, stops and resumes of a run, also between two apps."""
    return lock(folder / "lock")


def _read_record(run_dir: Path) -> _Record | None:
    try:
        values = json.loads((job_folder(run_dir) / "job.json").read_text())
        return _Record(**{**values, "command": tuple(values["command"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_record(run_dir: Path, record: _Record) -> None:
    file = job_folder(run_dir) / "job.json"
    write_text(file, json.dumps(asdict(record), indent=1))


def _read_status(run_dir: Path) -> tuple[dict | None, int, str | None]:
    """Read run.json. Returns contents, modification time (0 if missing), and an error message if it is invalid."""
    file = run_dir / "run.json"
    try:
        change_ns = file.stat().st_mtime_ns
        facts = read_object(file)
    except FileNotFoundError:
        if is_run_folder(run_dir):
            return None, 0, f"{file} is missing. Restore the file, or delete the run's folder."
        return None, 0, None
    except (OSError, ValueError) as error:
        why = f"truncated or damaged, {error}" if isinstance(error, ValueError) else error.strerror
        return None, 0, f"{file} cannot be read: {why}. Restore the file, or delete the run's folder."
    fault = status_fault(facts)
    if fault is not None:
        return None, 0, f"{file}: {fault}. Restore the file, or delete the run's folder."
    return facts, change_ns, None


def _configured(run_dir: Path, section: str, key: str, kind: type) -> Any:
    """Read a value of the run's or the job's configuration; None if missing or of another type."""
    for folder in (run_dir, job_folder(run_dir)):
        with contextlib.suppress(ConfigError):
            values = read_yaml(folder / "config.yaml").get(section)
            if isinstance(values, dict):
                value = values.get(key)
                return value if isinstance(value, kind) else None
    return None


def _epoch(text: object) -> float | None:
    try:
        time_of = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time_of.timestamp() if time_of is not None and time_of.tzinfo is not None else None


def _remaining(facts: dict, updated: float | None) -> float | None:
    remaining = facts.get("remaining_s")
    if not isinstance(remaining, (int, float)) or updated is None:
        return None
    return max(0.0, remaining - (time.time() - updated))


def _error(run_dir: Path, status: str, error: str | None, record: _Record | None) -> str | None:
    """Return the error of a failed run: its own message, `error`, else the last exception in its output."""
    if status not in ("failed", "died"):
        return None
    if status == "failed" and error:
        return error
    out = job_folder(run_dir) / "train.out"
    lines = tail(out, record.offset) if record is not None and out.is_file() else []
    raised = [line for line in lines if is_exception(line)]
    if raised:
        return raised[-1]

    saved = list_checkpoints(run_dir)
    resumes = f"continues from step {saved[-1].step}" if saved else "starts over, since it saved no checkpoint"
    again = f" Resuming it {resumes}." if (run_dir / "config.yaml").is_file() else " Start it again."
    last_line = next((f' Last line of its output: "{line[-200:]}".' for line in reversed(lines) if line.strip()), "")
    return f"the process exited unexpectedly: killed, out of memory, or the machine was restarted.{last_line}{again}"


def _has_run(run_dir: Path, record: _Record) -> bool:
    """Whether a process without run.json had created one: it has output without an exception."""
    out = job_folder(run_dir) / "train.out"
    lines = list(filter(None, tail(out, record.offset))) if out.is_file() else []
    return bool(lines) and not any(map(is_exception, lines))
