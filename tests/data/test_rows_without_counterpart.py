"""A row of one's own data without wrong evidence: skipped, counted and named wherever it would be shown some."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image
from small import run_config

from workbench.analysis.summary import summarize_run
from workbench.evals.records import load_records
from workbench.runs.folder import RunFolder
from workbench.training.check import check_config
from workbench.training.run import train
from workbench.training.scorer import evaluate_run

REASON = "no wrong crop (of another example of its domain)"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three rows of one family; the only one of another; and two of a third on the same picture and the same box."""
    rows = []
    for number, (domain, answer) in enumerate(zip("aaabcc", "123456", strict=True)):
        picture = f"{min(number, 4)}.png"
        Image.new("RGB", (40, 40), (40 * min(number, 4), 0, 0)).save(tmp_path / picture)
        box = {"x0": 1, "y0": 1, "x1": 20, "y1": 20}
        rows.append({"question": "What?", "images": [picture], "answer": answer, "domain": domain, "boxes": [box]})
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_without_counterpart_are_skipped_and_named(
    models: dict, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"data": {"train": str(data), "eval": str(data)}, "method": {"name": "dopd", "privilege": "wrong_crop"}}
    values["evaluation"] = {"contexts": ["plain", "wrong_crop"]}
    config = run_config(models, tmp_path / "runs", training__steps=1, **values)
    (evidence, *_) = check_config(config)
    assert (evidence.status, evidence.finding) == ("note", f"3 of 6 usable; {data}:4 has {REASON}")

    with caplog.at_level(logging.WARNING):
        result = train(config)
    assert result.skipped == {REASON: 3}
    skipped = [json.loads(line) for line in (result.run_dir / "skipped.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in skipped] == [f"{data}:{row}" for row in (4, 5, 6)]
    sentence = f"context wrong_crop is not evaluated on 3 of 6 questions ({REASON}: 3; the first: {data}:4)"
    assert sentence in caplog.text and RunFolder(result.run_dir).status["unasked"] == [sentence]
    summary = summarize_run(result.run_dir)
    assert f"skipped examples: {REASON}: 3" in summary and f"not evaluated: {sentence}" in summary
    answered = [row for row in load_records(result.run_dir) if (row.step, row.policy) == (1, "student")]
    assert sorted(row.context for row in answered) == ["plain"] * 6 + ["wrong_crop"] * 3

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        answered = evaluate_run(result.run_dir, data=str(data), contexts=["wrong_crop"])
    assert sentence in caplog.text and {row.example_id for row in answered} == {"1", "2", "3"}
