"""The run folder: nothing finished is written over, and nobody trains a run that somebody is training."""

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from failures import raises
from processes import Program
from small import run_config

from workbench.errors import RunError
from workbench.files.folders import new_folder
from workbench.runs.folder import RunFolder, list_runs
from workbench.training.run import resume, train


def create(path: Path) -> RunFolder:
    return RunFolder.create(path, "name: x\n", seed=3, method="dopd")


def test_run_folder_new_has_its_status(tmp_path: Path) -> None:
    folder = create(tmp_path / "deep" / "run")
    status = folder.status
    assert (status["status"], status["method"], status["seed"], status["pid"]) == ("running", "dopd", 3, os.getpid())
    assert RunFolder.open(folder.path).status == status


def test_run_folder_existing_is_not_overwritten(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with raises(RunError, "exists", "Continue"):
        create(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.yaml").write_text("mine")
    for name in ("file", "folder"):
        with raises(RunError, "exists", "not a run", "Delete"):
            create(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "config.yaml").read_text() == "mine"


def test_run_folder_leftovers_of_kill_are_deleted_at_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "old"  # as older versions left it
    old.mkdir()
    (old / ".config.yaml.123").write_text("name")
    remains = tmp_path / ".other.0123abcd.partial"
    remains.mkdir()
    (remains / "config.yaml").write_text("name")
    mine = tmp_path / ".mine.partial"
    mine.mkdir()
    with caplog.at_level("INFO", "workbench"), new_folder(tmp_path / "made") as living:
        create(old)
        assert living.is_dir(), "another process is making it"
    assert not remains.exists() and mine.is_dir() and (tmp_path / "made").is_dir()
    assert [str(path) in caplog.text for path in (old, remains, living)] == [True, True, False]
    assert sorted(path.name for path in old.iterdir()) == ["config.yaml", "run.json"]


_KILLED = """
import os, sys
from pathlib import Path
from workbench.runs.folder import RunFolder
calls, count = int(sys.argv[1]), 0

def stop(event, arguments):
    global count
    if event in ("open", "os.mkdir", "os.rename", "os.remove") and sys.argv[2] in str(arguments[0]):
        count += 1
        if count > calls:
            os._exit(9)

sys.addaudithook(stop)
RunFolder.create(Path(sys.argv[2]) / "run", "name: x\\n", seed=3, method="dopd")
"""


def test_run_folder_killed_creation_leaves_whole_run_or_none(tmp_path: Path) -> None:
    ended = []
    for calls in range(30):
        folder = tmp_path / str(calls)
        folder.mkdir()
        ended.append(Program(tmp_path / "out", _KILLED, str(calls), str(folder)).wait())
        whole = (folder / "run").exists()
        if whole:
            assert RunFolder.open(folder / "run").status["status"] == "running"
        else:
            create(folder / "run")
            assert [path.name for path in folder.iterdir()] == ["run"]
        if ended[-1] == 0:
            break
    assert len(ended) > 5 and set(ended) == {9, 0}


def test_run_folder_creation_on_full_disk_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with raises(RunError, "File too large"):
            create(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_run_folder_of_failed_empty_run_is_replaced(tmp_path: Path) -> None:
    folder = create(tmp_path / "run")
    for name in ("train.log", "examples.jsonl", "skipped.jsonl"):
        (folder.path / name).write_text("no row has evidence")
    folder.update(status="failed", error="no such model")
    assert "error" not in create(folder.path).status
    folder.update(status="failed")
    folder.log_metrics("eval", 0, {"accuracy": 1.0})
    with raises(RunError, "exists"):
        create(folder.path)


def test_run_folder_that_cannot_be_created_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(RunError, "created"):
        create(tmp_path / "file" / "run")


def test_run_folder_of_one_name_is_created_once(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, training__steps=1, data__eval=None)
    with ThreadPoolExecutor(4) as pool:
        outcomes = [running.exception() for running in [pool.submit(train, config) for _ in range(4)]]
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 3
    assert all(isinstance(item, RunError) and "exists. Continue it with" in str(item) for item in refused)
    assert RunFolder.open(config.run_dir).status["status"] == "finished"


def test_claim_of_running_run_raises(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, training__steps=2, data__eval=None)
    refused = []

    def meanwhile(step: int, metrics: dict) -> None:
        before = (config.run_dir / "run.json").read_bytes()
        with raises(RunError, f"process {os.getpid()}"):
            resume(config.run_dir)
        refused.append((config.run_dir / "run.json").read_bytes() == before)

    train(config, on_step=meanwhile)
    assert refused == [True, True]
    assert resume(config.run_dir).steps == 2  # the claim ended with the run


def test_claim_ends_with_its_process(tmp_path: Path) -> None:
    folder = create(tmp_path / "run")
    code = (
        "import sys, time; from workbench.runs.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).claim(): print('mine', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    with raises(RunError, "being trained"), folder.claim():
        pass
    process.kill()
    process.communicate()
    time.sleep(0.01)
    with folder.claim():
        pass


def test_metrics_leave_out_torn_last_line(tmp_path: Path) -> None:
    folder = create(tmp_path / "run")
    for step in (1, 2, 3):
        folder.log_metrics("train", step, {"loss": 0.5 * step})
    folder.log_metrics("eval", 3, {"accuracy": 1.0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [line["loss"] for line in folder.metrics("train")] == [0.5, 1.0, 1.5]
    folder.forget_metrics_after(2)
    folder.log_metrics("train", 3, {"loss": 9.0})
    assert [(line["kind"], line["step"]) for line in folder.metrics()] == [("train", 1), ("train", 2), ("train", 3)]


def test_metrics_damaged_line_raises(tmp_path: Path) -> None:
    folder = create(tmp_path / "run")
    (folder.path / "metrics.jsonl").write_text("\0\0\0\n")
    for read in (folder.metrics, lambda: folder.forget_metrics_after(1)):
        with raises(RunError, "metrics.jsonl:1"):
            read()


def test_list_runs_is_newest_first(tmp_path: Path) -> None:
    for name, started in (("old", "2020"), ("new", "2030")):
        create(tmp_path / name).update(started=started)
    (tmp_path / "other").mkdir()
    assert [run.path.name for run in list_runs(tmp_path)] == ["new", "old"]
    with raises(RunError, "run folder"):
        RunFolder.open(tmp_path / "other")
