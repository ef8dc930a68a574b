"""Read the tail of a run's log, keeping only the last state of progress bars."""

import os
import re
from pathlib import Path

from workbench.files.terminal import clean

_TAIL_BYTES = 2**16
_RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt)(?:: .*)?")


def is_exception(line: str) -> bool:
    """Whether a line is the last one of a Python traceback."""
    return _RAISED.fullmatch(line) is not None


def tail(file: Path, offset: int = 0) -> list[str]:
    """Read the last lines of a file, from byte `offset` on."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(offset, size - _TAIL_BYTES))
        text = stream.read().decode("utf-8", errors="replace")
    return [clean(line.rstrip("\r").rsplit("\r", 1)[-1]).rstrip() for line in text.split("\n")]
