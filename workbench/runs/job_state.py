"""State of a run, which jobs.py derives from files and the process table."""

import time
from dataclasses import dataclass, field
from pathlib import Path

ALIVE = ("queued", "starting", "running", "stopping")


@dataclass(frozen=True)
class JobState:
    """Current state of a run. Times are seconds since the epoch; None = unknown.

    status       queued (its process waits for its turn), starting, running, stopping, finished, stopped, failed, died
                 (run.json says running, but its process has exited), or unreadable
    step, steps  steps done, and steps configured
    remaining_s  estimate of the run at its last step
    updated      last write of run.json, the run's heartbeat
    error        error message of a failed run
    doing        current work of a living run between steps
    command      its command, as arguments
    """

    name: str
    run_dir: Path
    status: str
    method: str | None = None
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    remaining_s: float | None = None
    started: float | None = None
    updated: float | None = None
    pid: int | None = None
    error: str | None = None
    doing: str | None = None
    warnings: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    @property
    def is_alive(self) -> bool:
        return self.status in ALIVE

    @property
    def can_resume(self) -> bool:
        """Whether the run can be resumed and has steps left."""
        return self.status in ("stopped", "failed", "died") and (self.run_dir / "config.yaml").is_file()

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last heartbeat."""
        return None if self.updated is None else max(0.0, time.time() - self.updated)
