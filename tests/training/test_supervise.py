"""training.supervise and data.privileged_template in runs: traces, metrics, warnings, prompts and check."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from small import run_config

from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.check import check_config
from workbench.training.prompts import render_prompts
from workbench.training.run import train

TOKENS = "SELECT rollout_idx, token_text, regime, weight, loss FROM tokens ORDER BY step, rollout_idx, position"


def test_train_supervises_answer_after_marker_alone(models: dict, tmp_path: Path) -> None:
    """The marker is a letter that answers of random models contain: up to it is thinking, as if a prompt opened it."""
    values = {"training__supervise": "answer", "training__think_markers": ["<think>", "e"], "trace__probes": 0}
    values |= {"sampling__max_completion_length": 16, "training__steps": 1, "data__eval": None}
    config = run_config(models, tmp_path, **values)
    train(config)
    traces = open_traces(config.run_dir)
    rows = traces.sql(TOKENS).to_pylist()
    assert "outside" in traces.regimes
    by_rollout: dict[int, list[dict]] = {}
    for row in rows:
        by_rollout.setdefault(row["rollout_idx"], []).append(row)
    seen = 0
    for tokens in by_rollout.values():
        ends = [idx for idx, row in enumerate(tokens) if "e" in row["token_text"]]
        seen += bool(ends)
        for idx, row in enumerate(tokens):
            is_outside = bool(ends) and idx <= ends[0]
            assert (row["regime"] == "outside") == is_outside
            assert not is_outside or (row["weight"], row["loss"]) == (0.0, 0.0)
    (metrics,) = RunFolder.open(config.run_dir).metrics("train")
    assert metrics["thinking"] == pytest.approx(seen / len(by_rollout))
    assert 0 < metrics["share/outside"] < 1 and metrics["supervised"] <= 1 - metrics["share/outside"] + 1e-9


def test_train_truncated_thinking_is_no_answer(models: dict, tmp_path: Path) -> None:
    """The template opens thinking, which no answer of a random model closes."""
    folders = {name: shutil.copytree(path, tmp_path / name) for name, path in models.items()}
    for folder in folders.values():
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text() + "{% if add_generation_prompt %}<think>{% endif %}")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Which?", "answer": "e"}) + "\n")  # a frequent letter
    values = {
        "method": {"name": "opd"},
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl")},
        "training__supervise": "answer",
        "training__steps": 1,
        "training__batch_size": 1,
        "trace__probes": 0,
        "evaluation__grader": "contains",
        "evaluation__contexts": ["plain"],
    }
    config = run_config(folders, tmp_path, **values)
    train(config)
    folder = RunFolder.open(config.run_dir)
    (metrics,) = folder.metrics("train")
    names = ("thinking", "unfinished_thinking", "share/outside", "accuracy", "supervised")
    assert [metrics[name] for name in names] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert folder.metrics("eval")[0]["accuracy/student/plain/all"] == 0.0
    row = {check.name: check for check in check_config(config)}["supervised part"]
    assert row.status == "note" and "2 of 2 answers" in row.finding and "2 end inside of it" in row.finding


def test_train_without_markers_in_answers_warns(models: dict, tmp_path: Path) -> None:
    values = {"training__supervise": "thinking", "data__eval": None, "trace__probes": 0}
    config = run_config(models, tmp_path, **values)
    result = train(config)
    assert any("training.think_markers" in warning for warning in result.warnings)
    assert RunFolder.open(config.run_dir).metrics("train")[0]["supervised"] == 0.0
    row = {check.name: check for check in check_config(config)}["supervised part"]
    assert row.status == "note" and "0 of 8 answers have thinking (<think> </think>)" in row.finding


def test_prompts_of_privileged_views_follow_template(models: dict, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = {"question": "What color?", "images": ["a.png"], "answer": "red", "hint": "the door"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    data = {"train": str(tmp_path / "rows.jsonl"), "privileged_template": "Know {evidence}. {question}"}
    config = run_config(models, tmp_path, method={"name": "dopd", "privilege": "hint"}, data=data)
    ((_, prompts),) = render_prompts(config)
    texts = {prompt.view: prompt.text for prompt in prompts}
    assert "Know hint: the door. What color?<end_of_utterance>" in texts["teacher"]
    assert texts["self"] == texts["teacher"] and "Know" not in texts["student"]
