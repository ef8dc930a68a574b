"""Run folder: the files of a run besides traces and checkpoints.

config.yaml     the resolved configuration, with every default
run.json        status, process, steps done, seed, commit, versions, skipped examples, warnings
examples.jsonl  fingerprints of the data, see workbench.runs.fingerprints
skipped.jsonl   examples that could not be used, with the reasons
scored.jsonl    row of the rollout file that each scored rollout was (workbench score)
metrics.jsonl   one line per step (kind train), evaluation (kind eval) and probe (kind probe)
train.log       log messages
probes.json     the answers that are re-scored throughout the run
prepared.safetensors, sequences.jsonl    tensors and sequences that a method made once, before the first step
evals/          one file per evaluation
traces/         see docs/traces.md
checkpoint-N/   see workbench.runs.checkpoints
"""

import contextlib
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
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from workbench.errors import RunError, show
from workbench.files.atomic import TEMPORARY, clear_temporaries, write_text
from workbench.files.folders import new_folder, reason, saving
from workbench.files.jsonlines import split_lines
from workbench.files.locks import lock
from workbench.files.parsing import PLAIN_NAME, Malformed, is_plain_name, parse_json, read_object
from workbench.files.terminal import clean

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "pillow", "pyarrow", "duckdb", "vlm-distillation-workbench")

_KINDS: dict[str, Any] = {
    "status": str,
    "method": str,
    "seed": int,
    "steps_done": int,
    "steps": int,
    "skipped": dict,
    "warnings": list,
    "missing": list,
    "command": list,
    "error": str,
    "doing": str,
    "started": str,
    "updated": str,
    "config": dict,
    "prepared": dict,
    "scored": dict,
    "remaining_s": (int, float),
}

_OF_TRAINING = (".claim", "examples.jsonl", "train.log", "metrics.jsonl", "traces", "evals")

log = logging.getLogger("workbench")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Path of the complete checkpoint of a step."""
    return run_dir / f"checkpoint-{step:06d}"


class RunFolder:
    """Read and write the small files of one run. Writes are atomic."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, path: Path, config_yaml: str, *, seed: int, method: str, extra: Mapping[str, object] | None = None
    ) -> "RunFolder":
        """Create a run folder atomically. Raises RunError if it exists.

        An empty folder, and that of a run which failed before its first step, is replaced.

        extra  further entries of run.json
        """
        if _failed_at_start(path):
            shutil.rmtree(path)
        elif _is_remains(path):
            log.info("deleted %s: its process was killed while creating it", path)
            shutil.rmtree(path)
        facts = {"status": "running", "method": method, "seed": seed, "started": _now(), "steps_done": 0}
        facts |= {"command": sys.argv, **describe_environment(), **(extra or {})}
        try:
            if os.path.lexists(path):
                raise FileExistsError(path)
            with new_folder(path) as temporary:
                folder = cls(temporary)
                folder.write_config(config_yaml)
                folder._write("run.json", json.dumps(facts | {"updated": _now()}, indent=1, default=str))
        except FileExistsError:
            raise RunError(_taken(path)) from None
        except OSError as error:
            raise RunError(
                f"run folder {path} cannot be created ({reason(error)}). Choose another output_dir."
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run. Raises RunError if the folder is not a run."""
        folder = cls(path)
        if not (folder.path / "config.yaml").is_file() or not (folder.path / "run.json").is_file():
            raise RunError(
                f"{path} is not a run folder: it lacks config.yaml or run.json. Create runs with `workbench train`."
            )
        return folder

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the run for training by this process. The system releases the lock when the process exits."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(self.path / ".claim", wait=False))
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is being trained by process {self.status.get('pid')}. Wait for it, or stop it first."
                ) from None
            yield

    @property
    def status(self) -> dict:
        """Contents of run.json."""
        try:
            facts = read_object(self.path / "run.json")
        except (OSError, Malformed) as error:
            raise RunError(
                f"{self.path / 'run.json'} cannot be read ({reason(error)}). Restore the file, or delete the run's "
                "folder."
            ) from None
        fault = status_fault(facts)
        if fault is not None:
            raise RunError(f"{self.path / 'run.json'}: {fault}. Restore the file, or delete the run's folder.")
        return facts

    def update(self, **facts: object) -> None:
        """Set facts in run.json."""
        self._write("run.json", json.dumps({**self.status, **facts, "updated": _now()}, indent=1, default=str))

    def write_config(self, config_yaml: str) -> None:
        self._write("config.yaml", config_yaml)

    def log_metrics(self, kind: str, step: int, values: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        with saving(file), file.open("a") as stream:
            stream.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def metrics(self, kind: str | None = None) -> list[dict]:
        """Return the lines of metrics.jsonl in order, without an incomplete last line."""
        return [line for line in self._parsed_lines() if kind is None or line["kind"] == kind]

    def forget_metrics_after(self, step: int) -> None:
        """Delete the metrics of later steps, before a resumed run writes them again."""
        kept = [line for line in self._parsed_lines() if line["step"] <= step]
        self._write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def write_probes(self, probes: list[dict]) -> None:
        self._write("probes.json", json.dumps(probes))

    def probes(self) -> list[dict] | None:
        """Read the rows of write_probes; None if missing."""
        file = self.path / "probes.json"
        if not file.is_file():
            return None
        try:
            rows = parse_json(file.read_bytes())
        except (OSError, Malformed) as error:
            raise RunError(f"{file} cannot be read ({reason(error)}). Start a new run: name=...") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RunError(f"{file} is not a list of answers. Start a new run: name=...")
        return rows

    def write_sequences(self, name: str, rows: list[dict]) -> None:
        self._write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def sequences(self, name: str = "sequences.jsonl") -> list[dict] | None:
        """Read the rows of write_sequences; None if missing."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            return [parse_json(line) for line in split_lines(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read ({reason(error)}). Start a new run: name=...") from None

    def log_to_file(self) -> logging.Handler:
        """Also log messages to train.log, until the returned handler is closed."""
        file = self.path / "train.log"
        with saving(file):
            handler = _LogFile(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)
        return handler

    def _parsed_lines(self) -> list[dict]:
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise RunError(f"{file} cannot be read ({reason(error)}). Check its permissions.") from None
        return [parse_metrics(line, file, number) for number, line in enumerate(raw.split(b"\n")[:-1], start=1)]

    def clear_temporary(self) -> None:
        """Delete partial files of a killed process. Call only with the claim."""
        clear_temporaries(self.path)

    def _write(self, name: str, text: str) -> None:
        with saving(self.path / name):
            write_text(self.path / name, text)


class ReadOnlyFolder(RunFolder):
    """Run folder for ranks that do not write files: all writes are no-ops."""

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        yield

    def log_metrics(self, kind: str, step: int, values: Mapping[str, object]) -> None:
        pass

    def log_to_file(self) -> logging.Handler:
        return logging.NullHandler()

    def _write(self, name: str, text: str) -> None:
        pass


class StopSignal:
    """Turn SIGTERM and SIGINT into a request to stop after the current step. A second signal interrupts at once.

    stays  also after an error: a launcher ends all processes by SIGTERM when one has failed, and the others have to
           print why
    """

    def __init__(self, *, stays: bool = False) -> None:
        self.requested, self._stays = False, stays
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is not None and self._stays:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.info("stopping: finishing this step and saving")


class _LogFile(logging.FileHandler):
    """Log file with terminal escapes removed. Ignores write errors, so that a full disk does not end a run."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def parse_metrics(line: bytes, file: Path, number: int) -> dict:
    """Parse one line of metrics.jsonl. Raises RunError naming file and line if it lacks kind or step."""
    fault = None
    try:
        values = json.loads(line)
        if (
            not isinstance(values, dict)
            or not isinstance(values.get("kind"), str)
            or type(values.get("step")) is not int
        ):
            fault = "it lacks kind or step"
    except (ValueError, RecursionError) as error:
        fault = reason(error)
    if fault is None:
        return values
    raise RunError(f"{file}:{number} is not a line of metrics ({fault}): {show(line[:80])}. Delete the line.")


def status_fault(facts: dict) -> str | None:
    """Describe the first value of run.json that has a wrong type; None if all are valid."""
    for name, kind in _KINDS.items():
        if facts.get(name) is not None and (not isinstance(facts[name], kind) or isinstance(facts[name], bool)):
            return f'"{name}" is {show(facts[name])}'
    return None


def _taken(path: Path) -> str:
    if (path / "run.json").is_file() and (path / "config.yaml").is_file():
        return f"run folder {path} exists. Continue it with `workbench resume {path}`, or choose another name=..."
    fault = "it lacks run.json or config.yaml"
    return f"run folder {path} exists but is not a run: {fault}. Delete it, or choose another name=..."


def _is_remains(path: Path) -> bool:
    """Whether a folder has only the first files of a run: an older version was killed while creating it."""
    try:
        return not path.is_symlink() and all(
            file.name == ".claim" or TEMPORARY.fullmatch(file.name) for file in path.iterdir()
        )
    except OSError:
        return False


def _failed_at_start(path: Path) -> bool:
    """Whether the folder belongs to a run that failed before its first step."""
    first_files = {"config.yaml", "run.json", "train.log", "examples.jsonl", "skipped.jsonl", ".claim"}
    try:
        if not {file.name for file in path.iterdir()} <= first_files:
            return False
        return read_object(path / "run.json")["status"] == "failed"
    except (OSError, ValueError, KeyError):
        return False


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, without hidden ones; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a run, or what is left of one: a configuration and another file that training writes."""
    return os.path.isfile(path / "run.json") or (
        os.path.isfile(path / "config.yaml") and any(os.path.exists(path / name) for name in _OF_TRAINING)
    )


def list_runs(output_dir: str | Path) -> list[RunFolder]:
    """List the runs in a folder, newest first."""
    runs = [RunFolder(path.parent) for path in Path(output_dir).glob("*/run.json")]
    return sorted(runs, key=lambda run: run.status.get("started", ""), reverse=True)


def safe_run_dir(runs_dir: str | Path, name: str) -> Path:
    """Return the folder of a run by name. Raises RunError if it is not directly inside the runs folder."""
    if not is_plain_name(name):
        raise RunError(f"run name {show(name)} must be a plain folder name: {PLAIN_NAME}.")
    path = Path(runs_dir) / name
    if path.is_symlink() and path.resolve().parent != Path(runs_dir).resolve():
        raise RunError(f"{path} leads out of the runs folder {runs_dir}. Choose a run inside it.")
    return path


def find_run_dir(runs_dir: str | Path, name: str) -> Path:
    """Return the folder of a run in find_jobs: `name` or `study/name`. Raises RunError if it is outside the folder."""
    study, slash, run = name.partition("/")
    folder = safe_run_dir(runs_dir, study)
    return safe_run_dir(folder, run) if slash else folder


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe_environment() -> dict[str, object]:
    """Record versions, machine and commit, for reproducibility."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"pid": os.getpid(), "versions": versions, "platform": platform.platform(), **_commit()}


def _commit() -> dict[str, object]:
    source = Path(__file__).parents[1]
    commands = {"commit": ["git", "rev-parse", "HEAD"], "dirty": ["git", "status", "--porcelain", "-uno"]}
    outputs: dict[str, object] = {}
    for name, command in commands.items():
        try:
            done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return {"commit": None, "dirty": None}
        outputs[name] = done.stdout.strip()
    return {"commit": outputs["commit"], "dirty": bool(outputs["dirty"])}
