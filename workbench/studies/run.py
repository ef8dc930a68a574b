"""Run a study: one process per task, outcomes in study.json, and a stop after which it can be resumed.

1. References (the starting student, every teacher) are evaluated first, once per study.
2. Runs follow, all variants of the first seed, then of the second, so that finished runs are balanced at any time.
3. The error of a failed run is recorded, and the others continue. So is the exit status of a process that dies.
4. On SIGINT or SIGTERM every run finishes its step and saves. A second signal kills the processes.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from workbench.errors import RunError
from workbench.files.atomic import write_text
from workbench.files.locks import lock
from workbench.runs.commands import called
from workbench.runs.folder import describe_environment
from workbench.runs.processes import identify
from workbench.runs.threads import configured_threads, num_cores
from workbench.studies.plan import Study, other_settings
from workbench.studies.records import FILE, describe, describe_reference, is_evaluated
from workbench.studies.task import FAILED, STOP_SIGNALS, STOPPED, Task, do_task

_LOGS = ".logs"  # what the tasks print
print_now = partial(print, flush=True)  # also into a pipe or a file

log = logging.getLogger("workbench")


def run_study(study: Study, *, say: Callable[[str], None] = print_now) -> bool:
    """Run all unfinished tasks of a study. Returns False if it was stopped by a signal.

    say  called with one line per finished run
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with _claim(study):
        record = Record(study)
        _refuse_another(study, record.facts.get("plan") or {})
        todo = _tasks(study)
        tasks = [task for task in todo if not _is_done(task)]
        if len(tasks) < len(todo):
            say(f"{len(todo) - len(tasks)} of {len(todo)} tasks are done already")
        if not tasks:
            return True
        (study.folder / _LOGS).mkdir(exist_ok=True)
        scheduler = Scheduler(study, record, len(tasks), say)
        with scheduler.signals():
            return scheduler.run(tasks)


class Record:
    """study.json: plan, sessions and outcomes of a study. Writes are atomic."""

    def __init__(self, study: Study) -> None:
        self.file = study.folder / "study.json"
        try:
            self.facts = json.loads(self.file.read_text())
        except (OSError, ValueError):
            self.facts = {}
        self.facts.setdefault("sessions", [])
        self.facts.setdefault("runs", {})

    def begin(self, study: Study, num_threads: int) -> None:
        self.facts["plan"] = {
            "source": str(study.source),
            "command": called(),
            "baseline": study.baseline,
            "seeds": list(study.seeds),
            "faults": study.faults,
            "runs": [study.config(variant, seed).name for seed in study.seeds for variant in study.usable],
            "notes": {variant.name: variant.note for variant in study.variants if variant.note},
        }
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        surroundings = describe_environment()
        process = {"pid": os.getpid(), "identity": identify(os.getpid())}
        self.facts["sessions"].append(
            {
                "started": started,
                "command": called(),
                "seconds": 0.0,
                "processes": study.parallel,
                "threads": num_threads,
                **process,
                **surroundings,
            }
        )
        self._begun = time.perf_counter()
        self.write()

    def add(self, name: str, status: str, error: str | None, seconds: float) -> None:
        seconds += self.facts["runs"].get(name, {}).get("seconds", 0.0)
        self.facts["runs"][name] = {"status": status, "error": error, "seconds": round(seconds, 2)}
        self.write()

    def write(self) -> None:
        self.facts["sessions"][-1]["seconds"] = round(time.perf_counter() - self._begun, 2)
        write_text(self.file, json.dumps(self.facts, indent=1, default=str))


@dataclass
class _Running:
    """A task with its process. is_new: whether it trains a run, for the estimate of the time left."""

    task: Task
    process: BaseProcess
    is_new: bool
    start: float


class Scheduler:
    """Run the tasks of a study, each in a new process. `run` is the loop."""

    def __init__(self, study: Study, record: Record, total: int, say: Callable[[str], None]) -> None:
        self.study, self.record, self.total, self.say = study, record, total, say
        self.running: list[_Running] = []
        self.stopping, self.done, self.num_trained = False, 0, 0
        self.num_threads = configured_threads() or max(1, num_cores() // study.parallel)
        threads = {"OMP_NUM_THREADS": str(self.num_threads), "TOKENIZERS_PARALLELISM": "false"}
        self.environment = {**os.environ, **threads}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["workbench.studies.task", "pandas"]
        )  # pandas: pyarrow imports it if it can

    def run(self, tasks: list[Task]) -> bool:
        """Run the tasks. Returns False if a signal stopped the study."""
        self.record.begin(self.study, self.num_threads)
        self.begun, has_stopped = time.perf_counter(), False
        try:
            while self.running or (tasks and not self.stopping):
                while not self.stopping and (task := self._next(tasks)) is not None:
                    tasks.remove(task)
                    self.running.append(self._start(task))
                if self.stopping and not has_stopped:
                    has_stopped = True
                    for running in self.running:
                        running.process.terminate()
                ended = wait([running.process.sentinel for running in self.running], timeout=0.2)
                for running in [running for running in self.running if running.process.sentinel in ended]:
                    self.running.remove(running)
                    self._record(running, len(tasks))
        finally:
            for running in self.running:
                running.process.kill()
        self.record.write()
        return not self.stopping

    def _next(self, tasks: list[Task]) -> Task | None:
        """Return the first task that can start now."""
        if len(self.running) == self.study.parallel:
            return None
        unfinished = {task.name for task in tasks} | {running.task.name for running in self.running}
        return next((task for task in tasks if task.starts_from not in unfinished), None)

    def _start(self, task: Task) -> _Running:
        is_new = task.config is not None and self.record.facts["runs"].get(task.name, {}).get("status") != "finished"
        arguments = (task, self.num_threads, self.environment)
        process = self.context.Process(target=do_task, args=arguments, name=task.name, daemon=True)
        resource_tracker.ensure_running()  # it unblocks the signals when it starts
        # Ctrl-C must not end the process that tasks are forked from; a task unblocks the signals when it handles them
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            raise RunError(
                f"the process that tasks are forked from has exited ({error or 'it was killed'}). Run the same "
                "command again: it resumes the study."
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return _Running(task, process, is_new, time.perf_counter())

    def _record(self, running: _Running, num_left: int) -> None:
        """Record the outcome of an exited process, and print it with the time left."""
        name, seconds = running.task.name, time.perf_counter() - running.start
        status, error = self._outcome(running)
        self.record.add(name, status, error, seconds)
        self.done += 1
        self.num_trained += running.is_new
        spent = time.perf_counter() - self.begun
        line = f"[{self.done}/{self.total}] {name} {status} in {seconds:.0f} s"
        if self.num_trained and num_left:
            line += f"; about {spent / self.num_trained * num_left / 60:.0f} min left"
        self.say(line if error is None else f"{line}: {error}")

    def _outcome(self, running: _Running) -> tuple[str, str | None]:
        """Return status and error of a task by the exit status of its process."""
        code, log_file = running.process.exitcode, running.task.log_file
        if code == 0:
            return "finished", None
        if code == STOPPED:
            return "stopped", None
        if code in (1, FAILED):
            *_, error = ["", *log_file.read_text(encoding="utf-8", errors="replace").splitlines()]
            return "failed", error if code == FAILED else f"{error} (traceback in {log_file})"
        why = f"signal {-code}" if code < 0 else f"exit status {code}"
        return "failed", (
            f"its process exited unexpectedly ({why}): killed, or out of memory. See {log_file}; the same command "
            "tries again."
        )

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        log.info("stopping: every run finishes its step and saves; the same command resumes the study")


def _refuse_another(study: Study, plan: dict) -> None:
    """Raise RunError if the folder belongs to another study, or if every existing run has other settings.

    plan  the plan in study.json
    """
    configs = [study.config(variant, seed) for variant in study.usable for seed in study.seeds]
    names, source = [config.name for config in configs], plan.get("source")
    if source not in (None, str(study.source)) and set(names).isdisjoint(plan.get("runs") or ()):
        raise RunError(
            f"{study.folder} belongs to the study in {source}, which shares no run with {study.source}; nothing was "
            "started. Set another name: in one of the two files, or delete the folder."
        )
    there = [config for config in configs if (config.run_dir / "config.yaml").is_file()]
    faults = [fault for config in there if (fault := other_settings(config)) is not None]
    if faults and len(faults) == len(there):
        raise RunError(
            f"the {len(there)} runs in {study.folder} have other settings than this study; nothing was started. "
            f"{faults[0]} If you gave overrides last time, give them again; the Studies tab shows the command."
        )


def _tasks(study: Study) -> list[Task]:
    references = {reference: study.reference_file(reference.row) for reference in study.references()}
    logs = study.folder / _LOGS
    tasks = [
        Task(reference.row, study.evaluate, logs / f"{file.stem}.log", reference=reference, file=file)
        for reference, file in references.items()
    ]
    for seed in study.seeds:
        for variant in study.usable:
            config = study.config(variant, seed)
            starts = tuple(file for reference, file in references.items() if reference.belongs_to(config))
            before = study.before(variant, seed)
            starts_from, log_file = None if before is None else before.name, logs / f"{config.name}.log"
            tasks.append(
                Task(config.name, study.evaluate, log_file, config=config, starts=starts, starts_from=starts_from)
            )
    return tasks


def _is_done(task: Task) -> bool:
    if task.reference is not None:
        return is_evaluated(task.file, describe_reference(task.reference, task.evaluate))
    return is_evaluated(task.config.run_dir / FILE, describe(task.config, task.evaluate, task.config.training.steps))


@contextlib.contextmanager
def _claim(study: Study) -> Iterator[None]:
    """Lock the study for this process. The system releases the lock when the process exits."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(study.folder / ".claim", wait=False))
        except BlockingIOError:
            raise RunError(f"study {study.folder} is being run by another process. Wait for it, or stop it.") from None
        yield
