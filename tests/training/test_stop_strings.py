"""sampling.stop_strings in a run: the trace names what ended each answer; a diffusion student is refused."""

from pathlib import Path

import pytest
from failures import raises
from small import run_config

from workbench.errors import ConfigError
from workbench.evals.records import load_records
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.learner import build_learner
from workbench.training.run import train

ROWS = "SELECT completion, finished, finish_reason, num_positions FROM rollouts ORDER BY step, rollout_idx"


def test_train_records_stop_string_as_finish_reason(models: dict, tmp_path: Path) -> None:
    letters = list("aeiou")  # some of them is in nearly every answer of a random model
    values = {"training__steps": 2, "sampling__stop_strings": letters, "sampling__max_completion_length": 12}
    config = run_config(models, tmp_path, **values)
    train(config)
    rows = open_traces(config.run_dir).sql(ROWS).to_pylist()
    stopped = [row for row in rows if row["finish_reason"] == "stop_string"]
    assert stopped and all(row["finished"] and set(letters) & set(row["completion"]) for row in stopped)
    for row in rows:
        assert (row["finish_reason"] == "length") == (not row["finished"])
        assert row["finish_reason"] != "length" or row["num_positions"] == 12
    records = load_records(config.run_dir)
    assert any(row.finished and set(letters) & set(row.text) for row in records)
    truncated = RunFolder.open(config.run_dir).metrics("train")[0]["truncated"]
    assert truncated == pytest.approx(sum(not row["finished"] for row in rows[:6]) / 6)


def test_diffusion_student_with_stop_strings_raises(tmp_path: Path) -> None:
    student = {"student": "data/models/diffusion", "teacher": "data/models/teacher"}
    values = {"method": {"name": "d_opsd"}, "sampling__stop_strings": ["."]}
    config = run_config(student, tmp_path, models={"student": student["student"]}, **values)
    with raises(ConfigError, "sampling.stop_strings"):
        build_learner(config, config.load_method())
