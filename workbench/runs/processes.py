"""Which process is meant. A pid is given to another process later, so a process is its pid and the moment of its birth.

Linux tells both in /proc; elsewhere `ps` does.
"""

import os
import signal
import site
import subprocess
import time
from pathlib import Path

_PROC = Path("/proc")


def identify(pid: int) -> str | None:
    """What tells a living process from every other that had or will have its pid; None if there is none."""
    if not _PROC.is_dir():
        return _ps(pid, "lstart") or None
    ticks = _birth_ticks(pid)
    return None if ticks is None else f"{_boot()} {ticks}"


def born_at(pid: int) -> float | None:
    """When a living process was started, in seconds since the epoch and to about one; None if there is none."""
    if not _PROC.is_dir():
        text = _ps(pid, "lstart")
        return time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y")) if text else None
    ticks = _birth_ticks(pid)
    if ticks is None:
        return None
    booted = next(line for line in (_PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def child_environment() -> dict[str, str]:
    """The environment of a process that runs this package: Python takes no module from its working folder.

    `python -m` puts the working folder before the standard library, and a run's working folder stands in its job.json: a
    received folder of runs with a torch.py in it would be executed.
    """
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if package not in site.getsitepackages():  # a clone that is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return environment


def send(pid: int, identity: str, number: signal.Signals) -> bool:
    """Signal that very process; False if it is gone, also if its pid is another's by now."""
    try:
        if not hasattr(os, "pidfd_open"):
            if identify(pid) != identity:
                return False
            os.kill(pid, number)
            return True
        handle = os.pidfd_open(pid)  # from here on the pid cannot become another's
        try:
            if identify(pid) != identity:
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        finally:
            os.close(handle)
    except (ProcessLookupError, PermissionError):
        return False


def _birth_ticks(pid: int) -> int | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    state, *fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks and brackets
    return None if state in "ZX" else int(fields[18])  # a zombie has ended


def _boot() -> str:
    """The machine's start: birth ticks count from it."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _ps(pid: int, what: str) -> str:
    done = subprocess.run(["ps", "-o", f"{what}=,stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    *text, state = done.stdout.split() or ("Z",)
    return "" if state.startswith("Z") else " ".join(text)
