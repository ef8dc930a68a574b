"""Create folders atomically, and turn write errors into a RunError.

A new folder is created as .NAME.XXXXXXXX.partial beside its destination, and renamed when it is complete. Its process
holds a lock on it, which distinguishes remains of a killed process from work of another one. `new_folder` deletes
remains first and logs them.
"""

import contextlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from workbench.errors import RunError
from workbench.files.locks import lock

log = logging.getLogger("workbench")
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Provide a temporary folder that is renamed to `target` at the end, and deleted after an error.

    Raises: FileExistsError if `target` exists by then; OSError if the folder cannot be created.
    """
    with temporary_folder(target) as folder:
        yield folder
        if os.path.lexists(target):
            raise FileExistsError(target)
        folder.rename(target)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Provide a folder beside `target`, named after it, that is deleted at the end unless it was renamed.

    Raises: OSError if it cannot be created.
    """
    clear_remains(target.parent)
    with contextlib.ExitStack() as stack:
        folder = _locked_folder(target, stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(target: Path, stack: contextlib.ExitStack) -> Path:
    """Create and lock a folder; again if `clear_remains` of another process took it before the lock."""
    while True:
        folder = _partial_name(target)
        folder.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            stack.enter_context(lock(folder, wait=False, create=False))
            if folder.exists():
                return folder


def discard(folder: Path) -> None:
    """Delete a folder. It gets the name of a partial one first, so that no reader sees half of it.

    What a killed process leaves of it is deleted with the remains of new folders.

    Raises: OSError if it cannot be renamed, or if some of its files cannot be deleted.
    """
    trash = _partial_name(folder)
    folder.rename(trash)
    # another process may be deleting it as remains already
    with contextlib.suppress(FileNotFoundError, BlockingIOError), lock(trash, wait=False, create=False):
        shutil.rmtree(trash)


def _partial_name(target: Path) -> Path:
    return target.parent / f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.partial"


def clear_remains(parent: Path) -> None:
    """Delete partial folders in `parent` whose process has exited, and log their names."""
    for folder in sorted(parent.glob(".*.partial")):
        if not _PARTIAL.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.suppress(FileNotFoundError, BlockingIOError), lock(folder, wait=False, create=False):
            shutil.rmtree(folder, ignore_errors=True)
            log.info("deleted %s: its process was killed while creating it", folder)


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
