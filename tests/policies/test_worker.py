"""A worker process of vLLM ends with its server, also if that is killed while the worker hangs."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from processes import Program

PARENT = """
import importlib, multiprocessing, os, signal, time

def work(pipe):
    importlib.import_module("workbench.policies.serving.worker")
    pipe.send(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)

context = multiprocessing.get_context("fork")
receiver, sender = context.Pipe()
context.Process(target=work, args=(sender,)).start()
print(receiver.recv(), flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_stopped_worker_ends_with_its_killed_server(tmp_path: Path) -> None:
    server = Program(tmp_path, PARENT, WORKBENCH_VLLM_WORKERS="1")
    deadline = time.monotonic() + 240
    while not server.out.read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(server.out.read_text())
    os.kill(server.process.pid, signal.SIGKILL)
    server.wait()
    while _is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(worker)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
