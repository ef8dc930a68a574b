"""Lock files and folders between processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True, create: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file or folder. The system releases it when the process exits.

    create  whether to create a missing file; False for a folder

    Raises: BlockingIOError if another process holds the lock and `wait` is False.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
