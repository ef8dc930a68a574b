"""The run folder: what a run leaves on disk besides traces and checkpoints.

config.yaml     the resolved configuration: every default written out
run.json        status, process, steps done, seed, commit, versions, what was skipped, warnings
metrics.jsonl   one line per step (kind train), evaluation (kind eval) and probe (kind probe)
train.log       what the terminal showed
probes.json     the answers that are re-scored through the run
evals/          one file per evaluation
traces/         see docs/traces.md
checkpoint-N/   see workbench.checkpoints
"""

import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType

from workbench.errors import RunError

STATUSES = ("running", "finished", "stopped", "failed")
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "pillow", "pyarrow", "duckdb", "vlm-distillation-workbench")

log = logging.getLogger("workbench")


class RunFolder:
    """Reads and writes the small files of one run. Every write is complete or not there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path, config_yaml: str, *, seed: int, method: str) -> "RunFolder":
        """A new run. Raises RunError if the folder exists: finished work is never written over."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"run folder {path} exists. Continue it with `workbench resume {path}`, or choose another name=..."
            ) from None
        except OSError as error:
            raise RunError(f"run folder {path} cannot be made ({error.strerror}). Choose another output_dir.") from None
        folder = cls(path)
        folder._write("config.yaml", config_yaml)
        folder._write("run.json", json.dumps({"status": "running", "method": method, "seed": seed, "started": _now()}))
        folder.update(steps_done=0, command=sys.argv, **_surroundings())
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises RunError if the folder holds none."""
        folder = cls(path)
        if not (folder.path / "config.yaml").is_file() or not (folder.path / "run.json").is_file():
            raise RunError(
                f"{path} is no run folder: it has no config.yaml and run.json. Runs are made by `workbench train`."
            )
        return folder

    @property
    def status(self) -> dict:
        """The contents of run.json."""
        try:
            return json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / 'run.json'} cannot be read ({error}).") from None

    def update(self, **facts: object) -> None:
        """Set facts in run.json."""
        self._write("run.json", json.dumps({**self.status, **facts, "updated": _now()}, indent=1, default=str))

    def log_metrics(self, kind: str, step: int, values: dict[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def metrics(self, kind: str | None = None) -> list[dict]:
        """Lines of metrics.jsonl, in order; a last line that is being written is left out."""
        lines = []
        for text in self._metric_lines():
            line = json.loads(text)
            if kind is None or line["kind"] == kind:
                lines.append(line)
        return lines

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of later steps, before they are written again by a resumed run."""
        kept = [text for text in self._metric_lines() if json.loads(text)["step"] <= step]
        self._write("metrics.jsonl", "".join(text + "\n" for text in kept))

    def write_probes(self, probes: list[dict]) -> None:
        self._write("probes.json", json.dumps(probes))

    def probes(self) -> list[dict] | None:
        """What write_probes wrote, or None."""
        file = self.path / "probes.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def log_to_file(self) -> logging.Handler:
        """From now on messages also go to train.log; close the handler when done."""
        handler = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)
        return handler

    def _metric_lines(self) -> Iterator[str]:
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        for text in file.read_text().splitlines(keepends=True):
            if text.endswith("\n"):
                yield text.rstrip("\n")

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)


class StopSignal:
    """Turns SIGTERM and SIGINT into a request to stop after the step at hand; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info("asked to stop: finishing this step and saving")


def list_runs(output_dir: str | Path) -> list[RunFolder]:
    """Runs in a folder, newest first."""
    found = [RunFolder(path.parent) for path in Path(output_dir).glob("*/run.json")]
    return sorted(found, key=lambda run: run.status.get("started", ""), reverse=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _surroundings() -> dict[str, object]:
    """Versions, machine and commit: what somebody needs to get the same numbers again."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"pid": os.getpid(), "versions": versions, "platform": platform.platform(), **_commit()}


def _commit() -> dict[str, object]:
    source = Path(__file__).parent
    commands = {"commit": ["git", "rev-parse", "HEAD"], "dirty": ["git", "status", "--porcelain", "-uno"]}
    found: dict[str, object] = {}
    for name, command in commands.items():
        try:
            done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return {"commit": None, "dirty": None}
        found[name] = done.stdout.strip()
    return {"commit": found["commit"], "dirty": bool(found["dirty"])}
