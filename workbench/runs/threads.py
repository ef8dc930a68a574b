"""OpenMP threads: their number (OMP_NUM_THREADS), and waiting by sleeping instead of spinning.

OpenMP's threads spin between tasks. Two programs that do so on the same cores block each other: each spins for a thread
that cannot run because the other one spins. Sleeping costs a program that runs alone almost nothing.
"""

import os

_SLEEPING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}  # of the standard; of Intel and LLVM


def sleep_while_waiting() -> None:
    """Make OpenMP threads sleep while waiting, unless configured otherwise. Call before importing torch."""
    for name, value in _SLEEPING.items():
        os.environ.setdefault(name, value)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configured_threads() -> int | None:
    """Return OMP_NUM_THREADS, or the first entry of a list by nesting level; None if it is not a positive number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
