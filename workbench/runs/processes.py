"""Identify processes by pid and start time, since pids are reused. Uses /proc on Linux, elsewhere `ps`."""

import os
import signal
import site
import subprocess
import time
from pathlib import Path

_PROC = Path("/proc")


def identify(pid: int) -> str | None:
    """Return a string that identifies a living process among all with its pid; None if it does not exist."""
    if not _PROC.is_dir():
        return _ps(pid, "lstart") or None
    ticks = _birth_ticks(pid)
    return None if ticks is None else f"{_boot()} {ticks}"


def born_at(pid: int) -> float | None:
    """Return the start time of a living process, to about one second since the epoch; None if it does not exist."""
    if not _PROC.is_dir():
        text = _ps(pid, "lstart")
        return time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y")) if text else None
    ticks = _birth_ticks(pid)
    if ticks is None:
        return None
    booted = next(line for line in (_PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def child_environment() -> dict[str, str]:
    """Return the environment of a child process, in which Python imports no module from its working directory.

    `python -m` searches the working directory before the standard library, and job.json sets that directory: a torch.py
    in a folder of runs from elsewhere would be executed.
    """
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if package not in site.getsitepackages():  # a clone without installation
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return environment


def send(pid: int, identity: str, number: signal.Signals) -> bool:
    """Send a signal to an identified process. Returns False if it has exited, also if its pid is reused."""
    try:
        if not hasattr(os, "pidfd_open"):
            if identify(pid) != identity:
                return False
            os.kill(pid, number)
            return True
        handle = os.pidfd_open(pid)  # keeps the pid from being reused
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
    state, *fields = text[text.rindex(")") + 2 :].split()  # the name before it may contain blanks and brackets
    return None if state in "ZX" else int(fields[18])  # a zombie has exited


def _boot() -> str:
    """Identify the boot of the machine, from which start ticks count."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _ps(pid: int, what: str) -> str:
    done = subprocess.run(["ps", "-o", f"{what}=,stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    *text, state = done.stdout.split() or ("Z",)
    return "" if state.startswith("Z") else " ".join(text)
