"""Characters that str.splitlines takes for ends of lines, wherever people and models write text."""

import json
from pathlib import Path

import pytest
from PIL import Image
from small import answered, run_config

from workbench.app.form import check_table
from workbench.app.tabs.data import parse_boxes
from workbench.cli import main
from workbench.distill.usable import Problem
from workbench.evals.records import load_records, save_records
from workbench.files.jsonlines import split_lines
from workbench.runs.folder import RunFolder
from workbench.training.filter import SkippedExamples
from workbench.training.run import train
from workbench.types import Example

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


def test_split_lines_ends_at_newline_only() -> None:
    for separator in SEPARATORS:
        assert len(f"a{separator}b".splitlines()) == 2  # what this is about
        assert split_lines(f"a{separator}b\nc\n") == [f"a{separator}b", "c"]
    assert (split_lines(""), split_lines("\n"), split_lines("a"), split_lines("a\n\nb")) == (
        [],
        [""],
        ["a"],
        ["a", "", "b"],
    )


def test_stored_records_hold_any_character(tmp_path: Path) -> None:
    text = f"a{SEPARATORS}b"
    rows = answered((1.0, 0.5), (0.0, 0.5), text=text, question=text, answer=text, domain=text)
    save_records(tmp_path, 1, rows)
    assert load_records(tmp_path) == rows
    folder = RunFolder.create(tmp_path / "run", "name: run\n", seed=0, method="opd")
    folder.log_metrics("train", 1, {"loss": 0.5, text: 1.0})
    assert folder.metrics("train") == [{"kind": "train", "step": 1, "loss": 0.5, text: 1.0}]
    folder.forget_metrics_after(1)
    assert len(folder.metrics()) == 1
    # as another tool may write it: characters as they are, not escaped
    (folder.path / "sequences.jsonl").write_text('{"text": "a\u2028b"}\n{"text": "c\x85"}\n', "utf-8")
    assert folder.sequences() == [{"text": "a\u2028b"}, {"text": "c\x85"}]
    (folder.path / "skipped.jsonl").write_text(
        '{"example": "1\u2029", "reason": "r\x85", "message": "m"}\n{"exa', "utf-8"
    )
    skipped = SkippedExamples(folder)
    assert skipped.counts == {"r\x85": 1}
    skipped.add(Example(text, "?", origin=text), Problem(text, text))
    assert SkippedExamples(folder).counts == {"r\x85": 1, text: 1}


def test_page_inputs_are_split_at_newlines_only() -> None:
    (box,) = parse_boxes("1 2 3 4 a\u2028b", (10, 10))
    assert box.label == "a\u2028b"
    printed = "  check  found\n  ─────  ─────\n  a      b\u2028c\n"
    assert check_table(printed) == [("a", "b\u2028c")]


def test_run_with_line_separators_is_trained_and_exported(
    models: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (48, 48), (200, 30, 30)).save(tmp_path / "a.png")
    rows = [
        {
            "id": f"row{mark}{number}",
            "question": f"Color?{mark}Name it.",
            "images": ["a.png"],
            "answer": f"red{mark}ish",
            "reference": f"red{mark}. answer: red",
            "domain": f"d{mark}",
            "hint": f"left{mark}",
        }
        for number, mark in enumerate(SEPARATORS)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    values = {"training__steps": 2, "evaluation__contexts": ["plain"], "evaluation__max_examples": 0}
    for method in ({"name": "opd"}, {"name": "lm_kd"}, {"name": "dopd", "privilege": "hint"}):
        config = run_config(
            models,
            tmp_path / "runs",
            name=method["name"],
            method=method,
            data={"train": str(data), "eval": str(data)},
            **values,
        )
        assert train(config).skipped == {}
        matches = [row for row in load_records(config.run_dir) if row.step == 2]
        assert [row.question for row in matches] == [row["question"] for row in rows]
        run = str(config.run_dir)
        assert main(["summary", run]) == 0 and main(["resume", run]) == 0
        assert main(["show", run, "--step", "1"]) == 0
        assert main(["eval", run, "--max-examples", "2"]) == 0
        assert main(["report", run, "--out", str(tmp_path / "report.html")]) == 0
        assert main(["export", run, "--to", str(tmp_path / f"exported-{method['name']}")]) == 0
        assert "cannot be read" not in "".join(capsys.readouterr())
