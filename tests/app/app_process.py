"""`workbench app` as a process, which a test can kill and start again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from page_checks import free_port

from workbench.runs.jobs import JobState, read_job


class Server:
    """`workbench app` as a process, on a port of its own that it keeps when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def start(self, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "workbench",
            "app",
            "--runs",
            "runs",
            "--configs",
            "configs",
            "--port",
            str(self.port),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        with (self.folder / "app.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            with urllib.request.urlopen(self.address, timeout=20) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "app.log").read_text()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def state(self, name: str) -> JobState:
        return read_job(self.runs / name)


def wait_for(is_so: Callable[[], bool], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
