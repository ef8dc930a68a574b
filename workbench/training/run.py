"""Run life cycle: create or lock the run folder, handle signals, train, and record the final status.

    accelerate launch -m workbench.training.run CONFIG [key=value ...]      several processes: docs/devices.md
    accelerate launch -m workbench.training.run --resume RUN [key=value ...]

`workbench train` starts a single process. The training loop is in loop.py.
"""

import contextlib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from workbench.config.schema import RunConfig
from workbench.data.mixture import load_mixture
from workbench.distributed import LostProcess, ProcessGroup, choose_device, join
from workbench.errors import RunError, WorkbenchError
from workbench.files.folders import reason
from workbench.runs.commands import unedited_config
from workbench.runs.folder import ReadOnlyFolder, RunFolder, StopSignal
from workbench.runs.processes import identify
from workbench.runs.threads import configured_threads
from workbench.training.learner import require_shardable
from workbench.training.loop import Trainer, TrainResult
from workbench.training.requirements import require_models

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)

log = logging.getLogger("workbench")
OUT_OF_MEMORY = (
    "Start a new run that needs less memory: training.micro_batch_size, models.lora.rank, "
    "models.gradient_checkpointing=true, models.teacher_dtype=bfloat16, models.offload_teachers=true, "
    "sampling.max_completion_length (docs/devices.md states the cost of each)."
)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    on_step: Callable[[int, dict], None] | None = None,
) -> TrainResult:
    """Train as configured. SIGTERM and SIGINT stop the run after the current step, with a checkpoint.

    Under a launcher (accelerate launch), all processes train this run; see workbench.distributed.

    resume   continue from the newest complete checkpoint of the run folder
    on_step  called after each step with its number and metrics

    Raises: WorkbenchError with a remedy. If a loss is not finite, the weights before that step are saved first.
    """
    process_group = join()
    process_group.remedy = (
        "The steps since the newest checkpoint are lost, or all of them if none was saved. Continue with "
        f"{process_group.resume_command(config.run_dir)}."
    )
    folder = RunFolder(config.run_dir) if process_group.is_main else ReadOnlyFolder(config.run_dir)
    try:
        with process_group.propagate_errors():
            choose_device(config.models.device, process_group)
            if process_group.sharding is not None:
                require_shardable(config)
            process_group.broadcast_from_main(lambda: _prepare(config, resume))
            with folder.claim():
                process_group.all_gather_object("claimed")
                if resume:
                    folder.write_config(config.to_yaml())  # with the changed keys, for the next resume
                return _train_in(folder, config, resume, on_step, process_group)
    except LostProcess as error:
        folder = RunFolder(config.run_dir)
        with contextlib.suppress(RunError, OSError), folder.claim():  # this rank gets it if rank 0 is the lost one
            error.print_anyway = True
            folder.update(status="failed", error=str(error))
        raise


def _prepare(config: RunConfig, resume: bool) -> None:
    if resume:
        refuse_scored(RunFolder.open(config.run_dir))
    else:
        load_mixture(config.data.train_sources, max_examples=1)
        require_models(config)  # before creating the folder
        facts = {"config": config.to_dict()}  # config.yaml can be edited
        RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=config.method["name"], extra=facts)


def refuse_scored(folder: RunFolder) -> None:
    """Raise RunError if `workbench score` made the run, which has no training to continue."""
    if folder.status.get("scored"):
        raise RunError(
            f"{folder.path} holds scored rollouts of another trainer and no training, so nothing can be resumed. Score "
            "the file again into a new folder: workbench score ROLLOUTS --to NEW."
        )


def _set_threads(before: int | None) -> int:
    """Set the number of CPU threads of a resumed run to `before` and return it.

    Another number changes the last bits of sums. OMP_NUM_THREADS has precedence; then a warning is logged.
    """
    if before and before != torch.get_num_threads() and configured_threads() is None:
        torch.set_num_threads(before)
    threads = torch.get_num_threads()
    if before and before != threads:
        log.warning(
            "the run continues with %d threads instead of %d, so on a CPU its last digits differ from those of an "
            "uninterrupted run. Set OMP_NUM_THREADS=%d, or leave it out.",
            *(threads, before, before),
        )
    return threads


def _train_in(
    folder: RunFolder,
    config: RunConfig,
    resume: bool,
    on_step: Callable[[int, dict], None] | None,
    process_group: ProcessGroup,
) -> TrainResult:
    handler, before = folder.log_to_file(), folder.status.get("status")
    # status if the Trainer cannot be built: an earlier result of the run stays valid
    outcome = before if resume and before in ("finished", "stopped") else "failed"
    again = process_group.resume_command(folder.path)
    try:
        with recorded_errors(folder, again, OUT_OF_MEMORY), StopSignal(stays=process_group.size > 1) as stop:
            folder.update(
                status="running",
                error=None,
                doing=None,
                pid=os.getpid(),
                process=identify(os.getpid()),
                processes=process_group.size,
                threads=_set_threads(folder.status.get("threads") if resume else None),
            )
            trainer = Trainer(config, folder, resume=resume, process_group=process_group)
            outcome = "failed"
            with trainer.trace_writer:
                result = trainer.run(stop, on_step)
            outcome = "stopped" if result.stopped else "finished"
            folder.update(status=outcome)
            return result
    finally:
        _note(folder, status=outcome)
        log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def recorded_errors(folder: RunFolder, again: str, out_of_memory: str) -> Iterator[None]:
    """Log an error of a run and write it to run.json.

    again          command that continues the run
    out_of_memory  what needs less memory
    """
    try:
        yield
    except WorkbenchError as error:
        log.error("%s", error)
        _note(folder, error=str(error))
        raise
    except torch.OutOfMemoryError as error:
        run_error = RunError(
            f"out of device memory: {str(error).splitlines()[0]} {out_of_memory} If another program used the memory, "
            f"continue with {again}."
        )
        raise _noted(folder, run_error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            run_error = RunError(
                f"cannot read or write {error.filename or folder.path}: {reason(error)}. Free some space or check the "
                f"permissions, then continue with {again}."
            )
            raise _noted(folder, run_error) from error
        log.exception("unexpected error in the workbench or one of its packages")
        _note(folder, error=f"{type(error).__name__}: {error} (see train.log for the traceback)")
        raise


def _noted(folder: RunFolder, error: RunError) -> RunError:
    """Log an error and write it to run.json; returns it."""
    log.error("%s", error)
    _note(folder, error=str(error))
    return error


def _note(folder: RunFolder, **facts: object) -> None:
    """Update run.json; ignore a failure, so that the original error is raised."""
    with contextlib.suppress(RunError):
        folder.update(**facts)


def resume(
    run_dir: str | Path, overrides: list[str] | tuple[str, ...] = (), on_step: Callable[[int, dict], None] | None = None
) -> TrainResult:
    """Continue a run from its newest complete checkpoint, with its own config.yaml.

    Raises: ConfigError for an override, or an edit of config.yaml, that is not allowed on resume.
    """
    folder = RunFolder.open(run_dir)
    return train(unedited_config(folder, overrides), resume=True, on_step=on_step)


def main(arguments: list[str]) -> int:
    """Train or resume, as the command line does: CONFIG [key=value ...], or --resume RUN [key=value ...]."""
    resumes = arguments[:1] == ["--resume"]
    command = ["resume", *arguments[1:]] if resumes else ["train", *arguments]
    return importlib.import_module("workbench.cli").main(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
