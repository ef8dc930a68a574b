"""Queue of a runs folder: the limit of active runs, and the runs that wait for their turn.

A queued run is a light process (waiting.py), which replaces itself by the training when its turn comes. Closing or
killing the page neither loses a queued run nor starts it twice, and a queued run is stopped like any process.
`.queue/`, beside the run folders, has max_runs, lock, and a ticket TIME-PID.json for each waiting process.
"""

import contextlib
import json
import os
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import RunError
from workbench.files.atomic import write_text
from workbench.files.locks import lock
from workbench.runs.processes import identify

MAX_WAITING = 50
GIB_PER_RUN = 4.0  # memory per run, on machines without accelerators
_FOLDER, _LIMIT = ".queue", "max_runs"


@dataclass(frozen=True)
class Ticket:
    """A waiting process. name: its run's name on the page."""

    file: Path
    name: str
    pid: int
    identity: str

    @property
    def is_alive(self) -> bool:
        return identify(self.pid) == self.identity


def set_limit(runs_dir: Path, max_runs: int) -> None:
    """Set the limit of active runs, for present and future queued runs."""
    folder = runs_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _LIMIT, f"{max_runs}\n")


def limit_of(runs_dir: Path) -> int | None:
    """Return the limit of active runs; None = no limit."""
    try:
        return max(1, int((runs_dir / _FOLDER / _LIMIT).read_text()))
    except (OSError, ValueError):
        return None


def take_ticket(runs_dir: Path, name: str, since_ns: int) -> Ticket:
    """Add this process to the queue, after those that came before since_ns."""
    folder = runs_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    ticket = Ticket(folder / f"{since_ns:020d}-{pid}.json", name, pid, identify(pid) or "")
    write_text(ticket.file, json.dumps({"name": name, "pid": pid, "identity": ticket.identity}))
    return ticket


def waiting(runs_dir: Path) -> list[Ticket]:
    """List the queue, first come first. Deletes the tickets of exited processes."""
    tickets = []
    for file in sorted((runs_dir / _FOLDER).glob("[0-9]*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            ticket = Ticket(file, str(values["name"]), int(values["pid"]), str(values["identity"]))
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if ticket.is_alive:
            tickets.append(ticket)
        else:
            file.unlink(missing_ok=True)
    return tickets


def refuse_full(runs_dir: Path | None) -> None:
    """Raise RunError if a folder's queue is full."""
    if runs_dir is not None and len(waiting(runs_dir)) >= MAX_WAITING:
        raise RunError(
            f"the queue of {runs_dir} is full: {MAX_WAITING} runs wait. Stop some of them, or start this run later."
        )


def place_of(runs_dir: Path, pid: int) -> tuple[int, int] | None:
    """Return the position of a process in the queue, from 1, and the queue's length; None if it does not wait."""
    pids = [ticket.pid for ticket in waiting(runs_dir)]
    return (pids.index(pid) + 1, len(pids)) if pid in pids else None


def processes_at_work(runs_dir: Path) -> set[int]:
    """Return the pids of a folder's active runs, including those started by a study or in a terminal.

    Reads job.json and run.json without jobs.py, which imports torch, so that a waiting process stays small.
    """
    pids = set()
    for pattern in (".jobs/*/job.json", "*/.jobs/*/job.json", "*/run.json", "*/*/run.json"):
        for file in runs_dir.glob(pattern):
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
                pid, identity = values.get("pid"), values.get("identity", values.get("process"))
            except (OSError, ValueError, AttributeError):
                continue
            has_ended = values.get("status", "running") != "running"
            if not has_ended and isinstance(pid, int) and identity is not None and identify(pid) == identity:
                pids.add(pid)
    return pids - {ticket.pid for ticket in waiting(runs_dir)}


def lock_queue(runs_dir: Path) -> AbstractContextManager[None]:
    """Lock the queue, so that one process at a time decides whose turn it is."""
    return lock(runs_dir / _FOLDER / "lock")


def default_limit() -> int:
    """Return one run per accelerator; without accelerators, as many as cores and memory allow, at least one."""
    accelerators = count_accelerators()
    if accelerators:
        return accelerators
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(memory_gib() / GIB_PER_RUN)))


def count_accelerators() -> int:
    """Count the NVIDIA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.split("\n"))


def memory_gib() -> float:
    """Return the memory of the machine or container in GiB."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # missing, or "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes) / 2**30
