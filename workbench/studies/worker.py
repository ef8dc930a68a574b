"""Worker process of a study. It does one task after another and loads examples and teachers once.

Tasks arrive through a pipe, and one outcome per task goes back. A task is a run (train or resume it, then evaluate its
students) or a reference (evaluate an untrained model). SIGTERM stops a run after the current step, with a checkpoint.
"""

import functools
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from workbench.config.schema import RunConfig
from workbench.data.examples import load_examples
from workbench.errors import RunError, WorkbenchError
from workbench.policies.teacher_cache import cache_teachers
from workbench.runs.folder import RunFolder
from workbench.studies.evaluate import evaluate_reference, evaluate_study_run
from workbench.studies.plan import EvalSet, ReferenceModel, other_settings
from workbench.studies.records import show_start
from workbench.training.run import train

_REMEMBERED = 8  # sets of examples kept per process
_CLAIM_WAIT_S = 60.0


@dataclass(frozen=True)
class Task:
    """A run to train and evaluate if `config` is set, otherwise a reference to evaluate."""

    name: str
    evaluate: tuple[EvalSet, ...]
    config: RunConfig | None = None
    reference: ReferenceModel | None = None
    file: Path | None = None  # of the reference's answers
    starts: tuple[Path, ...] = ()  # of the run's references
    after: str | None = None  # name of the run whose last student it starts from


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task. status: finished, stopped or failed; trained: whether this task ran training steps."""

    name: str
    status: str
    error: str | None = None
    seconds: float = 0.0
    trained: bool = False


def work(pipe: Connection, num_threads: int, log_file: Path, environment: dict[str, str]) -> None:
    """Run tasks from a pipe until it is closed or the study's process has exited. Entry point of a worker process."""
    os.environ |= environment
    os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the parent only, which stops each worker once
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = log_file.open("a", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    torch.set_num_threads(num_threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("workbench").addHandler(logging.NullHandler())
    load = functools.lru_cache(maxsize=_REMEMBERED)(load_examples)
    pipe.send(None)  # ready
    with cache_teachers():
        _work(pipe, load, log_file)


def _work(pipe: Connection, load: Callable, log_file: Path) -> None:
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        status, error, trained = "finished", None, False
        try:
            if task.reference is not None:
                evaluate_reference(task.reference, task.evaluate, task.file, load=load)
            else:
                status, trained = _do_run(task, load)
        except WorkbenchError as fault:
            status, error = "failed", str(fault)
        except Exception as fault:
            traceback.print_exc()
            status, error = "failed", f"{type(fault).__name__}: {fault} (traceback in {log_file})"
        gc.collect()  # models are in reference cycles and take gigabytes
        pipe.send(Outcome(task.name, status, error, time.perf_counter() - start, trained))


def _do_run(task: Task, load: Callable) -> tuple[str, bool]:
    """Train or resume a run unless it is finished, then evaluate it. Returns the status and whether steps were done."""
    config, trained = task.config, False

    def on_step(step: int, metrics: dict) -> None:
        study = multiprocessing.parent_process()
        if study is not None and not study.is_alive():
            # without its parent nothing follows, and a later study would wait for this run
            os.kill(os.getpid(), signal.SIGTERM)

    exists = _is_run(config.run_dir)
    if task.after is not None and not exists and not Path(config.models.student).is_dir():
        raise RunError(f"it starts from the final student of {task.after}, which did not finish. Run the study again.")
    if exists:
        fault = other_settings(config)
        if fault is not None:
            raise RunError(fault)
        _wait_for_claim(config.run_dir)
    if not exists or RunFolder.open(config.run_dir).status.get("status") != "finished":
        trained = True
        result = train(config, resume=exists, on_step=on_step, load=load)
        if result.stopped:
            return "stopped", True
    show_start(config.run_dir, list(task.starts), task.evaluate)
    evaluate_study_run(config, task.evaluate, load=load)
    return "finished", trained


def _is_run(run_dir: Path) -> bool:
    """Whether there is a run to resume. Deletes the remains of a run that was killed while its folder was created."""
    if (run_dir / "run.json").is_file() and (run_dir / "config.yaml").is_file():
        return True
    if run_dir.is_dir() and all(file.name.startswith(".") or file.name == "config.yaml" for file in run_dir.iterdir()):
        shutil.rmtree(run_dir)
    return False


def _wait_for_claim(run_dir: Path) -> None:
    """Wait until a worker of a killed study has finished its step and released the run."""
    folder, until = RunFolder(run_dir), time.monotonic() + _CLAIM_WAIT_S
    while time.monotonic() < until:
        try:
            with folder.claim():
                return
        except RunError:
            time.sleep(0.2)
