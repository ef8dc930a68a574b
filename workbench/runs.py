"""The run folder: what a run leaves on disk besides traces and checkpoints.

config.yaml     the resolved configuration: every default written out
run.json        status, process, steps done, seed, commit, versions, what was skipped, warnings
skipped.jsonl   the examples that could not be used, each with the reason
metrics.jsonl   one line per step (kind train), evaluation (kind eval) and probe (kind probe)
train.log       what the terminal showed
probes.json     the answers that are re-scored through the run
prepared.safetensors, sequences.jsonl    what a method made, and what was written, once and before the first step
evals/          one file per evaluation
traces/         see docs/traces.md
checkpoint-N/   see workbench.checkpoints
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType

from workbench.errors import RunError, show
from workbench.jsonlines import split_lines
from workbench.parsing import PLAIN_NAME, is_plain_name

STATUSES = ("running", "finished", "stopped", "failed")
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "pillow", "pyarrow", "duckdb", "vlm-distillation-workbench")

log = logging.getLogger("workbench")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is, once it is complete."""
    return run_dir / f"checkpoint-{step:06d}"


class RunFolder:
    """Reads and writes the small files of one run. Every write is complete or not there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path, config_yaml: str, *, seed: int, method: str) -> "RunFolder":
        """A new run. Raises RunError if the folder exists: finished work is never written over.

        A run that failed before its first number (a wrong path, say) left no work, and is made anew.
        """
        if _failed_at_start(path):
            shutil.rmtree(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"run folder {path} exists. Continue it with `workbench resume {path}`, or choose another name=..."
            ) from None
        except OSError as error:
            raise RunError(f"run folder {path} cannot be made ({error.strerror}). Choose another output_dir.") from None
        folder = cls(path)
        folder.write_config(config_yaml)
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

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keeps other processes from training this run. The system ends the claim with the process, however it ends."""
        with (self.path / ".claim").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is being trained by process {self.status.get('pid')}. Wait for it, or stop it first."
                ) from None
            yield

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

    def write_config(self, config_yaml: str) -> None:
        self._write("config.yaml", config_yaml)

    def log_metrics(self, kind: str, step: int, values: dict[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def metrics(self, kind: str | None = None) -> list[dict]:
        """Lines of metrics.jsonl, in order; a last line that is being written is left out."""
        return [line for line in map(self._parsed, self._metric_lines()) if kind is None or line["kind"] == kind]

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of later steps, before they are written again by a resumed run."""
        kept = [text for text in self._metric_lines() if self._parsed(text)["step"] <= step]
        self._write("metrics.jsonl", "".join(text + "\n" for text in kept))

    def write_probes(self, probes: list[dict]) -> None:
        self._write("probes.json", json.dumps(probes))

    def probes(self) -> list[dict] | None:
        """What write_probes wrote, or None."""
        file = self.path / "probes.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def write_sequences(self, name: str, rows: list[dict]) -> None:
        self._write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def sequences(self, name: str = "sequences.jsonl") -> list[dict] | None:
        """What write_sequences wrote, or None."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            return [json.loads(line) for line in split_lines(file.read_text(encoding="utf-8"))]
        except ValueError as error:
            raise RunError(f"{file} cannot be read ({error}). Start a new run: name=...") from None

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
        yield from file.read_text(encoding="utf-8").split("\n")[:-1]

    def _parsed(self, text: str) -> dict:
        try:
            return json.loads(text)
        except ValueError as error:
            raise RunError(
                f"{self.path / 'metrics.jsonl'} has a line that cannot be read ({error}): {text[:80]!r}. Delete the line."
            ) from None

    def _write(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)


class ReadOnlyFolder(RunFolder):
    """A run's folder as the processes see it that leave its small files to another one."""

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        yield

    def log_metrics(self, kind: str, step: int, values: dict[str, object]) -> None:
        pass

    def log_to_file(self) -> logging.Handler:
        return logging.NullHandler()

    def _write(self, name: str, text: str) -> None:
        pass


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


def _failed_at_start(path: Path) -> bool:
    """Whether the folder is that of a run which failed and left its configuration and a message and nothing else."""
    try:
        if not {file.name for file in path.iterdir()} <= {"config.yaml", "run.json", "train.log", ".claim"}:
            return False
        return json.loads((path / "run.json").read_text())["status"] == "failed"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def list_runs(output_dir: str | Path) -> list[RunFolder]:
    """Runs in a folder, newest first."""
    found = [RunFolder(path.parent) for path in Path(output_dir).glob("*/run.json")]
    return sorted(found, key=lambda run: run.status.get("started", ""), reverse=True)


def safe_run_dir(runs_dir: str | Path, name: str) -> Path:
    """The folder of a run called `name`. Raises RunError if that is not directly inside the runs folder."""
    if not is_plain_name(name):
        raise RunError(f"run name {show(name)} must be a plain folder name: {PLAIN_NAME}.")
    path = Path(runs_dir) / name
    if path.resolve().parent != Path(runs_dir).resolve():
        raise RunError(f"{path} leads out of the runs folder {runs_dir}. Only runs inside it can be opened.")
    return path


def find_run_dir(runs_dir: str | Path, name: str) -> Path:
    """The folder of a run that find_jobs lists: `name`, or `study/name`. Raises RunError if it leads out of the folder."""
    study, slash, own = name.partition("/")
    folder = safe_run_dir(runs_dir, study)
    return safe_run_dir(folder, own) if slash else folder


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
