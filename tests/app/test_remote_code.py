"""A received run or recipe whose models bring Python code: no door of the page executes any of it."""

import inspect
import json
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest
import transformers
import yaml
from failures import raises
from PIL import Image
from small import run_config

from workbench.app.context import AppContext
from workbench.app.layout import build_app
from workbench.errors import ConfigError
from workbench.runs import jobs

DOORS = {
    "new-run-check",
    "new-run-start",
    "training-resume",
    "data-score",
    "data-own-score",
    "data-compare",
    "data-show-prompts",
}
LOADERS = (
    "AutoConfig",
    "AutoProcessor",
    "AutoTokenizer",
    "AutoImageProcessor",
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
)


@pytest.fixture
def received(runs: Path, tmp_path: Path) -> AppContext:
    """A folder with one stopped run, and one recipe, both of which trust the code of their models."""
    run = tmp_path / "runs" / "opd"
    shutil.copytree(runs / "opd", run)
    config, status = run / "config.yaml", json.loads((run / "run.json").read_text())
    config.write_text(config.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    status["config"]["models"]["trust_remote_code"] = True
    (run / "run.json").write_text(json.dumps({**status, "status": "stopped"}))
    (tmp_path / "configs").mkdir()
    shutil.copy(config, tmp_path / "configs" / "theirs.yaml")
    return AppContext(tmp_path / "runs", tmp_path / "configs")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "own.png")
    return str(tmp_path / "own.png")


def call(app: gr.Blocks, event: object, values: dict[str, object]) -> str | None:
    """All text that an event returns for the values of the page; None if it needs the data of a click."""
    handler = inspect.unwrap(getattr(event.fn, "func", event.fn))
    if any(parameter.annotation is gr.EventData for parameter in inspect.signature(handler).parameters.values()):
        return None
    blank = [
        each.value or "" if isinstance(each, gr.Textbox) or each.get_block_name() == "api" else each.value
        for each in event.inputs
    ]
    given = [values.get(entry.elem_id, value) for entry, value in zip(event.inputs, blank, strict=True)]
    with warnings.catch_warnings(record=True) as output:
        warnings.simplefilter("always")
        answered = event.fn(*given)
        answered = list(answered) if inspect.isgenerator(answered) else answered
    return f"{answered} {' '.join(str(item.message) for item in output)}"


def test_page_events_remote_code_refused_by_all(
    received: AppContext, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event of the page is called, so a door that is added later is found, too."""
    opened: list[str] = []

    def start(command: list[str], *_: object, **__: object) -> None:
        opened.append(f"process {command}")
        raise OSError("no process in this test")

    def load(*_: object, trust_remote_code: bool = False, **__: object) -> None:
        opened.extend(["model"] if trust_remote_code else [])
        raise OSError("no model in this test")

    monkeypatch.setattr(subprocess, "Popen", start)
    for name in LOADERS:
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", load)
    app, refused = build_app(received), set()
    values = {
        "app-run": "opd",
        "data-file": picture,
        "data-question": "What is it?",
        "data-own-given": "a",
        "data-given": "a",
    }
    trust = next(item for item in app.blocks.values() if item.elem_id == "new-run-models-trust_remote_code")
    assert trust.value is True
    for event in app.fns.values():
        text = call(app, event, values) if event.fn is not None else None
        if text is not None and "trust_remote_code=true runs Python code" in text:
            refused |= {app.blocks[block].elem_id for block, _ in event.targets}
    assert not opened
    assert refused == DOORS


def test_resume_run_remote_code_raises(received: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    run, started = received.runs_dir / "opd", []
    monkeypatch.setattr(jobs, "_spawn", lambda *given: started.append(given))
    before = (run / "run.json").read_bytes()
    for overrides in ([], ["training.save_every=1"]):
        with raises(ConfigError, "trust_remote_code=true"):
            jobs.resume_run(run, overrides)
    assert not started and (run / "run.json").read_bytes() == before


@pytest.mark.parametrize("form", ["true", "True", "yes", "on", '"true"', "&x true"])
def test_resume_run_any_spelling_of_true_raises(received: AppContext, form: str) -> None:
    config = received.runs_dir / "opd" / "config.yaml"
    config.write_text(config.read_text().replace("trust_remote_code: true", f"trust_remote_code: {form}"))
    with raises(ConfigError, "trust_remote_code"):
        jobs.resume_run(config.parent)
    assert yaml.safe_load(config.read_text())["models"]["trust_remote_code"] in (True, "true")


def test_spawn_received_folder_modules_are_not_imported(models: dict, tmp_path: Path) -> None:
    """A run's job.json says where its process is started, and `python -m` takes modules from there."""
    theirs, mark = tmp_path / "theirs", tmp_path / "executed"
    theirs.mkdir()
    for name in ("yaml", "tqdm", "torch", "workbench"):
        (theirs / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nraise SystemExit('theirs')\n")
    run = tmp_path / "runs" / "run"
    jobs.job_folder(run, make=True)
    jobs._spawn(run, ["methods"], run_config(models, tmp_path), theirs)
    wait_for(lambda: jobs._living(jobs._read_record(run), None) is None)
    assert not mark.exists() and "opd" in jobs.log_tail(run), jobs.log_tail(run)


def wait_for(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
