"""Create folders atomically, and turn write errors into a RunError.

A new folder is created as .NAME.XXXXXXXX.partial beside its destination, and renamed when it is complete. Its process
holds a lock on it, which distinguishes remains of a killed process from work of another one. `new_folder` deletes
remains first and logs them.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from workbench.errors import RunError

log = logging.getLogger("workbench")
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Provide a temporary folder that is renamed to `target` at the end, and deleted after an error.

    Raises: FileExistsError if `target` exists by then; OSError if the folder cannot be created.
    """
    clear_remains(target.parent)
    folder, lock = _locked_folder(target)
    try:
        yield folder
        if os.path.lexists(target):
            raise FileExistsError(target)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # no effect after the rename
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    while True:
        folder = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir(parents=True)
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """Lock a folder and return the handle; None if another process holds it, or has just deleted it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink and os.path.exists(folder):
            return lock
    os.close(lock)
    return None


def clear_remains(parent: Path) -> None:
    """Delete partial folders in `parent` whose process has exited, and log their names."""
    for folder in sorted(parent.glob(".*.partial")):
        if not _PARTIAL.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            shutil.rmtree(folder, ignore_errors=True)
            log.info("deleted %s: its process was killed while creating it", folder)
        finally:
            os.close(lock)


@contextlib.contextmanager
def saving(path: str | Path, remedy: str = "Free some space or check the folder's permissions.") -> Iterator[None]:
    """Raise write errors (a full disk, missing permissions), also those of safetensors, as a RunError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be written ({reason(error)}). {remedy}") from error


def reason(error: Exception) -> str:
    """Describe a read or write error briefly."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
