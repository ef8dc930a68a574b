"""A run from its start to its end, whatever happens: its folder, its claim, signals, and what is said when it fails.

    accelerate launch -m workbench.training.run CONFIG [key=value ...]      several processes: docs/devices.md
    accelerate launch -m workbench.training.run --resume RUN [key=value ...]

One process is started by `workbench train`. The steps are in loop.py.
"""

import contextlib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from workbench.config.models import check_models
from workbench.config.schema import RunConfig
from workbench.data.examples import load_examples
from workbench.distributed import Group, LostProcess, choose_device, join
from workbench.errors import RunError, WorkbenchError
from workbench.files.folders import reason
from workbench.runs.commands import unedited_config
from workbench.runs.folder import ReadOnlyFolder, RunFolder, StopSignal
from workbench.runs.processes import identify
from workbench.runs.threads import asked_threads
from workbench.training.learner import refuse_with_shards
from workbench.training.loop import Loader, Trainer, TrainResult

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)

log = logging.getLogger("workbench")
OUT_OF_MEMORY = (
    "What makes a run smaller: training.micro_batch_size, models.lora.rank, models.gradient_checkpointing=true, "
    "models.teacher_dtype=bfloat16, models.offload_teachers=true, sampling.max_completion_length; docs/devices.md says "
    "what each costs. They make another run, so begin a new one."
)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    on_step: Callable[[int, dict], None] | None = None,
    load: Loader = load_examples,
) -> TrainResult:
    """Train as configured; SIGTERM and SIGINT stop after the step at hand, with a checkpoint.

    Started as several processes (accelerate launch), all train this run: workbench.distributed.

    resume   go on from the newest complete checkpoint of the run folder
    on_step  called after each step with its number and metrics
    load     reads examples; several runs in one process may share one that remembers

    Raises: WorkbenchError saying what to do. If a loss is not a number, the weights before that step are saved first.
    """
    group = join()
    group.remedy = (
        "Nothing is lost but the steps since the newest checkpoint: start as before, with "
        f"-m workbench.training.run --resume {config.run_dir}"
    )
    folder = RunFolder(config.run_dir) if group.is_main else ReadOnlyFolder(config.run_dir)
    try:
        with group.guard():
            choose_device(config.models.device, group)
            if group.sharding is not None:
                refuse_with_shards(config)
            group.first(lambda: _prepare(config, resume, load))
            with folder.claim():
                group.exchange("claimed")
                if resume:
                    folder.write_config(config.to_yaml())  # with what was changed: the next resume is to know of it
                return _train_in(folder, config, resume, on_step, load, group)
    except WorkbenchError as error:
        error.print_anyway = not group.is_main and isinstance(error, LostProcess) and _inherits(config, error)
        raise


def _prepare(config: RunConfig, resume: bool, load: Loader) -> None:
    if resume:
        RunFolder.open(config.run_dir)
    else:
        check_models(config)  # a wrong path should not leave a folder behind
        load(config.data.train, limit=1)
        facts = {"config": config.to_dict()}  # config.yaml is a file that can be edited
        RunFolder.create(
            config.run_dir, config.to_yaml(), seed=config.seed, method=config.method["name"], facts_too=facts
        )


def _settle_threads(before: int | None) -> int:
    """Threads of the processor that the run computes with. A resumed run takes as many as `before`, since sums over
    other parts differ in their last bits; whoever sets OMP_NUM_THREADS keeps it, and is warned.
    """
    if before and before != torch.get_num_threads() and asked_threads() is None:
        torch.set_num_threads(before)
    threads = torch.get_num_threads()
    if before and before != threads:
        log.warning(
            "%d threads, %d before: on a CPU the last digits differ from those of a run that was not interrupted. "
            "Set OMP_NUM_THREADS=%d, or leave it out, to go on as before.",
            *(threads, before, before),
        )
    return threads


def _inherits(config: RunConfig, error: WorkbenchError) -> bool:
    """Whether this process is the one to speak, the first process being gone: who gets the claim that went with it."""
    folder = RunFolder(config.run_dir)
    try:
        with folder.claim():
            if folder.status.get("error") == str(error):
                return False
            folder.update(status="failed", error=str(error))
            return True
    except RunError:
        return False


def _train_in(
    folder: RunFolder,
    config: RunConfig,
    resume: bool,
    on_step: Callable[[int, dict], None] | None,
    load: Loader,
    group: Group,
) -> TrainResult:
    handler, before = folder.log_to_file(), folder.status.get("status")
    outcome = (
        before if resume and before in ("finished", "stopped") else "failed"
    )  # of a run that cannot even begin: what was done before is as it was
    try:
        folder.update(
            status="running",
            error=None,
            doing=None,
            pid=os.getpid(),
            process=identify(os.getpid()),
            processes=group.size,
            threads=_settle_threads(folder.status.get("threads") if resume else None),
        )
        with StopSignal() as stop:
            trainer = Trainer(config, folder, resume=resume, load=load, group=group)
            outcome = "failed"
            with trainer.writer:
                result = trainer.run(stop, on_step)
        outcome = "stopped" if result.stopped else "finished"
        folder.update(status=outcome)
        return result
    except WorkbenchError as error:
        log.error("%s", error)
        _note(folder, error=str(error))
        raise
    except torch.OutOfMemoryError as error:
        run_error = RunError(
            f"the device's memory is full ({str(error).splitlines()[0]}) {OUT_OF_MEMORY} If the memory was another "
            f"program's, `workbench resume {folder.path}` goes on."
        )
        log.error("%s", run_error)
        _note(folder, error=str(run_error))
        raise run_error from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            run_error = RunError(
                f"{error.filename or folder.path} cannot be read or written ({reason(error)}). Free some space or "
                f"check the rights; `workbench resume {folder.path}` goes on from the newest checkpoint."
            )
            log.error("%s", run_error)
            _note(folder, error=str(run_error))
            raise run_error from error
        log.exception("a fault of the workbench, or of what it uses")
        _note(folder, error=f"{type(error).__name__}: {error} (the whole of it is in train.log)")
        raise
    finally:
        _note(folder, status=outcome)
        log.removeHandler(handler)
        handler.close()


def _note(folder: RunFolder, **facts: object) -> None:
    """Facts for run.json, if the disk takes them: the error at hand is the one to be read."""
    with contextlib.suppress(RunError):
        folder.update(**facts)


def resume(
    run_dir: str | Path, overrides: list[str] | tuple[str, ...] = (), on_step: Callable[[int, dict], None] | None = None
) -> TrainResult:
    """Go on with a run, as its own config.yaml says, from its newest complete checkpoint.

    Raises: ConfigError for an override, or a config.yaml edited since, that would make another run of it.
    """
    folder = RunFolder.open(run_dir)
    return train(unedited_config(folder, overrides), resume=True, on_step=on_step)


def main(arguments: list[str]) -> int:
    """accelerate launch -m workbench.training.run CONFIG [key=value ...], or --resume RUN [key=value ...]: as the
    command line does.
    """
    goes_on = arguments[:1] == ["--resume"]
    command = ["resume", *arguments[1:]] if goes_on else ["train", *arguments]
    return importlib.import_module("workbench.cli").main(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
