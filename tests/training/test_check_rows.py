"""Unusable rows: `check` lists them, `eval` leaves them out, and both count and name them, as training does."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from failures import raises
from PIL import Image
from small import run_config

import workbench.data.images
import workbench.training.check_rows
from workbench.cli import main
from workbench.data.examples import load_examples
from workbench.distill.usable import Tally, filter_encodable
from workbench.errors import DataError
from workbench.evals.records import load_records
from workbench.policies.loading import load_policies
from workbench.training.check import check_config
from workbench.training.check_rows import split_rows
from workbench.training.run import train
from workbench.training.scorer import evaluate

BAD = {
    "torn": ({"images": ["torn.png"]}, "image cannot be read", "torn.png cannot be read"),
    "huge": (
        {"images": ["huge.png"]},
        "image cannot be read",
        "huge.png has 81,?000 x 1,?000 pixels|huge.png has far more",
    ),
    "mark": ({"question": "What?<end_of_utterance>"}, 'special token in "question"', 'column "question"'),
    "long": ({"question": "why " * 3000}, "prompt is too long", r"has \d+ tokens"),
}


def write(folder: Path, *rows: dict) -> Path:
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "a.png")
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:300])
    if not (folder / "huge.png").exists():
        Image.new("1", (81_000, 1_000)).save(folder / "huge.png")
    whole = [{"question": f"Color {n}?", "images": ["a.png"], "answer": "green", **row} for n, row in enumerate(rows)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    return folder / "data.jsonl"


def test_max_prompt_length_longer_prompts_are_skipped_and_counted(models: dict, tmp_path: Path) -> None:
    """The question of 40 words has at least 40 tokens more than the others."""
    data = {"train": str(write(tmp_path, {"question": "why " * 40}, {}, {})), "eval": None}
    config = run_config(models, tmp_path, method={"name": "opd"}, data={**data, "max_prompt_length": 45})
    checks = {item.name: item for item in check_config(config)}
    assert "1 of 3 are skipped (prompt is too long: 1; checked all 3)" in checks["rows of data.train"].finding
    assert "of 45 allowed" in checks["completion in view student (student / plain)"].finding
    assert train(config).skipped == {"prompt is too long": 1}


@pytest.mark.parametrize("kind", BAD)
def test_check_unusable_row_is_a_note(kind: str, models: dict, tmp_path: Path) -> None:
    row, reason, says = BAD[kind]
    data = str(write(tmp_path, row, {}, {}))
    config = run_config(models, tmp_path, method={"name": "opd"}, data={"train": data, "eval": data})
    checks = {item.name: item for item in check_config(config)}
    for name in ("rows of data.train", "rows of data.eval"):
        assert checks[name].status == "note"
        assert f"1 of 3 are skipped ({reason}: 1; checked all 3); first: {data}:1: " in checks[name].finding
        assert re.search(says, checks[name].finding)
    assert checks["answers"].finding.split()[2] == "4"  # two answers to each of the two others
    assert all(check.status != "WRONG" for check in checks.values())
    assert train(config).skipped == {reason: 1}


def test_check_covers_all_rows_or_states_time_limit(models: dict, tmp_path: Path) -> None:
    policies = load_policies(["student"], student=models["student"], teacher=None, max_completion_length=8)
    examples = load_examples(write(tmp_path, *[{}] * 20, BAD["torn"][0], {"question": "a<image>"}))
    views = [(policies["student"], "plain")]
    rows = split_rows(examples, views)
    assert (len(rows.usable), [entry.id for entry, _ in rows.skipped], rows.num_tried) == (20, ["21", "22"], 22)
    rows = split_rows(examples, views, seconds=0.0)
    assert (len(rows.usable), [item.id for item, _ in rows.skipped], rows.num_tried) == (21, ["22"], 1)


def test_check_samples_for_rows_that_it_encoded(models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first rows are too long and take all of its time."""
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 9.0).__next__)
    monkeypatch.setattr(workbench.training.check_rows, "time", clock)
    data = str(write(tmp_path, *[BAD["long"][0]] * 3, {}, *[BAD["long"][0]] * 9))
    config = run_config(models, tmp_path, method={"name": "opd"}, data={"train": data})
    checks = {item.name: item for item in check_config(config)}
    assert checks["answers"].finding.split()[2] == "2"  # to one question
    assert "5 of 13 are skipped" in checks["rows of data.train"].finding
    assert "the first 6 of 13" in checks["rows of data.train"].finding
    data = str(write(tmp_path, *[BAD["long"][0]] * 9, {}))
    with raises(DataError, "prompt is too long: 6", "the first 6 of 10"):
        check_config(run_config(models, tmp_path, method={"name": "opd"}, data={"train": data}))


def test_check_counts_changed_images(models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.data.images, "CHANGED", {})
    for name in ("b.png", "c.png"):
        Image.new("RGBA", (40, 40), (0, 0, 0, 9)).save(tmp_path / name)
    data = str(write(tmp_path, {"images": ["b.png"]}, {"images": ["c.png"]}, {"images": ["b.png"]}))
    checks = check_config(run_config(models, tmp_path, method={"name": "opd"}, data={"train": data}))
    (line,) = [check for check in checks if check.name == "pictures"]
    assert line.finding == f"2 opened with transparent pixels, laid on white, for example image {tmp_path / 'b.png'}"


def test_check_without_usable_row_raises_with_reasons(models: dict, tmp_path: Path) -> None:
    data = str(write(tmp_path, BAD["torn"][0], BAD["mark"][0]))
    with raises(DataError, "2 of 2", "image cannot be read: 1"):
        check_config(run_config(models, tmp_path, method={"name": "opd"}, data={"train": data}))


def test_eval_leaves_out_unusable_rows_and_names_them(
    models: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [{}] * 5 + [row for row, _, _ in BAD.values()]
    data = str(write(tmp_path, *rows))
    values = {
        "method": {"name": "opd"},
        "training__steps": 1,
        "evaluation__contexts": ["plain"],
        "evaluation__max_examples": 0,
    }
    config = run_config(models, tmp_path, data={"train": data, "eval": data}, **values)
    train(config)
    requested = {row.example_id for row in load_records(config.run_dir) if row.step == 1}
    assert requested == {"1", "2", "3", "4", "5"}
    for path in (config.run_dir, models["student"]):
        capsys.readouterr()
        assert main(["eval", str(path), "--data", data]) == 0
        out = capsys.readouterr().out
        assert "skipped 4 questions without a usable prompt (" in out and f"; the first is {data}:6: " in out
        assert "image cannot be read: 2" in out
    rooms = []
    long = str(write(tmp_path, {}, {"question": "why " * 3000}))
    for path in (config.run_dir, models["student"]):
        tally = Tally()
        evaluate(path, data=long, contexts=["plain"], skipped=tally)
        rooms.append(int(re.search(r"Expected at most (\d+), beside", str(tally))[1]))
    data = str(write(tmp_path, *rows))
    assert rooms == [512 - config.sampling.max_completion_length, 512 - 256]
    tally = Tally()
    assert {row.example_id for row in evaluate(config.run_dir, data=data, skipped=tally)} == requested
    assert tally.counts.total() == 4


def test_filter_encodable_drops_row_for_all_policies(models: dict, tmp_path: Path) -> None:
    policies = load_policies(["student"], student=models["student"], teacher=None, max_completion_length=8)
    examples = load_examples(write(tmp_path, {"hint": "a<image>"}, {}))
    tally = Tally()
    assert len(filter_encodable(examples, policies.values(), ["plain"], tally)) == 2
    assert [item.id for item in filter_encodable(examples, policies.values(), ["plain", "hint"], tally)] == ["2"]
    assert tally.counts == {'special token in "hint"': 1}
