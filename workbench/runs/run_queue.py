"""The queue of a runs folder: how many runs are at work at once, and which wait for their turn.

A run that waits is a light process of its own (waiting.py), which becomes the training when its turn comes. So neither a page
that is closed nor one that is killed loses a waiting run or starts it twice, and stopping a waiting run is stopping a process.
Beside the run folders lies `.queue/`: max_runs, lock, and for each waiting process TIME-PID.json, which says whose it is.
"""

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import RunError
from workbench.runs.processes import identify

MAX_WAITING = 50
GIB_PER_RUN = 4.0  # of memory, where no accelerator limits the number of runs
_FOLDER, _LIMIT = ".queue", "max_runs"


@dataclass(frozen=True)
class Ticket:
    """A process that waits. name: of its run, as the page calls it."""

    file: Path
    name: str
    pid: int
    identity: str

    @property
    def is_alive(self) -> bool:
        return identify(self.pid) == self.identity


def set_limit(runs_dir: Path, max_runs: int) -> None:
    """Keep the number of runs at work at once, for those that wait and for those that will."""
    folder = runs_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_LIMIT}.{os.getpid()}"
    temporary.write_text(f"{max_runs}\n")
    os.replace(temporary, folder / _LIMIT)


def limit_of(runs_dir: Path) -> int | None:
    """How many runs may be at work at once; None = any number."""
    try:
        return max(1, int((runs_dir / _FOLDER / _LIMIT).read_text()))
    except (OSError, ValueError):
        return None


def take_ticket(runs_dir: Path, name: str, since_ns: int) -> Ticket:
    """This process waits from now on, behind those that came before since_ns."""
    folder = runs_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    ticket = Ticket(folder / f"{since_ns:020d}-{pid}.json", name, pid, identify(pid) or "")
    temporary = ticket.file.with_name(f".{ticket.file.name}")
    temporary.write_text(json.dumps({"name": name, "pid": pid, "identity": ticket.identity}), encoding="utf-8")
    os.replace(temporary, ticket.file)
    return ticket


def waiting(runs_dir: Path) -> list[Ticket]:
    """Those that wait, first come first; what ended processes left is removed."""
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
    """Raises RunError if as many runs wait in a folder's queue as may."""
    if runs_dir is not None and len(waiting(runs_dir)) >= MAX_WAITING:
        raise RunError(
            f"{MAX_WAITING} runs wait for their turn in {runs_dir} already. Stop some of them, or start this later."
        )


def place_of(runs_dir: Path, pid: int) -> tuple[int, int] | None:
    """Place, from 1, among how many, of a process; None if it does not wait."""
    pids = [ticket.pid for ticket in waiting(runs_dir)]
    return (pids.index(pid) + 1, len(pids)) if pid in pids else None


def processes_at_work(runs_dir: Path) -> set[int]:
    """Pids of the runs of a folder that have begun, also of those that a study or a terminal started.

    Read from job.json and run.json without jobs.py, which imports torch: a process that waits stays small.
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


@contextlib.contextmanager
def lock(runs_dir: Path) -> Iterator[None]:
    """One decision about whose turn it is at a time, also between two apps."""
    with (runs_dir / _FOLDER / "lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def default_limit() -> int:
    """A run for each accelerator; without one, as many as cores and memory hold, at least one."""
    accelerators = count_accelerators()
    if accelerators:
        return accelerators
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(memory_gib() / GIB_PER_RUN)))


def count_accelerators() -> int:
    """NVIDIA devices that this process may use; torch would take seconds to say it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.split("\n"))


def memory_gib() -> float:
    """The machine's memory in GiB, or what a container may take of it."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes) / 2**30
