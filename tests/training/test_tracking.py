"""Tables of answers in experiment trackers."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from small import run_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from workbench.evals.records import EvalRecord
from workbench.training.tracking import ANSWERS, COLUMNS, build_accelerator, log_answers


def records(count: int) -> list[EvalRecord]:
    return [
        EvalRecord(
            step=4,
            policy=policy,
            context="plain",
            example_id=f"{idx}",
            domain="",
            visibility=None,
            answer="3",
            text=f"a | b\nanswer {idx}",
            reward=float(idx % 2),
            confidence=0.12345,
            length=4,
            finished=True,
            question=f"question {idx}",
        )
        for policy in ("student", "teacher")
        for idx in range(count)
    ]


def tracked(models: dict, tmp_path: Path, tracker: str) -> Accelerator:
    config = run_config(models, tmp_path, training__report_to=[tracker])
    accelerator = build_accelerator(config, tmp_path)
    log_answers(accelerator, records(ANSWERS + 3), 4)
    log_answers(accelerator, [], 5)  # no evaluation, no table
    for each in accelerator.trackers:
        each.finish()
    return accelerator


def test_tensorboard_has_first_answers_of_each_policy(tmp_path: Path) -> None:
    tracked({"student": "s", "teacher": "t"}, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "workbench")).Reload()
    (tag,) = [tag for tag in events.Tags()["tensors"] if "evaluation/answers" in tag]
    (event,) = events.Tensors(tag)
    header, _, first, *others = event.tensor_proto.string_val[0].decode().split("\n")
    assert event.step == 4 and header == f"| {' | '.join(COLUMNS)} |"
    assert first == "| student | plain | question 0 | 3 | a \\| b answer 0 | 0.0 | 0.123 |"
    assert len(others) == 2 * ANSWERS - 1 and others[-1].startswith(f"| teacher | plain | question {ANSWERS - 1} |")


def test_wandb_has_first_answers_as_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracked({"student": "s", "teacher": "t"}, tmp_path, "wandb")
    (file,) = tmp_path.rglob("answers_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(COLUMNS) and len(table["data"]) == 2 * ANSWERS
    assert table["data"][0] == ["student", "plain", "question 0", "3", "a | b\nanswer 0", 0.0, 0.123]
