"""Folders and files that appear whole or not at all, and the sentence for a disk that takes no more.

A new folder is made beside its place, as .NAME.XXXXXXXX.partial, and renamed when it is whole. Its maker holds a lock on it, so what
a kill leaves is told from what another process is making: `new_folder` clears the former first and logs it.
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
    """A folder to write in, that becomes `target` at the end, and is taken away after an error.

    Raises: FileExistsError if there is something under that name by then; OSError if the folder cannot be made.
    """
    clear_remains(target.parent)
    folder, lock = _locked_folder(target)
    try:
        yield folder
        if os.path.lexists(target):
            raise FileExistsError(target)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing, once it has its name
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    while True:
        folder = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir(parents=True)
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """A handle that locks the folder; None if another process has it, or has just taken it away."""
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
    """Delete the half-made folders in `parent` that nobody is making any more; the log names them."""
    for folder in sorted(parent.glob(".*.partial")):
        if not _PARTIAL.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            shutil.rmtree(folder, ignore_errors=True)
            log.info("cleared %s: a process was ended while it made this folder", folder)
        finally:
            os.close(lock)


@contextlib.contextmanager
def saving(path: str | Path, remedy: str = "Free some space or check the folder's rights.") -> Iterator[None]:
    """A full disk or a folder that may not be written, as a RunError; safetensors raises an error of its own for it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be written ({reason(error)}). {remedy}") from error


def reason(error: Exception) -> str:
    """Why something could not be read or written, in short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
