"""Score rollouts in the page: the form is the command, a mistake is a sentence, and a scored run opens."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from failures import raises

from workbench.app.context import AppContext
from workbench.app.tabs.score import command_of, fill, preview, score
from workbench.cli import main
from workbench.errors import ConfigError, RunError
from workbench.traces.reader import open_traces

DATA = "scenes:eval?count=3"


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    (tmp_path / "runs").mkdir()
    return AppContext(tmp_path / "runs", tmp_path)


@pytest.fixture
def form(models: dict, tmp_path: Path) -> dict:
    rows = [{"id": f"scenes:eval:0:{idx}", "completion": text, "step": 1} for idx, text in enumerate(("red", "3"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    student, teacher = (str(models[name]) for name in ("student", "teacher"))
    entered = {"rollouts": str(tmp_path / "rows.jsonl"), "data": DATA, "student": student, "teacher": teacher}
    return {**entered, "method": "dopd", "privilege": "crop", "name": "scored", "skipped": 0}


def test_command_has_the_fields_that_are_filled_in(context: AppContext, form: dict) -> None:
    words = command_of(context, *form.values())
    assert words[:3] == ["workbench", "score", form["rollouts"]]
    assert dict(zip(words[3::2], words[4::2], strict=True)) == {
        **{"--data": DATA, "--student": form["student"], "--teacher": form["teacher"], "--method": "dopd"},
        **{"--privilege": "crop", "--to": str(context.runs_dir / "scored")},
    }
    without_teacher = command_of(context, *{**form, "method": "opsd", "privilege": "", "skipped": 2}.values())
    assert "--teacher" not in without_teacher and "--privilege" not in without_teacher
    assert without_teacher[-2:] == ["--max-skipped", "2"]
    assert shlex.split(preview(context, *form.values())[0]) == words
    assert preview(context, "", "", "", "", "dopd", "", "scored", 0) == ("",), "an empty form has no error"


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("rollouts", " ", ["rollouts", ".parquet"]),
        ("student", "", ["student"]),
        ("name", "../x", ["../x", "folder name"]),
    ],
)
def test_command_of_wrong_field_raises(context: AppContext, form: dict, key: str, value: str, names: list) -> None:
    with raises(ConfigError, *names):
        command_of(context, *{**form, key: value}.values())


def test_score_leaves_a_run_and_opens_its_answers(
    context: AppContext, form: dict, capsys: pytest.CaptureFixture
) -> None:
    """The image of the small models is not to be reduced, so their commands take no further option."""
    assert score(context, *form.values()) == ("", "scored", {}, "answers")
    traces = open_traces(context.runs_dir / "scored")
    texts = traces.sql("SELECT completion FROM rollouts ORDER BY rollout_idx").to_pydict()["completion"]
    assert texts == ["red", "3"] and main(["summary", str(context.runs_dir / "scored")]) == 0
    assert "2 of 2 rollouts" in capsys.readouterr().out
    with raises(ConfigError, "scored"):
        score(context, *form.values())
    row = {"prompt": "what color is it?", "completion": "red"}  # with neither image nor evidence
    Path(form["rollouts"]).write_text(2 * f"{json.dumps(row)}\n")
    with raises(ConfigError, "2 of 2 rows", "no boxes", "rows.jsonl:1", 'plain in the field "Privileged context"'):
        score(context, *{**form, "data": "", "name": "other"}.values())
    assert not (context.runs_dir / "other").exists()


def test_fill_takes_models_of_the_shown_run_for_empty_fields(context: AppContext) -> None:
    folder = context.runs_dir / "scored"
    folder.mkdir()
    (folder / "config.yaml").write_text("models: {student: a, teacher: {path: b}}\n")
    (folder / "run.json").write_text('{"status": "finished"}')
    student, teacher, name = fill(context, "scored", "", "", "scored")
    assert (student, name) == ("a", "scored-2") and teacher == gr.skip(), "a teacher of several keys is left out"
    assert fill(context, "scored", "mine", "", "free")[0] == gr.skip() == fill(context, None, "", "", "free")[0]


def test_score_read_only_raises(context: AppContext, form: dict) -> None:
    with raises(RunError, "read-only"):
        score(replace(context, read_only=True), *form.values())
