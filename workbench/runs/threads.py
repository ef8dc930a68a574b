"""Threads that a process computes with: as many as OMP_NUM_THREADS says, and none of them waits by spinning.

OpenMP's threads spin between two pieces of work, in the hope that the next one comes soon. Two programs that do so on the
same cores wait for each other: each spins for a thread that cannot run because the other one spins. A thread that sleeps
instead costs a program that is alone next to nothing.
"""

import os

_SLEEPING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}  # the standard's, and Intel's and LLVM's own


def sleep_while_waiting() -> None:
    """Set before torch is imported, which reads it then; what is set already is kept."""
    for name, value in _SLEEPING.items():
        os.environ.setdefault(name, value)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asked_threads() -> int | None:
    """What OMP_NUM_THREADS says, if it is a number: whoever sets it keeps it. (A list is one per level; the first counts.)"""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
