"""Programs as processes of their own, forked from one that has imported torch, as the tasks of a study are."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["workbench.studies.task"])  # as workbench/studies/run.py


class Program:
    """What `python -c CODE ARGUMENTS` does, without the seconds that importing torch and transformers takes.

    out, err  files of what it writes
    """

    def __init__(self, folder: Path, code: str, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out", folder / "err"
        given = (code, arguments, {**os.environ, **environment}, self.out, self.err)
        self.process: BaseProcess = _CONTEXT.Process(target=_run, args=given)
        self.process.start()

    def wait(self) -> int:
        """Its exit status; a negative number is the signal that ended it."""
        self.process.join()
        return self.process.exitcode


def _run(code: str, arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
