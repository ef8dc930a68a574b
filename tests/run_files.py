"""Folders of runs as training leaves them, written by hand."""

import json
from pathlib import Path

CONFIG = "name: {name}\noutput_dir: runs\nmodels: {{student: data/models/student}}\nmethod: {{name: dopd}}\n"
STARTED, ENDED = "2026-11-30T12:00:00+0000", "2026-11-30T12:02:03+0000"
NO_PID = 4_190_000  # below the largest pid that Linux allows, and not in use


def write_run(runs_dir: Path, name: str, metrics: list[dict] = (), **status: object) -> Path:
    """A run folder with its config.yaml, run.json and metrics.jsonl. status: further facts of run.json."""
    folder = runs_dir / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(name=name))
    facts = {"status": "finished", "method": "dopd", "seed": 3, "steps": 9, "steps_done": 9}
    facts |= {"started": STARTED, "updated": ENDED, "command": ["workbench", "train", "demo"], **status}
    (folder / "run.json").write_text(json.dumps(facts))
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def write_job(runs_dir: Path, name: str, output: str = "", **record: object) -> Path:
    """The record of a process that has ended."""
    folder = runs_dir / ".jobs" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(name=name))
    (folder / "train.out").write_text(output)
    facts = {"pid": NO_PID, "identity": "former boot 1", "started": 1.7e9}
    facts |= {"command": ["python", "-m", "workbench", "train", str(folder.resolve() / "config.yaml")], **record}
    (folder / "job.json").write_text(json.dumps(facts))
    return folder
