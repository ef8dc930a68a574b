"""Monitor: what is drawn, when it is redrawn, and what the buttons may do. Without a server, on files of a run."""

import json
import os
import time
from pathlib import Path

import gradio as gr
import pytest
from failures import raises

from workbench.analysis.run_columns import span
from workbench.app.components import TRACES
from workbench.app.context import AppContext
from workbench.app.status import status_html
from workbench.app.tabs import training
from workbench.app.tabs.training import (
    answers_of_step,
    csv_of_charts,
    poll,
    question_picker,
    resume_selected,
    stop_selected,
    update,
)
from workbench.errors import RunError
from workbench.runs.jobs import JobState

SKIP = {"__type__": "update"}
STATUS, STOP, KILL, RESUME, MORE, TIMER, RUNS, LOG, SEEN, QUESTION, ANSWERS, HEADLINES, METRICS, CHARTS = range(14)


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    return AppContext(tmp_path / "runs", tmp_path)


def a_run(context: AppContext, name: str = "one", steps_done: int = 3, **facts: object) -> Path:
    """A run folder as training leaves it: three steps of metrics, two evaluations, no traces."""
    folder = context.runs_dir / name
    (folder / "evals").mkdir(parents=True)
    (folder / "config.yaml").write_text("method: {name: dopd}\ntraining: {steps: 9}\n")
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    facts = {"status": "finished", "method": "dopd", "started": now, "updated": now, "steps": 9, **facts}
    (folder / "run.json").write_text(json.dumps({"steps_done": steps_done, **facts}))
    for step in range(1, steps_done + 1):
        add_step(folder, step)
    for step, text in ((0, "first <b>"), (9, "later")):
        row = {
            "step": step,
            "policy": "student",
            "context": "plain",
            "example_id": "scene-1",
            "domain": "",
            "visibility": None,
            "answer": "4",
            "text": text,
            "reward": float(step > 0),
            "confidence": 0.5,
            "length": 3,
            "finished": True,
        }
        row |= {"question": "How many?"} if step else {}  # step 0: as an older version wrote it
        (folder / "evals" / f"step-{step:06d}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "train.log").write_text("hello\n")
    return folder


def add_step(folder: Path, step: int) -> None:
    line = {"kind": "train", "step": step, "loss": 1.0 / step, "entropy": 0.5, "learning_rate": 0.1, "accuracy": 0.5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def look(context: AppContext, seen: str = "", run: str = "one", theme: str = "light", **how: bool) -> list:
    result = list(update(context, run, theme, seen, None, **how))
    assert len(result) == 15
    return result


def charts(result: list) -> dict[str, dict]:
    """The figures by name; of charts that were not redrawn an error."""
    groups = json.loads(result[CHARTS])["groups"]
    return {item["name"]: item["figure"] for group in groups for item in group["figures"]}


def test_update_finished_run_draws_curves_and_log(context: AppContext) -> None:
    a_run(context)
    result = look(context, redraw_all=True)
    assert "3 of 9" in result[STATUS] and "finished" in result[STATUS] and result[LOG].strip() == "hello"
    drawn = charts(result)
    assert drawn["loss"]["data"][0]["y"] == [1.0, 0.5, 1 / 3]
    assert {"accuracy", "entropy", "learning-rate"} <= drawn.keys() and "seconds" not in drawn
    assert "Seconds per part of a step" in json.loads(result[CHARTS])["notes"][-1], "what is not drawn is named"
    assert "No tokens are recorded" in drawn["token-share"]["layout"]["annotations"][0]["text"]
    assert "Accuracy" in result[HEADLINES] and ("loss", "loss") in result[METRICS].choices
    assert not result[TIMER].active
    assert result[QUESTION].value == "scene-1" and "later" in result[ANSWERS]


def test_update_run_with_peer_draws_own_curve(context: AppContext) -> None:
    folder = a_run(context)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "loss": 0.25, "ann/loss": 0.75, "ann/entropy": 0.5}\n')
    drawn = charts(look(context))
    assert [trace["name"] for trace in drawn["loss"]["data"][:2]] == ["loss", "ann: loss"]
    assert drawn["loss"]["data"][1]["y"] == [0.75]
    assert "ann: entropy" in [trace["name"] for trace in drawn["entropy"]["data"]]


def test_update_unreadable_traces_still_draw_curves(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TRACES.close()
    monkeypatch.setattr("workbench.traces.schema.READABLE", (98, 99))
    result = look(AppContext(runs, runs), run="dopd", redraw_all=True)
    drawn = charts(result)
    assert len(drawn["loss"]["data"][0]["y"]) == 4 and "has trace version" in result[ANSWERS]
    for name in ("token-share", "gaps-by-visibility"):
        assert "has trace version" in drawn[name]["layout"]["annotations"][0]["text"].replace("<br>", " ")


def test_update_nothing_changed_skips_figures(context: AppContext) -> None:
    folder = a_run(context)
    seen = look(context)[SEEN]
    again = look(context, seen)
    assert again[CHARTS] == SKIP and again[HEADLINES] == SKIP and again[LOG] == SKIP and again[RUNS] == SKIP
    add_step(folder, 4)
    newer = look(context, again[SEEN])
    assert len(charts(newer)["loss"]["data"][0]["y"]) == 4
    assert newer[METRICS] == SKIP, "the user may be choosing"


def test_update_running_run_waits_between_redraws(context: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = a_run(context, status="running", pid=os.getpid())
    result = look(context)
    assert result[TIMER].active and result[STOP].interactive and not result[RESUME].interactive
    add_step(folder, 4)
    soon = look(context, result[SEEN])
    assert soon[CHARTS] == SKIP, "it was drawn a moment ago"
    assert json.loads(soon[SEEN])["next"] >= time.time() + training.MIN_REDRAW_S - 2
    now = time.time()
    monkeypatch.setattr(training.time, "time", lambda: now + 3600)
    assert charts(look(context, soon[SEEN]))["loss"]["data"]


def test_poll_between_redraws_returns_status_and_log(context: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = a_run(context, status="running", pid=os.getpid())
    seen = look(context)[SEEN]
    status, log, heard, more = poll(context, "one", "light", seen, "")
    assert "running" in status and log.strip() == "hello" and more == SKIP
    add_step(folder, 4)
    assert poll(context, "one", "light", seen, heard)[1:] == (SKIP, heard, SKIP), "curves are not due"
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(training.time, "time", lambda: now + 3600)
        assert poll(context, "one", "light", seen, heard)[3] == str(now + 3600)
        assert poll(context, "one", "light", seen, heard, "answers")[3] == SKIP, "behind another tab nothing is drawn"
    (folder / "run.json").write_text(
        json.dumps({**json.loads((folder / "run.json").read_text()), "status": "finished"})
    )
    assert poll(context, "one", "light", seen, heard)[3] != SKIP, "it has ended"
    assert poll(context, "gone", "light", seen, heard)[3] != SKIP, "it was deleted"


def test_update_other_run_theme_or_tab_redraws_at_once(context: AppContext) -> None:
    a_run(context)
    a_run(context, "two")
    seen = look(context)[SEEN]
    for changed in ({"run": "two"}, {"theme": "dark"}, {"redraw_all": True}):
        assert charts(look(context, seen, **changed))["loss"]["data"]
    for foreign in ("no json", "[1]"):
        assert charts(look(context, foreign))["loss"]["data"]


def test_update_run_ended_refreshes_list_of_runs(context: AppContext) -> None:
    folder = a_run(context, status="running", pid=os.getpid())
    seen = look(context)[SEEN]
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "finished"}))
    result = look(context, seen)
    assert 'data-run="one"' in result[RUNS] and "finished</i>" in result[RUNS]
    assert not result[TIMER].active


def test_update_no_run_or_deleted_run_shows_remedy(context: AppContext) -> None:
    assert "Start one in Runs, New run" in look(context, run="")[STATUS]
    gone = look(context, run="gone")
    assert "may have been deleted" in gone[STATUS] and not gone[TIMER].active and gone[CHARTS] == ""
    assert "plain folder name" in look(context, run="../x")[STATUS]


def test_update_torn_metrics_line_is_named_in_charts(context: AppContext) -> None:
    folder = a_run(context)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{torn\n")
    result = look(context)
    assert "metrics.jsonl:4 is not a line of metrics" in json.loads(result[CHARTS])["notes"][0]
    assert "metrics.jsonl:4" in result[HEADLINES]


def test_update_ticked_runs_share_charts(context: AppContext) -> None:
    a_run(context)
    a_run(context, "two", 2)
    result = look(context, redraw_all=True, address={"with": "two,gone", "metrics": "loss,entropy", "smooth": "0.5"})
    value = json.loads(result[CHARTS])
    assert [item["name"] for item in value["series"]] == ["one", "two"]
    assert any("gone is not drawn" in text for text in value["notes"])
    drawn = charts(result)
    assert drawn.keys() == {"loss", "entropy"} and result[METRICS].value == ["loss", "entropy"]
    curves = [trace for trace in drawn["loss"]["data"] if trace["meta"].get("curve")]
    assert [trace["y"][1] for trace in curves] == pytest.approx([(0.25 * 1 + 0.5 * 0.5) / 0.75] * 2)
    assert result[HEADLINES].count("<tr>") == 3
    assert (
        "smoothing" in json.loads(look(context, redraw_all=True, address={"smooth": "2"})[CHARTS])["notes"][0].lower()
    )


def test_update_seeds_as_mean_draw_accuracy_of_all(context: AppContext) -> None:
    for seed, (name, last) in enumerate((("one", 0.8), ("two", 0.4))):
        folder = a_run(context, name)
        (folder / "config.yaml").write_text(f"seed: {seed}\nmethod: {{name: dopd}}\n")
        with (folder / "metrics.jsonl").open("a") as file:
            for step, value in ((0, 0.2), (9, last)):
                file.write(json.dumps({"kind": "eval", "step": step, "accuracy/student/plain/visible": value}) + "\n")
    drawn = charts(look(context, redraw_all=True, address={"with": "two", "seeds": "range"}))
    [curve] = [trace for trace in drawn["eval-accuracy"]["data"] if trace["meta"].get("curve")]
    assert list(curve["y"]) == pytest.approx([0.2, 0.6])


def test_update_lives_while_any_ticked_run_does(context: AppContext) -> None:
    a_run(context)
    other = a_run(context, "two", status="running", pid=os.getpid())
    result = look(context, address={"with": "two"})
    assert result[TIMER].active and not result[STOP].interactive
    add_step(other, 4)
    later = {**json.loads(result[SEEN]), "next": 0.0}
    assert charts(look(context, json.dumps(later), address={"with": "two"}))


def test_first_draw_reads_choices_of_address(context: AppContext) -> None:
    a_run(context)
    *_, axis, log, smoothing, split, seeds = training.first_draw(
        context, "one", {"x": "tokens", "log": "1", "smooth": "0.25", "by": "domain", "seeds": "range", "with": "two"}
    )
    assert (axis, log, smoothing, split, seeds.value, seeds.visible) == ("tokens", True, 0.25, "domain", "range", True)
    *_, axis, log, smoothing, split, seeds = training.first_draw(context, "one", {"x": "weeks", "smooth": "much"})
    assert (axis, log, smoothing, split, seeds.value, seeds.visible) == ("step", False, 0.0, "", "separate", False)


def test_csv_of_charts_holds_every_value(context: AppContext) -> None:
    a_run(context)
    rows = csv_of_charts(context, "one", {"metrics": "loss"}).splitlines()
    assert rows[0] == "run,metric,step,value,smoothed,low,high,seeds"
    assert rows[1:] == ["one,loss,1,1.0,1.0,,,1", "one,loss,2,0.5,0.5,,,1", f"one,loss,3,{1 / 3},{1 / 3},,,1"]
    assert csv_of_charts(context, "one", {"metrics": "loss", "x": "tokens"}).splitlines() == [
        "run,metric,step,answer tokens trained on,value,smoothed,low,high,seeds"
    ], "this run recorded no tokens"


def test_answers_of_step_opens_nearest_recorded_step(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []
    monkeypatch.setattr(training.gr, "Info", messages.append)
    context = AppContext(runs, runs)
    address = {"with": "opd", "regime": "HS", "smooth": "0.5"}
    assert answers_of_step(context, "dopd", address, 3) == {"with": "opd", "smooth": "0.5", "at_step": "3"}
    assert not messages
    assert answers_of_step(context, "dopd", address, 0)["at_step"] == "1" and "step 0" in messages[0]


def test_update_truncated_run_json_is_named(context: AppContext) -> None:
    folder = a_run(context)
    (folder / "run.json").write_text("{")
    assert "run.json cannot be read: truncated or damaged" in look(context)[STATUS]


def test_status_html_failed_run_escapes_error() -> None:
    state = JobState(
        "x<y",
        Path("runs/x"),
        "failed",
        "dopd",
        step=3,
        steps=10,
        error="step 3: <b> is not finite",
        warnings=("careful",),
        skipped={"no boxes": 4},
        command=("python", "-m", "workbench", "train", "a b.yaml"),
    )
    html = status_html(state)
    assert "step 3: &lt;b&gt; is not finite" in html and "x&lt;y" in html and "<b>" not in html
    assert "careful" in html and "no boxes: 4" in html and "workbench train &#x27;a b.yaml&#x27;" in html
    assert 'aria-valuenow="30"' in html


def test_status_html_run_from_page_shows_typable_command(tmp_path: Path) -> None:
    started = ("python", "-m", "workbench", "train", str(tmp_path / "runs" / ".jobs" / "one" / "config.yaml"))
    state = JobState("study/one", tmp_path / "runs" / "one", "running", command=started)
    output = status_html(state)
    assert ".jobs" not in output and f"workbench train {tmp_path}/runs/one/config.yaml name=one-again" in output


@pytest.mark.parametrize(
    ("seconds", "output"),
    [(None, "–"), (0, "0 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h"), (10**6, "12 days")],
)
def test_span_seconds_formats_for_people(seconds: float | None, output: str) -> None:
    assert span(seconds) == output


def test_update_stopped_run_enables_only_resume(context: AppContext) -> None:
    a_run(context, status="stopped")
    result = look(context)
    assert not result[STOP].interactive and result[RESUME].interactive and not result[KILL].visible
    assert result[MORE].visible
    locked = AppContext(context.runs_dir, context.configs_dir, read_only=True)
    assert not look(locked)[RESUME].interactive


def test_stop_and_resume_impossible_raise(context: AppContext) -> None:
    a_run(context)
    with raises(RunError, "stopped"):
        stop_selected(context, "one")
    with raises(RunError, "finished"):
        resume_selected(context, "one", "")
    locked = AppContext(context.runs_dir, context.configs_dir, read_only=True)
    for act in (lambda: stop_selected(locked, "one"), lambda: resume_selected(locked, "one", "")):
        with raises(RunError, "read-only"):
            act()


def test_question_picker_answers_are_in_step_order(context: AppContext) -> None:
    a_run(context)
    picker, html = question_picker(context.run_dir("one"), None, None)
    assert isinstance(picker, gr.Dropdown) and picker.value == "scene-1"
    assert picker.choices[0][0] == "scene-1  ·  2 answers  How many?"
    assert html.index("first &lt;b&gt;") < html.index("later") and "incorrect" in html and "evaluation, plain" in html
    assert question_picker(context.run_dir("one"), None, "scene-1")[0].value == "scene-1"


def test_question_picker_no_answers_shows_message(context: AppContext) -> None:
    folder = a_run(context)
    for file in (folder / "evals").iterdir():
        file.unlink()
    picker, html = question_picker(context.run_dir("one"), None, None)
    assert picker.value is None and "No answers yet" in html
