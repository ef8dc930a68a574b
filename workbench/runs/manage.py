"""Rename and delete runs. Both are refused for living runs, and for runs whose files other runs use."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.config.schema import read_yaml
from workbench.errors import ConfigError, RunError, show
from workbench.files.atomic import replacing, write_text
from workbench.files.folders import discard, reason, saving
from workbench.files.locks import lock
from workbench.files.parsing import Malformed, dump_yaml, flatten, read_object
from workbench.runs.folder import RunFolder, find_run_dir, safe_run_dir
from workbench.runs.jobs import config_file, find_jobs, job_folder, lock_job, read_job

_STUDY = "study.json"


def rename_run(runs_dir: str | Path, name: str, new_name: str) -> str:
    """Rename a run. Returns its name on the page: the new name, or STUDY/NAME as before.

    Its configuration and the record of its process get the new name and path too, so it can be resumed.

    Raises: RunError if the run does not exist, is living, belongs to a study or is used by another run, or if the new
        name is taken or not a plain folder name. Nothing is then changed.
    """
    run_dir = find_run_dir(runs_dir, name)
    target = safe_run_dir(run_dir.parent, new_name)
    if _study_of(run_dir) is not None:
        raise RunError(f"run {run_dir} belongs to a study, which finds its runs by name. Use a tag or a note instead.")
    users = runs_that_use(runs_dir, name)
    if users:
        raise RunError(f"run {run_dir} cannot be renamed: {', '.join(users)} reads its files.")
    with _at_rest(run_dir), saving(target, "Choose another name, or check the folder's permissions."):
        # the job's folder of a deleted run may be left behind
        if target.exists() or (job_folder(target) / "job.json").exists() or target.is_symlink():
            raise RunError(f"run {target} exists. Choose another name.")
        moved = [(run_dir, target), (job_folder(run_dir), job_folder(target))]
        with contextlib.suppress(FileNotFoundError):
            discard(moved[1][1])
        for old, new in moved:
            if old.exists():
                old.rename(new)
        _correct_names(run_dir, target)
    return target.relative_to(Path(runs_dir)).as_posix()


def delete_run(runs_dir: str | Path, name: str) -> None:
    """Delete a run: its folder, and the record and output of its process. See `runs_that_use` before.

    Raises: RunError if the run does not exist, is living, is a link, or cannot be deleted completely.
    """
    run_dir = find_run_dir(runs_dir, name)
    if run_dir.is_symlink():
        raise RunError(f"run {run_dir} is a link. Remove it in a terminal: the page deletes folders only.")
    with contextlib.ExitStack() as stack:
        study = _study_of(run_dir)
        if study is not None:
            stack.enter_context(_claimed_study(study))
        stack.enter_context(_at_rest(run_dir))
        for folder in (run_dir, job_folder(run_dir)):
            if folder.exists():
                with saving(folder, "Check its permissions, and delete what is left."):
                    discard(folder)
        if study is not None:
            _forget_outcome(study / _STUDY, run_dir.name)


def runs_that_use(runs_dir: str | Path, name: str) -> list[str]:
    """Names of the other runs whose configuration names a path in this run's folder, such as a checkpoint."""
    target = find_run_dir(runs_dir, name).resolve()
    users = []
    for state in find_jobs(runs_dir):
        file = config_file(state.run_dir)
        with contextlib.suppress(OSError, ConfigError, UnicodeDecodeError):
            if state.name == name or file is None or target.name not in file.read_text(encoding="utf-8"):
                continue
            values = [value for key, value in flatten(read_yaml(file)).items() if key not in ("name", "output_dir")]
            if any(_leads_into(value, target) for value in values):
                users.append(state.name)
    return users


def _leads_into(value: object, folder: Path) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    path = Path(value).resolve()
    return path == folder or folder in path.parents


@contextlib.contextmanager
def _at_rest(run_dir: Path) -> Iterator[None]:
    """Hold the locks of a run, so that nothing starts it. Raises RunError if it is living or does not exist."""
    read_job(run_dir)
    with lock_job(job_folder(run_dir, make=True)), contextlib.ExitStack() as stack:
        state = read_job(run_dir)
        if state.is_alive:
            raise RunError(f"run {run_dir} is {state.status} (process {state.pid}). Stop it first.")
        if (run_dir / "run.json").exists():
            stack.enter_context(RunFolder(run_dir).claim())
        yield


def _correct_names(old: Path, new: Path) -> None:
    """Write the new name and paths where the run's files name it. Times of files stay: they tell its state."""
    moved = [(path(old), path(new)) for path in (lambda run: run.resolve(), lambda run: run, job_folder)]

    def correct(value: object) -> object:
        for before, after in moved:
            if isinstance(value, str) and Path(value).is_relative_to(before):
                return str(after / Path(value).relative_to(before))
        return value

    def change(values: dict) -> str:
        values["command"] = [correct(part) for part in values.get("command") or ()]
        if isinstance(values.get("config"), dict):
            values["config"]["name"] = new.name
        return json.dumps(values, indent=1)

    for file in (new / "config.yaml", job_folder(new) / "config.yaml"):
        _rewrite(file, read_yaml, lambda values: dump_yaml(values | {"name": new.name}))
    for file in (new / "run.json", job_folder(new) / "job.json"):
        _rewrite(file, read_object, change)


def _rewrite(file: Path, read: Callable[[Path], dict], change: Callable[[dict], str]) -> None:
    """Replace a file by the changed text of its values, with its former time; a damaged or missing file stays."""
    with contextlib.suppress(FileNotFoundError, Malformed, ConfigError):
        times = file.stat()
        text = change(read(file))
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
            os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))


def _study_of(run_dir: Path) -> Path | None:
    """Folder of the study that a run belongs to."""
    return run_dir.parent if (run_dir.parent / _STUDY).is_file() else None


@contextlib.contextmanager
def _claimed_study(study: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(study / ".claim", wait=False))
        except BlockingIOError:
            raise RunError(f"study {study} is running. Stop it before you delete one of its runs.") from None
        yield


def _forget_outcome(file: Path, run: str) -> None:
    """Remove a run's outcome from a study, which trains the run again when it is resumed."""
    try:
        facts = read_object(file)
        facts["runs"].pop(run, None)
    except (OSError, Malformed, KeyError, AttributeError) as error:
        raise RunError(
            f"{file} cannot be read ({reason(error)}). The run is deleted; {show(run)} stays in it."
        ) from None
    with saving(file):
        write_text(file, json.dumps(facts, indent=1))
