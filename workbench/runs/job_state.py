"""What is known of a run: its state, as jobs.py derives it from files and the process table."""

import time
from dataclasses import dataclass, field
from pathlib import Path

STATUSES = ("queued", "starting", "running", "stopping", "finished", "stopped", "failed", "died", "unreadable")
ALIVE = ("queued", "starting", "running", "stopping")


@dataclass(frozen=True)
class JobState:
    """A run as it is now. Times are seconds since the epoch; what is not known is None.

    status       one of STATUSES; "queued": its process waits until fewer runs are at work; "died": it says it is running, and its process is gone
    step, steps  done, and asked for
    remaining_s  estimated by the run at its last step
    updated      the run's heartbeat: when it last wrote run.json
    error        the sentence that the run ended with
    doing        what a living run does between steps
    command      how it was started, as arguments
    """

    name: str
    run_dir: Path
    status: str
    method: str | None = None
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
        """Whether there is a run folder to go on from, and something left to do."""
        return self.status in ("stopped", "failed", "died") and (self.run_dir / "config.yaml").is_file()

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last heartbeat."""
        return None if self.updated is None else max(0.0, time.time() - self.updated)
