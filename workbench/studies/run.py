"""Run a study: send tasks to worker processes, record outcomes in study.json, and stop so that it can be resumed.

1. References (the starting student, every teacher) are evaluated first, once per study.
2. Runs follow, all variants of the first seed, then of the second, so that finished runs are balanced at any time.
3. The error of a failed run is recorded, and the others continue. A process that dies is replaced.
4. On SIGINT or SIGTERM every run finishes its step and saves. A second signal kills the processes.
"""

import contextlib
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

from workbench.errors import RunError
from workbench.files.atomic import write_text
from workbench.runs.commands import called
from workbench.runs.folder import _surroundings
from workbench.runs.processes import identify
from workbench.runs.threads import asked_threads, num_cores
from workbench.studies.plan import Study, other_settings
from workbench.studies.records import FILE, describe, describe_reference, is_evaluated
from workbench.studies.worker import Outcome, Task, work

log = logging.getLogger("workbench")


def run_study(study: Study, *, say: Callable[[str], None] = print) -> bool:
    """Run all unfinished tasks of a study. Returns False if it was stopped by a signal.

    say  called with one line per finished run
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with _claim(study):
        record = Record(study)
        _refuse_another(study, record.facts.get("plan") or {})
        todo = _tasks(study)
        tasks = deque(task for task in todo if not _is_done(task))
        if len(tasks) < len(todo):
            say(f"{len(todo) - len(tasks)} of {len(todo)} tasks are done already")
        if not tasks:
            return True
        conductor = Scheduler(study, record, len(tasks), say)
        with conductor.signals():
            return conductor.run(tasks)


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
        surroundings = _surroundings()
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

    def add(self, outcome: Outcome) -> None:
        seconds = self.facts["runs"].get(outcome.name, {}).get("seconds", 0.0) + outcome.seconds
        self.facts["runs"][outcome.name] = {
            "status": outcome.status,
            "error": outcome.error,
            "seconds": round(seconds, 2),
        }
        self.write()

    def write(self) -> None:
        self.facts["sessions"][-1]["seconds"] = round(time.perf_counter() - self._begun, 2)
        write_text(self.file, json.dumps(self.facts, indent=1, default=str))


class _Worker:
    """A worker process with its pipe and its current task."""

    def __init__(self, study: Study, number: int, num_threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["workbench.studies.forkserver"])
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, num_threads, study.folder / f".worker-{number}.log", dict(os.environ))
        self.process = context.Process(target=work, args=arguments, name=f"worker {number}", daemon=True)
        try:
            self.process.start()
        except (EOFError, ConnectionError) as error:
            raise RunError(
                f"the process that workers are forked from has exited ({error or 'it was killed'}). Run the same "
                "command again: it resumes the study."
            ) from None
        theirs.close()
        self.number, self.ready, self.given = number, False, 0.0
        self.task: Task | None = None

    def assign(self, task: Task) -> bool:
        """Send a task to the process. Returns False if the process has exited."""
        try:
            self.pipe.send(task)
        except BrokenPipeError:
            return False
        self.task, self.given = task, time.perf_counter()
        return True


class Scheduler:
    def __init__(self, study: Study, record: Record, total: int, say: Callable[[str], None]) -> None:
        self.study, self.record, self.total, self.say = study, record, total, say
        self.workers: list[_Worker] = []
        self.asked, self.done, self.num_trained = False, 0, 0
        self.num_threads = asked_threads() or max(1, num_cores() // study.parallel)

    def run(self, tasks: deque[Task]) -> bool:
        self.record.begin(self.study, self.num_threads)
        self.begun = time.perf_counter()
        with _environment(self.num_threads):
            self.workers = [
                _Worker(self.study, number, self.num_threads) for number in range(min(self.study.parallel, len(tasks)))
            ]
            try:
                while self.workers:
                    self._wait(tasks)
            finally:
                for worker in self.workers:
                    worker.process.kill()
        self.record.write()
        return not self.asked

    def _wait(self, tasks: deque[Task]) -> None:
        """Wait for results or exits of workers, record them, and assign the next tasks."""
        handles: dict[Any, _Worker] = {
            handle: worker for worker in self.workers for handle in (worker.pipe, worker.process.sentinel)
        }
        for worker in dict.fromkeys(handles[ready] for ready in wait(list(handles))):
            try:
                if worker.pipe.poll():
                    outcome, worker.ready = worker.pipe.recv(), True
                else:
                    outcome = self._on_exit(worker)
            except (EOFError, ConnectionResetError):
                outcome = self._on_exit(worker)
            if outcome is not None:
                self._record(outcome, len(tasks))
            worker.task = None
        for worker in list(self.workers):
            if worker.task is None and (worker.ready or not worker.process.is_alive()):
                self._assign(worker, tasks)

    def _assign(self, worker: _Worker, tasks: deque[Task]) -> None:
        """Assign the first task that can start. If none can, the worker waits until another one has finished."""
        if self.asked or not tasks:
            worker.pipe.close()  # the worker then exits
            worker.process.join(timeout=30)
            self.workers.remove(worker)
            return
        coming = {task.name for task in tasks} | {
            candidate.task.name for candidate in self.workers if candidate.task is not None
        }
        task = next((candidate for candidate in tasks if candidate.after not in coming), None)
        if task is not None and worker.process.is_alive() and worker.assign(task):
            tasks.remove(task)
        elif task is not None or not worker.process.is_alive():
            self.workers.remove(worker)
            self.workers.append(_Worker(self.study, worker.number, self.num_threads))

    def _on_exit(self, worker: _Worker) -> Outcome | None:
        worker.process.join(timeout=30)
        if worker.task is None:
            if not worker.ready and not self.asked:
                self.asked = True
                log_file = f"{self.study.folder}/.worker-{worker.number}.log"
                raise RunError(f"a worker process exited before its first task. Read {log_file}.")
            return None
        seconds = time.perf_counter() - worker.given
        if self.asked:
            return Outcome(worker.task.name, "stopped", None, seconds)
        code = worker.process.exitcode
        why = f"signal {-code}" if code and code < 0 else f"exit status {code}"
        log_file = f"{self.study.folder}/.worker-{worker.number}.log"
        return Outcome(
            worker.task.name,
            "failed",
            f"its process exited unexpectedly ({why}): killed, or out of memory. See {log_file}; "
            "the same command tries again.",
            seconds,
        )

    def _record(self, outcome: Outcome, num_left: int) -> None:
        self.record.add(outcome)
        self.done += 1
        self.num_trained += outcome.trained
        spent = time.perf_counter() - self.begun
        line = f"[{self.done}/{self.total}] {outcome.name} {outcome.status} in {outcome.seconds:.0f} s"
        if self.num_trained and num_left:
            line += f"; about {spent / self.num_trained * num_left / 60:.0f} min left"
        self.say(line if outcome.error is None else f"{line}: {outcome.error}")

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.asked:
            for worker in self.workers:
                worker.process.kill()
            raise KeyboardInterrupt
        self.asked = True
        log.info("stopping: every run finishes its step and saves; the same command resumes the study")
        for worker in self.workers:
            worker.process.terminate()


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
    tasks = [
        Task(reference.row, study.evaluate, reference=reference, file=file) for reference, file in references.items()
    ]
    for seed in study.seeds:
        for variant in study.usable:
            config = study.config(variant, seed)
            starts = tuple(file for reference, file in references.items() if reference.belongs_to(config))
            before = study.before(variant, seed)
            after = None if before is None else before.name
            tasks.append(Task(config.name, study.evaluate, config=config, starts=starts, after=after))
    return tasks


def _is_done(task: Task) -> bool:
    if task.reference is not None:
        return is_evaluated(task.file, describe_reference(task.reference, task.evaluate))
    return is_evaluated(task.config.run_dir / FILE, describe(task.config, task.evaluate, task.config.training.steps))


@contextlib.contextmanager
def _claim(study: Study) -> Iterator[None]:
    """Lock the study for this process. The system releases the lock when the process exits."""
    with (study.folder / ".claim").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"study {study.folder} is being run by another process. Wait for it, or stop it.") from None
        yield


@contextlib.contextmanager
def _environment(num_threads: int) -> Iterator[None]:
    """Set the environment variables of worker processes."""
    variables = {"OMP_NUM_THREADS": str(num_threads), "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
