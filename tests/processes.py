"""Programs as processes of their own, forked from one that has imported torch, as the tasks of a study are."""

import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
LONGEST_S = 300.0  # a program that has not ended by then hangs
_CONTEXT.set_forkserver_preload(["workbench.studies.task", "pandas"])  # as workbench/studies/run.py


class Program:
    """What `python -c CODE ARGUMENTS` does, without the seconds that importing torch and transformers takes.

    out, err  files of what it writes
    """

    def __init__(self, folder: Path, code: str, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out", folder / "err"
        for file in (self.out, self.err):
            file.touch()  # to be read at any time
        given = (code, arguments, {**os.environ, **environment}, self.out, self.err)
        self.process: BaseProcess = _CONTEXT.Process(target=_run, args=given)
        self.process.start()

    def wait(self) -> int:
        """Its exit status; a negative number is the signal that ended it. Raises AssertionError if it hangs."""
        self.process.join(LONGEST_S)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"the program did not end within {LONGEST_S:.0f} s: {self.err.read_text()}")
        return self.process.exitcode


def _run(code: str, arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    # a study blocks signals while it starts the process that programs are forked from
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})


@dataclass(frozen=True)
class Ended:
    """A process that has ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def launch(
    folder: Path, code: str, *arguments: str, processes: int = 2, environment: dict[str, str] | None = None
) -> list[Ended]:
    """The same program as several processes that find each other, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    there |= environment or {}
    ranks = [
        Program(folder / f"rank-{rank}", code, *arguments, **there, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    return [Ended(program.wait(), program.out.read_text(), program.err.read_text()) for program in ranks]
