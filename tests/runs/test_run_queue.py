"""The queue of a runs folder: how many runs are at work, whose turn it is, and what kills do to those that wait."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failures import raises
from processes import Program
from small import run_config

from workbench.errors import RunError
from workbench.runs import run_queue
from workbench.runs.jobs import find_jobs, log_tail, read_job, start_run, stop_run
from workbench.runs.run_queue import MAX_WAITING, default_limit, limit_of, place_of, set_limit, waiting
from workbench.runs.waiting import POLL_S

WORK = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); time.sleep(600)"


class Folder:
    """A runs folder in which light processes stand for training."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun, self.processes = path, path.parent / "begun", []
        path.mkdir()

    def ask(self, name: str) -> subprocess.Popen:
        """A run that waits, as if the page had been killed before it could write which process that is."""
        (self.path / ".jobs" / name).mkdir(parents=True)
        work = [sys.executable, "-c", WORK, str(self.begun), name]
        waits = [
            sys.executable,
            "-m",
            "workbench.runs.waiting",
            str(self.path),
            str(self.path / name),
            str(time.time_ns()),
        ]
        process = subprocess.Popen([*waits, *work], start_new_session=True)
        self.processes.append(process)
        wait_for(lambda: name in self.states or name in self.at_work)
        return process

    @property
    def at_work(self) -> list[str]:
        return self.begun.read_text().split() if self.begun.exists() else []

    @property
    def states(self) -> dict[str, str]:
        return {state.name: state.status for state in find_jobs(self.path)}

    def end(self, process: subprocess.Popen) -> None:
        process.kill()
        process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    created = Folder(tmp_path / "runs")
    yield created
    for process in created.processes:
        created.end(process)


def wait_for(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_queue_runs_at_most_the_limit_in_order(folder: Folder) -> None:
    set_limit(folder.path, 2)
    processes = {name: folder.ask(name) for name in "abcde"}
    wait_for(lambda: len(folder.at_work) == 2)
    wait_for(lambda: list(folder.states.values()).count("queued") == 3)
    assert [read_job(folder.path / name).status for name in "ab"] == ["starting", "starting"]
    assert read_job(folder.path / "d").doing == "queued, position 2 of 3: at most 2 runs at once"
    time.sleep(POLL_S + 0.5)
    assert folder.at_work == ["a", "b"], "those that wait looked again, and waited on"
    folder.end(processes["a"])
    wait_for(lambda: len(folder.at_work) == 3)
    assert folder.at_work[2] == "c" and read_job(folder.path / "c").pid == processes["c"].pid
    set_limit(folder.path, 4)  # the page was opened with another number
    wait_for(lambda: len(folder.at_work) == 5)
    assert folder.at_work == list("abcde") and not waiting(folder.path)


def test_queued_run_is_stopped_before_it_begins(folder: Folder) -> None:
    set_limit(folder.path, 1)
    first, second, _ = (folder.ask(name) for name in "abc")
    wait_for(lambda: folder.states.get("b") == "queued" == folder.states.get("c"))
    stop_run(folder.path / "b")
    second.wait(30)
    assert read_job(folder.path / "b").status == "stopped" and place_of(folder.path, second.pid) is None
    folder.end(first)
    wait_for(lambda: folder.at_work == ["a", "c"])


def test_queue_skips_killed_processes(folder: Folder) -> None:
    set_limit(folder.path, 1)
    first, second, _ = (folder.ask(name) for name in "abc")
    wait_for(lambda: len(waiting(folder.path)) == 2)
    folder.end(second)
    assert [ticket.name for ticket in waiting(folder.path)] == ["c"]
    folder.end(first)
    wait_for(lambda: folder.at_work == ["a", "c"])


def test_queue_full_raises(folder: Folder, monkeypatch: pytest.MonkeyPatch, models: dict) -> None:
    set_limit(folder.path, 1)
    monkeypatch.setattr(run_queue, "MAX_WAITING", 1)
    for name in "ab":
        folder.ask(name)
    wait_for(lambda: len(waiting(folder.path)) == 1)
    with raises(RunError, "1 runs"):
        start_run(run_config(models, folder.path), queue=folder.path)
    assert MAX_WAITING == 50


def test_queued_runs_train_in_turn_after_page_is_killed(
    models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = tmp_path / "runs"
    runs.mkdir()
    set_limit(runs, 1)
    names = ["one", "two"]
    files = [tmp_path / f"{name}.yaml" for name in names]
    for name, file in zip(names, files, strict=True):
        file.write_text(run_config(models, runs, name=name, data__eval=None, training__steps=2).to_yaml())
    page = (
        "import os, sys, signal; from pathlib import Path\n"
        "from workbench.config.schema import load_config\n"
        "from workbench.runs.jobs import start_run\n"
        "for file in sys.argv[2:]: start_run(load_config(file), queue=Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert Program(tmp_path / "page", page, str(runs), *map(str, files)).wait() == -signal.SIGKILL
    most = 0
    end = time.monotonic() + 240
    while any(read_job(runs / name).is_alive for name in names):
        states = [read_job(runs / name).status for name in names]
        most = max(
            most, sum(state in ("starting", "running", "stopping") for state in states[:1]) + (states[1] == "running")
        )
        assert time.monotonic() < end, [log_tail(runs / name) for name in names]
        time.sleep(0.2)
    assert most == 1 and [read_job(runs / name).status for name in names] == ["finished", "finished"], log_tail(
        runs / "two"
    )
    first, second = (json.loads((runs / name / "run.json").read_text()) for name in names)
    assert first["updated"] <= second["started"]


def test_queue_default_limit_follows_devices_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(run_queue, "count_accelerators", lambda: 0)
    for gib, expected in ((64.0, 8), (24.0, 6), (9.0, 2), (2.0, 1)):
        monkeypatch.setattr(run_queue, "memory_gib", lambda gib=gib: gib)
        assert default_limit() == expected
    monkeypatch.setattr(run_queue, "count_accelerators", lambda: 4)
    assert default_limit() == 4


def test_queue_counts_visible_devices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("0,2", 2), ("", 0), ("-1", 0), ("GPU-1a2b", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert run_queue.count_accelerators() == expected


def test_queue_wrong_limit_is_ignored(tmp_path: Path) -> None:
    assert limit_of(tmp_path) is None
    set_limit(tmp_path, 3)
    assert limit_of(tmp_path) == 3
    (tmp_path / ".queue" / "max_runs").write_text("many")
    assert limit_of(tmp_path) is None
