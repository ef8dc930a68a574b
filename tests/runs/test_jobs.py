"""Runs as processes of their own: real ones, with tiny models. What is known of them comes from files alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from processes import Program
from small import run_config

from workbench.config.schema import RunConfig, load_config
from workbench.errors import ConfigError, RunError
from workbench.runs.commands import copyable, overrides_between, train_command
from workbench.runs.folder import RunFolder, find_run_dir, safe_run_dir
from workbench.runs.jobs import (
    JobState,
    find_jobs,
    log_tail,
    read_job,
    resume_run,
    start_run,
    stop_run,
)
from workbench.runs.processes import born_at, identify, send

NO_PID = 4_190_000  # below the largest pid that Linux allows, and not in use


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def wait_for(run_dir: Path, is_so: Callable[[JobState], bool], seconds: float = 120.0) -> JobState:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = read_job(run_dir)
        if is_so(state):
            return state
        time.sleep(0.05)
    raise AssertionError(f"still {read_job(run_dir)}\n{log_tail(run_dir)}")


def losses(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in RunFolder.open(run_dir).metrics("train")}


def a_run(folder: Path, status: dict) -> Path:
    """A run folder as training would leave it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method: {name: dopd}\ntraining: {steps: 9}\n")
    (folder / "run.json").write_text(json.dumps({"method": "dopd", "started": now(), "updated": now(), **status}))
    return folder


def now(offset: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() + offset))


APP = """
import sys
from workbench.config.schema import load_config
from workbench.runs.jobs import start_run
print(start_run(load_config(sys.argv[1]), sys.argv[2]).pid)
"""


@pytest.fixture(scope="module")
def two_runs(models: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunConfig]:
    """Two runs that went at once: one to its end; the other, of an app that ended, was stopped, resumed, and killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    runs = tmp_path_factory.mktemp("runs")
    short = run_config(models, "elsewhere", name="short", data__eval=None)
    long = run_config(models, "elsewhere", name="long", data__eval=None, training__steps=400, training__save_every=0)
    state = start_run(short, runs)
    assert state.status == "starting" and state.run_dir == runs / "short"
    with raises(RunError, "short"):
        start_run(short, runs)
    file = runs.parent / "long.yaml"
    file.write_text(long.to_yaml())
    app = Program(runs.parent / "app", APP, str(file), str(runs))
    assert app.wait() == 0
    assert {state.name for state in find_jobs(runs)} == {"short", "long"}
    running = wait_for(runs / "long", lambda state: state.step >= 3)
    assert running.status == "running" and running.is_alive and running.silent_s < 60
    assert running.pid == int(app.out.read_text()) == os.getsid(running.pid)  # a session of its own
    assert (running.method, running.steps) == ("dopd", 400)
    assert stop_run(runs / "long").status in ("stopping", "stopped")
    for _ in range(4):  # a second signal would cost the checkpoint
        if read_job(runs / "long").is_alive:
            stop_run(runs / "long")
    stopped = wait_for(runs / "long", lambda state: not state.is_alive)
    assert stopped.status == "stopped" and 3 <= stopped.step < 400, log_tail(runs / "long")
    assert (runs / "long" / f"checkpoint-{stopped.step:06d}").is_dir()
    assert stopped.can_resume
    resumed = resume_run(runs / "long", ["training.save_total_limit=1"])
    assert resumed.status == "starting" and resumed.pid != stopped.pid
    with raises(RunError, "Stop it"):
        resume_run(runs / "long")
    wait_for(runs / "long", lambda state: state.step >= stopped.step + 2)
    stop_run(runs / "long", at_once=True)
    died = wait_for(runs / "long", lambda state: not state.is_alive)
    assert died.status == "died" and died.can_resume
    assert f"Resuming it continues from step {stopped.step}" in died.error
    return replace(short, output_dir=str(runs)), replace(long, output_dir=str(runs))


def test_started_run_finishes(two_runs: tuple) -> None:
    state = wait_for(two_runs[0].run_dir, lambda state: not state.is_alive)
    assert (state.status, state.step, state.steps, state.error) == ("finished", 4, 4, None)
    assert list(losses(two_runs[0].run_dir)) == [1, 2, 3, 4]
    assert "dopd" in log_tail(two_runs[0].run_dir)
    with raises(RunError, "finished"):
        resume_run(state.run_dir)
    with raises(RunError, "finished"):
        stop_run(state.run_dir)


def test_stopped_run_resumes_where_it_was(two_runs: tuple) -> None:
    state = read_job(two_runs[1].run_dir)
    assert list(losses(state.run_dir)) == list(range(1, state.step + 1))


def test_jobs_are_equal_in_another_process(two_runs: tuple, tmp_path: Path) -> None:
    runs = two_runs[0].run_dir.parent
    code = "import sys; from workbench.runs.jobs import find_jobs; print([s.name for s in find_jobs(sys.argv[1])])"
    program = Program(tmp_path, code, str(runs))
    assert program.wait() == 0
    assert program.out.read_text().strip() == str([state.name for state in find_jobs(runs)])


def test_run_that_cannot_begin_names_its_error(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, data={"train": str(tmp_path / "nothing.jsonl")})
    start_run(config)
    state = wait_for(config.run_dir, lambda state: not state.is_alive)
    assert state.status == "failed" and not state.can_resume
    assert state.error.startswith("DataError: ") and "nothing.jsonl" in state.error
    assert find_jobs(tmp_path) == [state]
    assert not config.run_dir.exists()
    again = start_run(config)  # the name is free: nothing was made
    assert again.status == "starting" and again.error is None and "DataError" in log_tail(config.run_dir)
    stop_run(config.run_dir, at_once=True)
    wait_for(config.run_dir, lambda state: not state.is_alive)


def test_running_status_without_process_is_died(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "gone", {"status": "running", "pid": NO_PID, "steps_done": 3})
    state = read_job(run_dir)
    assert (state.status, state.step, state.steps) == ("died", 3, 9)
    assert "starts over" in state.error


def test_run_with_recycled_pid_is_died(tmp_path: Path) -> None:
    this_process = os.getpid()
    recycled = a_run(
        tmp_path / "recycled", {"status": "running", "pid": this_process, "updated": "2020-01-01T00:00:00+0000"}
    )
    assert read_job(recycled).status == "died"
    with raises(RunError, "status is died"):
        stop_run(recycled)
    # started in a terminal, it has no record, and its heartbeat is younger than the process
    assert read_job(a_run(tmp_path / "live", {"status": "running", "pid": this_process})).status == "running"
    foreign = {
        "status": "running",
        "pid": this_process,
        "process": "another boot 1",
    }  # written in a container, or on another machine
    assert read_job(a_run(tmp_path / "foreign", foreign)).status == "died"
    with raises(RunError, "status is died"):
        stop_run(tmp_path / "foreign", at_once=True)
    assert not send(this_process, "another boot 1", signal.SIGKILL)
    assert identify(NO_PID) is None and born_at(NO_PID) is None
    assert born_at(this_process) == pytest.approx(time.time(), abs=3600 * 24)


def test_zombie_is_not_a_living_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.01)
    assert identify(process.pid) is None
    process.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"skipped": ["a"]}', '{"steps_done": "x"}', '{"status": 3}'])
def test_half_written_run_is_listed_as_unreadable(tmp_path: Path, text: str) -> None:
    run_dir = a_run(tmp_path / "half", {})
    (run_dir / "run.json").write_text(text)
    (state,) = find_jobs(tmp_path)
    assert state.status == "unreadable" and "run.json" in state.error and not state.is_alive


def test_deleted_run_raises(tmp_path: Path) -> None:
    with raises(RunError, "deleted"):
        read_job(tmp_path / "nothing")
    with pytest.raises(RunError):
        stop_run(tmp_path / "nothing")
    assert find_jobs(tmp_path) == []
    assert find_jobs(tmp_path / "no folder") == []
    folder = tmp_path / ".jobs" / "finished"  # one that the app had started, and somebody deleted
    folder.mkdir(parents=True)
    record = {"pid": NO_PID, "identity": "another boot 1", "started": 1.0, "command": ["workbench"]}
    (folder / "job.json").write_text(json.dumps(record))
    (folder / "train.out").write_text("step 4 of 4\n")
    with raises(RunError, "deleted"):
        read_job(tmp_path / "finished")
    assert find_jobs(tmp_path) == []
    (folder / "train.out").write_text("workbench.errors.DataError: the file does not exist\n")
    assert [(job.name, job.status) for job in find_jobs(tmp_path)] == [("finished", "failed")], "it never made a run"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", ".jobs", "a\\b", "a\0b", "a\nb", "x" * 300])
def test_run_name_that_is_not_plain_raises(tmp_path: Path, name: str) -> None:
    with raises(RunError, "folder name"):
        safe_run_dir(tmp_path, name)


def test_links_out_of_runs_folder_raise(models: dict, tmp_path: Path) -> None:
    outside, runs = a_run(tmp_path / "outside", {"status": "finished"}), tmp_path / "runs"
    runs.mkdir()
    (runs / "link").symlink_to(outside)
    for act in (lambda: safe_run_dir(runs, "link"), lambda: resume_run(runs / "link"), lambda: stop_run(runs / "link")):
        with raises(RunError, "out of the runs folder"):
            act()
    assert find_jobs(runs) == []
    (tmp_path / "elsewhere").mkdir()
    (runs / ".jobs").symlink_to(tmp_path / "elsewhere")
    with raises(RunError, "out of the runs folder"):
        start_run(run_config(models, runs))
    assert not list((tmp_path / "elsewhere").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("training.steps=9", "training.save_every"),
        ("training.save_total_limit=no", "save_total_limit"),
    ],
)
def test_refused_resume_leaves_run_unchanged(models: dict, tmp_path: Path, given: str, output: str) -> None:
    folder = a_run(tmp_path / "one", {"status": "stopped", "steps_done": 2, "steps": 4})
    (folder / "config.yaml").write_text(run_config(models, tmp_path).to_yaml())
    before = read_job(folder)
    with pytest.raises(ConfigError, match=output):
        resume_run(folder, [given])
    assert read_job(folder) == before and before.status == "stopped"
    assert not (tmp_path / ".jobs" / "one" / "train.out").exists(), "no process was started"


def test_runs_of_study_are_found_under_its_name(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    a_run(runs / "one", {"status": "finished"})
    a_run(runs / "study" / "dopd-s0", {"status": "stopped"})
    a_run(runs / "one" / "inside", {"status": "finished"})  # a run holds no runs
    (runs / "study" / "link").symlink_to(a_run(tmp_path / "outside", {"status": "finished"}))
    assert {state.name for state in find_jobs(runs)} == {"one", "study/dopd-s0"}
    assert find_run_dir(runs, "study/dopd-s0") == runs / "study" / "dopd-s0"
    for name in ("study/link", "study/../one", "../runs/one", "study/a/b", "study/", "/one", ".jobs/one"):
        with pytest.raises(RunError, match=r"must be a plain folder name|leads out"):
            find_run_dir(runs, name)


def test_start_run_with_remote_code_or_without_model_raises(models: dict, tmp_path: Path) -> None:
    with raises(ConfigError, "trust_remote_code"):
        start_run(run_config(models, tmp_path, models__trust_remote_code=True))
    with raises(ConfigError, "models.teacher"):
        start_run(run_config({**models, "teacher": tmp_path / "gone"}, tmp_path))
    assert not (tmp_path / ".jobs").exists()


def test_start_run_with_taken_name_raises(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path)
    config.run_dir.mkdir()
    with raises(RunError, "exists"):
        start_run(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__learning_rate": 1e-05, "name": "it's mine", "evaluation__contexts": ["plain", "boxes+caption"]},
        {"method": {"name": "opd"}, "data__eval": None, "models__teachers": {"a b": "c"}},
        {"method": {"name": "dopd", "privilege": "boxes", "trim": 0.1}, "training__betas": [0.5, 0.75]},
    ],
)
def test_command_line_starts_the_same_run(models: dict, tmp_path: Path, changes: dict) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(run_config(models, "runs").to_yaml())
    config = run_config(models, "runs", **changes)
    overrides = overrides_between(recipe, config)
    assert load_config(recipe, overrides).to_dict() == config.to_dict()
    assert bool(overrides) == bool(changes)
    command = train_command(recipe, overrides)
    shell = f'{sys.executable} -c "import sys; print(repr(sys.argv[1:]))" {copyable(command[1:])}'
    printed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == repr(command[1:])
