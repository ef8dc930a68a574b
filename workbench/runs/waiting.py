"""Process of a queued run: python -m workbench.runs.waiting RUNS_DIR RUN_DIR SINCE_NS COMMAND...

It polls the queue of RUNS_DIR and then executes COMMAND under the same pid, so a run is always one process.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from workbench.files.atomic import write_text
from workbench.runs.processes import identify
from workbench.runs.run_queue import Ticket, limit_of, lock_queue, processes_at_work, take_ticket, waiting

POLL_S = 1.0


def main(arguments: list[str]) -> None:
    """Wait for a turn in the queue, then replace this process by the command."""
    runs_dir, run_dir, command = Path(arguments[0]), Path(arguments[1]), arguments[3:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = run_dir.resolve().relative_to(runs_dir.resolve()).as_posix()  # NAME, or STUDY/NAME
    ticket = take_ticket(runs_dir, name, int(arguments[2]))
    try:
        while not _takes_turn(runs_dir, ticket):
            time.sleep(POLL_S)
            adopt(run_dir, command, runs_dir)
        adopt(run_dir, command, runs_dir)
    finally:
        ticket.file.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.execv(command[0], command)


def _takes_turn(runs_dir: Path, ticket: Ticket) -> bool:
    """Leave the queue if this run is first and fewer runs than the limit are active. Returns whether it did."""
    first = next(iter(waiting(runs_dir)), None)
    if first is None or first.pid != ticket.pid:
        return False
    with lock_queue(runs_dir):
        limit = limit_of(runs_dir)
        if limit is not None and len(processes_at_work(runs_dir)) >= limit:
            return False
        ticket.file.unlink(missing_ok=True)  # from here on it counts as active
        return True


def adopt(run_dir: Path, command: Sequence[str], runs_dir: Path) -> None:
    """Write this process into the run's job.json, as jobs.py does, in case its parent was killed before that."""
    file, pid = run_dir.parent / ".jobs" / run_dir.name / "job.json", os.getpid()
    try:
        if json.loads(file.read_text(encoding="utf-8"))["pid"] == pid:
            return
    except (OSError, ValueError, TypeError, KeyError):
        pass
    status = run_dir / "run.json"
    record = {
        "pid": pid,
        "identity": identify(pid),
        "started": time.time(),
        "command": list(command),
        "folder": os.getcwd(),
        "seen_ns": status.stat().st_mtime_ns if status.is_file() else 0,
        "queue": str(runs_dir),
    }
    write_text(file, json.dumps(record, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
