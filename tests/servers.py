"""Servers of `workbench teacher` and `workbench sampler` as processes of their own."""

import http.client
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from processes import Program

from workbench.policies.serving.addresses import TOKEN

SERVE = """
import sys, torch
torch.set_num_threads(1)
from workbench.cli import main
sys.exit(main(sys.argv[1:]))
"""
READY_S = 240.0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A model behind a port of this machine, ready to answer."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        port: int = 0,
        *,
        command: str = "teacher",
        options: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.program = Program(folder, SERVE, command, str(model), "--port", str(self.port), *options, **environment)
        self._headers = {"Authorization": f"Bearer {environment.get(TOKEN, '')}"}
        self.wait()

    def wait(self) -> None:
        """Return when the server has loaded its model."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.program.process.is_alive():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
            try:
                connection.request("GET", "/info", headers=self._headers)
                if connection.getresponse().status == 200:
                    return
            except ConnectionError:
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        raise AssertionError(self.program.err.read_text())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's process."""
        os.kill(self.program.process.pid, number)

    def stop(self) -> int:
        """Stop it as a user does; returns its exit status."""
        self.signal(signal.SIGTERM)
        return self.program.wait()

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self.program.wait()
