"""Task of a study, in a process of its own: train or resume a run and evaluate its students, or evaluate a reference.

The exit status is the outcome: 0 finished, STOPPED, FAILED (the last line of the log file is the error), or 1 after a
traceback. SIGTERM stops a run after the current step, with a checkpoint.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from workbench.config.schema import RunConfig
from workbench.errors import RunError, WorkbenchError
from workbench.runs.folder import RunFolder
from workbench.studies.evaluate import evaluate_reference, evaluate_study_run
from workbench.studies.plan import EvalSet, ReferenceModel, other_settings
from workbench.studies.records import show_start
from workbench.training.run import train

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAILED, STOPPED = 2, 130  # exit statuses
_CLAIM_WAIT_S = 60.0


@dataclass(frozen=True)
class Task:
    """A run to train and evaluate if `config` is set, otherwise a reference to evaluate."""

    name: str
    evaluate: tuple[EvalSet, ...]
    log_file: Path
    config: RunConfig | None = None
    reference: ReferenceModel | None = None
    file: Path | None = None  # of the reference's answers
    starts: tuple[Path, ...] = ()  # of the run's references
    starts_from: str | None = None  # name of the run whose last student it starts from


def do_task(task: Task, num_threads: int, environment: dict[str, str]) -> None:
    """Do a task and exit. Entry point of its process, which starts with STOP_SIGNALS blocked."""
    os.environ.update(environment)
    os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the study alone, which stops each process once
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    stream = task.log_file.open("a", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    torch.set_num_threads(num_threads)
    transformers_logging.disable_progress_bar()
    try:
        if task.reference is not None:
            evaluate_reference(task.reference, task.evaluate, task.file)
        elif not _do_run(task):
            sys.exit(STOPPED)
    except WorkbenchError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")  # below the progress bar
        sys.exit(FAILED)


def _do_run(task: Task) -> bool:
    """Train or resume a run unless it is finished, then evaluate it. Returns False if it was stopped."""
    config = task.config

    def on_step(step: int, metrics: dict) -> None:
        study = multiprocessing.parent_process()
        if study is not None and not study.is_alive():
            # without its parent nothing follows, and a later study would wait for this run
            os.kill(os.getpid(), signal.SIGTERM)

    exists = _is_run(config.run_dir)
    if task.starts_from is not None and not exists and not Path(config.models.student).is_dir():
        raise RunError(
            f"it starts from the final student of {task.starts_from}, which did not finish. Run the study again."
        )
    if exists:
        fault = other_settings(config)
        if fault is not None:
            raise RunError(fault)
        _wait_for_claim(config.run_dir)
    is_trained = exists and RunFolder.open(config.run_dir).status.get("status") == "finished"
    if not is_trained and train(config, resume=exists, on_step=on_step).stopped:
        return False
    show_start(config.run_dir, list(task.starts), task.evaluate)
    evaluate_study_run(config, task.evaluate)
    return True


def _is_run(run_dir: Path) -> bool:
    """Whether there is a run to resume. Deletes the remains of a run that was killed while its folder was created."""
    if (run_dir / "run.json").is_file() and (run_dir / "config.yaml").is_file():
        return True
    if run_dir.is_dir() and all(file.name.startswith(".") or file.name == "config.yaml" for file in run_dir.iterdir()):
        shutil.rmtree(run_dir)
    return False


def _wait_for_claim(run_dir: Path) -> None:
    """Wait until a process of a killed study has finished its step and released the run."""
    folder, until = RunFolder(run_dir), time.monotonic() + _CLAIM_WAIT_S
    while time.monotonic() < until:
        try:
            with folder.claim():
                return
        except RunError:
            time.sleep(0.2)
