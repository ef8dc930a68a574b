"""Labels, renaming and deletion of runs: files by hand, and processes that live."""

import json
import os
from pathlib import Path

import pytest
from failures import raises
from run_files import write_job, write_run

from workbench.errors import ConfigError, RunError
from workbench.files.parsing import read_yaml
from workbench.runs.folder import RunFolder
from workbench.runs.jobs import find_jobs, read_job
from workbench.runs.labels import MAX_NOTE, MAX_TAGS, Labels, label_run, read_labels
from workbench.runs.manage import delete_run, rename_run, runs_that_use
from workbench.runs.processes import identify


def write_living(runs_dir: Path, name: str) -> Path:
    """A run whose process is this one."""
    pid = os.getpid()
    folder = write_run(runs_dir, name, status="running", pid=pid, updated="2100-01-01T00:00:00+0000")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"process": identify(pid)}))
    assert read_job(folder).is_alive
    return folder


def test_labels_are_kept_beside_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    assert read_labels(folder) == Labels()
    label_run(tmp_path, "a", tags=[" b ", "c", "b", ""])
    label_run(tmp_path, "a", note=" a reason\n")
    label_run(tmp_path, "a", archived=True)
    assert read_labels(folder) == Labels(("b", "c"), "a reason", True)
    assert not (folder / "labels.json").exists() and read_job(folder).status == "finished"


def test_labels_of_a_living_run_can_be_set(tmp_path: Path) -> None:
    folder = write_living(tmp_path, "a")
    label_run(tmp_path, "a", tags=["now"])
    assert read_labels(folder).tags == ("now",)


def test_wrong_labels_change_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    label_run(tmp_path, "a", note="before")
    for wrong in (["a,b"], ["x" * 41], [f"t{idx}" for idx in range(MAX_TAGS + 1)], ["\x1b[2J"]):
        with raises(ConfigError, "tag"):
            label_run(tmp_path, "a", tags=wrong, note="after")
    with raises(ConfigError, "note"):
        label_run(tmp_path, "a", note="x" * (MAX_NOTE + 1))
    assert read_labels(folder) == Labels(note="before")


@pytest.mark.parametrize("name", ["../a", "missing", ".jobs", "a/../../b"])
def test_labels_of_a_run_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    write_run(tmp_path, "a")
    with raises(RunError):
        label_run(tmp_path / "runs", name, note="x")
    assert not list((tmp_path / "runs").iterdir())


def test_renamed_run_has_its_name_in_every_file_and_the_same_state(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", status="stopped", config={"name": "a", "seed": 0})
    job = write_job(tmp_path, "a", "step 1\n")
    (folder / "run.json").touch()
    before = read_job(folder)
    record = json.loads((job / "job.json").read_text())
    (job / "job.json").write_text(json.dumps(record | {"seen_ns": (folder / "run.json").stat().st_mtime_ns}))
    stale = read_job(folder).status
    label_run(tmp_path, "a", tags=["kept"])

    assert rename_run(tmp_path, "a", "b") == "b"

    renamed, moved = tmp_path / "b", tmp_path / ".jobs/b"
    assert [state.name for state in find_jobs(tmp_path)] == ["b"] and not folder.exists() and not job.exists()
    assert read_yaml(renamed / "config.yaml")["name"] == read_yaml(moved / "config.yaml")["name"] == "b"
    facts = json.loads((renamed / "run.json").read_text())
    assert facts["config"] == {"name": "b", "seed": 0} and facts["status"] == "stopped"
    assert json.loads((moved / "job.json").read_text())["command"][-1] == str(moved.resolve() / "config.yaml")
    assert read_job(renamed).status == stale == "failed" != before.status  # its last process never reached run.json
    assert read_labels(renamed).tags == ("kept",)


def test_renamed_run_that_failed_before_its_folder_keeps_its_error(tmp_path: Path) -> None:
    write_job(tmp_path, "a", "ValueError: broken\n")
    rename_run(tmp_path, "a", "b")
    (state,) = find_jobs(tmp_path)
    assert state.name == "b" and state.error == "ValueError: broken"


def test_rename_to_a_taken_or_wrong_name_changes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b")
    write_job(tmp_path, "c", "ValueError: broken\n")
    for taken in ("b", "c", "../x", ".x", "", "d/e"):
        with raises(RunError):
            rename_run(tmp_path, "a", taken)
    assert sorted(state.name for state in find_jobs(tmp_path)) == ["a", "b", "c"]


def test_living_run_is_neither_renamed_nor_deleted(tmp_path: Path) -> None:
    folder = write_living(tmp_path, "a")
    for action in (lambda: rename_run(tmp_path, "a", "b"), lambda: delete_run(tmp_path, "a")):
        with raises(RunError, str(folder), str(os.getpid())):
            action()
    assert folder.is_dir()


def test_run_that_another_process_claims_is_not_deleted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    with RunFolder(folder).claim(), raises(RunError, str(folder)):
        delete_run(tmp_path, "a")
    assert folder.is_dir()


def test_deleted_run_leaves_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [{"kind": "train", "step": 1}])
    write_job(tmp_path, "a")
    write_run(tmp_path, "b")
    label_run(tmp_path, "a", tags=["x"])
    delete_run(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".jobs", "b"]
    assert list((tmp_path / ".jobs").iterdir()) == []
    with raises(RunError):
        delete_run(tmp_path, "a")


def test_half_written_run_can_be_deleted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", [{"kind": "train", "step": 1}])
    (folder / "run.json").unlink()
    delete_run(tmp_path, "a")
    assert not folder.exists()


def test_links_are_not_followed_by_deletion(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    (tmp_path / "b").symlink_to(folder)
    with raises(RunError, "link"):
        delete_run(tmp_path, "b")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/c").symlink_to(folder)
    with raises(RunError, "leads out"):
        delete_run(tmp_path / "runs", "c")
    assert (folder / "run.json").is_file()


def test_run_whose_checkpoint_another_run_names_is_not_renamed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a")
    user = write_run(tmp_path, "b")
    (user / "config.yaml").write_text(f"name: b\nmodels: {{student: {folder}/checkpoint-000009/student}}\n")
    assert runs_that_use(tmp_path, "a") == ["b"] and runs_that_use(tmp_path, "b") == []
    with raises(RunError, "b"):
        rename_run(tmp_path, "a", "c")


def test_study_forgets_a_deleted_run_and_keeps_its_names(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_run(study, "a-0")
    write_run(study, "b-0")
    outcomes = {"a-0": {"status": "finished"}, "b-0": {"status": "finished"}}
    (study / "study.json").write_text(json.dumps({"plan": {"runs": ["a-0", "b-0"]}, "sessions": [], "runs": outcomes}))
    with raises(RunError, "study"):
        rename_run(tmp_path, "study/a-0", "c-0")
    delete_run(tmp_path, "study/a-0")
    facts = json.loads((study / "study.json").read_text())
    assert list(facts["runs"]) == ["b-0"] and facts["plan"]["runs"] == ["a-0", "b-0"]
    assert [state.name for state in find_jobs(tmp_path)] == ["study/b-0"]
