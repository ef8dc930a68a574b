"""Replace a file atomically: a reader sees its former content or all of the new one, never a part."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.\d+")  # .NAME.PID: a file being written, or the remains of a killed process


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Provide a temporary path beside `file` that replaces it at the end, and is deleted after an error."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def clear_temporaries(folder: Path) -> None:
    """Delete what a killed process was writing into `folder`. Call only if no other process writes there."""
    for file in folder.glob(".*.*"):
        if TEMPORARY.fullmatch(file.name) and file.is_file():
            file.unlink()


def stamp(file: Path) -> tuple[int, int] | None:
    """Modification time in ns and size in bytes of a file, which change with its content; None if it is missing."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
