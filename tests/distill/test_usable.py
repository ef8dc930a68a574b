"""Rows that cannot be used: skipped, counted and named, by the same rule wherever examples are shown or learned."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from failures import raises
from PIL import Image
from small import example, run_config

from workbench.config.schema import RunConfig
from workbench.distill.usable import Tally, encoding_problem, lacking, text_problem
from workbench.errors import DataError
from workbench.methods import load_method
from workbench.policies.loading import load_policies
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.run import train
from workbench.types import Box, Evidence, Turn

END = "<end_of_utterance>"  # ends an answer of the built-in models
GOOD = {
    "question": "Color?",
    "images": ["a.png"],
    "answer": "green",
    "reference": "a green square. answer: green",
    "hint": "left",
    "caption": "a square",
}


def configured(models: dict, folder: Path, rows: list[dict], method: dict, **values: object) -> RunConfig:
    Image.new("RGB", (48, 48), (0, 90, 0)).save(folder / "a.png")
    (folder / "data.jsonl").write_text("".join(json.dumps({**GOOD, **row}) + "\n" for row in rows))
    values = {
        "training__steps": 4,
        "training__batch_size": 1,
        "trace__probes": 0,
        "evaluation__contexts": ["plain"],
        **values,
    }
    return run_config(models, folder, method=method, data={"train": str(folder / "data.jsonl"), "eval": None}, **values)


@pytest.fixture(scope="module")
def student(models: dict) -> object:
    return load_policies(["student"], student=models["student"], teacher=None, max_completion_length=8)["student"]


@pytest.mark.parametrize(
    ("column", "text", "reason", "says"),
    [
        (
            "reference",
            f"green{END}",
            'special token in "reference"',
            f'column "reference": .*contains the special token "{END}"',
        ),
        ("reference", f"green{END}\nuser: next?", 'special token in "reference"', 'column "reference"'),
        ("reference", "<image>\na green square", 'special token in "reference"', '"<image>" as text'),
        ("reference", " ", "reference is blank", "column \"reference\": ' ' is blank"),
        ("reference", "", "reference is blank", "column \"reference\": '' is blank"),
        ("reference", "\n\t\u3000", "reference is blank", "is blank"),
        (
            "reference",
            "green " * 3000,
            "reference is too long",
            r'column "reference": \d+ tokens .* the model\'s \d+',
        ),
        ("question", f"Color?{END}", 'special token in "question"', 'column "question"'),
    ],
)
@pytest.mark.parametrize("method", ["lm_kd", "gkd"])
def test_unusable_reference_is_skipped_before_training(
    column: str, text: str, reason: str, says: str, method: str, models: dict, tmp_path: Path
) -> None:
    rows = [{}] * 5 + [{column: text}]
    config = configured(models, tmp_path, rows, {"name": method}, training__steps=2, training__batch_size=3)
    assert train(config).skipped == {reason: 1}
    (line,) = [json.loads(line) for line in (config.run_dir / "skipped.jsonl").read_text().split("\n")[:-1]]
    assert (line["example"], line["origin"]) == ("6", f"{tmp_path / 'data.jsonl'}:6")
    log = (config.run_dir / "train.log").read_text()
    assert log.index("skipped ") < log.index(f"{method}: 5 examples, steps 0 to 2")  # named before the first step
    assert f"{tmp_path / 'data.jsonl'}:6" in log
    assert re.search(says, line["message"])
    displayed = open_traces(config.run_dir).sql("SELECT DISTINCT example_id FROM rollouts").to_pylist()
    assert "6" not in {row["example_id"] for row in displayed}
    assert train(config, resume=True).skipped == {reason: 1}


def test_unusable_row_met_late_does_not_end_run_or_resume(models: dict, tmp_path: Path) -> None:
    rows = [{"id": f"ok{n}"} for n in range(11)]
    rows.insert(6, {"id": "bad", "reference": f"green{END}"})
    config = configured(models, tmp_path, rows, {"name": "lm_kd"}, training__steps=12, training__save_every=4)
    with pytest.raises(KeyboardInterrupt):
        train(config, on_step=stop_at(6))
    assert train(config, resume=True).steps == 12
    assert RunFolder(config.run_dir).status["skipped"] == {'special token in "reference"': 1}


def stop_at(step: int):
    def stop(done: int, metrics: dict) -> None:
        if done == step:
            raise KeyboardInterrupt

    return stop


def test_reference_too_long_after_its_prompt_is_skipped(student: object) -> None:
    lengths = {len(student.answer_ids("1 " * count)): "1 " * count for count in range(200, student.context_length)}
    item = example(question="what?", reference=lengths[student.context_length - 4])
    views = [(student, "plain")]
    assert text_problem(item, views, [student]) is None
    problem = encoding_problem(item, views, [student])
    assert problem.reason == "prompt is too long" and "and its answer" in problem.message
    assert encoding_problem(item, views) is None  # if it is not learned


@pytest.mark.parametrize("column", ["hint", "caption", "answer", "reference"])
def test_special_token_in_evidence_names_its_column(column: str, student: object, models: dict, tmp_path: Path) -> None:
    rows = [{}, {column: f"a{END}"}, {column: " \n"}]
    config = configured(models, tmp_path, rows, {"name": "dopd", "privilege": column})
    assert train(config).skipped == {f'special token in "{column}"': 1, f"no {column}": 1}


def test_special_token_in_turns_history_or_label_names_column(student: object) -> None:
    history = example(history=(Turn("user", "a"), Turn("assistant", f"b{END}")))
    turns = example(turns=(Turn("user", "a"), Turn("user", "<image>")))
    label = example(evidence=Evidence((Box(0, 0, 5, 5), Box(0, 0, 5, 5, "<image>"))))
    matches = [
        text_problem(entry, [(student, c)]) for entry, c in ((history, "plain"), (turns, "turns"), (label, "boxes"))
    ]
    assert [item.reason for item in matches] == [f'special token in "{name}"' for name in ("history", "turns", "boxes")]
    assert ['column "history[1]"' in matches[0].message, 'column "turns[1]"' in matches[1].message] == [True, True]
    assert 'column "boxes[1].label"' in matches[2].message
    assert text_problem(turns, [(student, "plain")]) is None and text_problem(label, [(student, "plain")]) is None


def test_tally_counts_equal_ids_of_two_files_apart() -> None:
    tally = Tally()
    method = load_method("sdpo")
    for file in ("train.jsonl", "eval.jsonl"):
        item = replace(example(answer=" ", origin=f"{file}:1"), id="1")
        assert tally.add_if(item, lacking(item, method)) and tally.add_if(item, lacking(item, method))
    assert tally.counts == {"no answer": 2} and str(tally).startswith("no answer: 2; the first is train.jsonl:1")


def test_data_without_usable_row_raises(models: dict, tmp_path: Path) -> None:
    config = configured(models, tmp_path, [{"reference": " "}] * 3, {"name": "lm_kd"})
    with raises(DataError, "3 examples"):
        train(config)
