"""Threads: whoever sets OMP_NUM_THREADS keeps it, and none waits by spinning, whichever way the workbench is entered."""

import os
import subprocess
import sys

import pytest

from workbench.threads import asked_threads, num_cores

WAITS = "import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3), ("2,1", 2), ("", None), ("0", None), ("many", None), (None, None)]
)
def test_the_number_of_threads_that_was_asked_for(monkeypatch, text: str | None, number: int | None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert asked_threads() == number
    assert num_cores() >= 1


@pytest.mark.parametrize("entry", ["import workbench", "import workbench.cli", "from workbench.study import host"])
def test_threads_sleep_while_they_wait_however_the_workbench_is_entered(entry: str) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}

    def policy(**own: str) -> list[str]:
        command = [sys.executable, "-c", f"{entry}; {WAITS}"]
        return subprocess.run(command, env=plain | own, capture_output=True, text=True, check=True).stdout.split()

    assert policy() == ["passive", "0"]
    assert policy(OMP_WAIT_POLICY="active", KMP_BLOCKTIME="200") == ["active", "200"]
