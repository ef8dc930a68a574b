"""TRL's own trainers, recorded while they train and from what they log."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from failures import raises
from transformers import AutoConfig, AutoModelForImageTextToText

from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.errors import ConfigError
from workbench.policies.processors import load_processor
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.integrations.trl import RolloutCallback, record_rollouts
from workbench.training.scored.score import score_rollouts, scoring_config

trl = pytest.importorskip("trl", reason="TRL is in the extra bench: pip install -e '.[bench]'")
datasets = pytest.importorskip("datasets", reason="TRL reads datasets: pip install -e '.[data]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL warns of what it is to change

DATA = "scenes:train?count=4"


class Outcome(NamedTuple):
    """A finished training, the sum of its weights, and the callback."""

    folder: Path
    weights: float
    callback: RolloutCallback | None


def rows(with_evidence: bool) -> list[dict[str, Any]]:
    built = []
    for example in load_examples(DATA):
        prompt = build_prompt(example, "plain")
        row = {"prompt": [{"role": "user", "content": prompt.text}], "images": list(prompt.images)}
        row |= {"id": example.id, "answer": example.answer}
        built.append(row | ({"boxes": [vars(box) for box in example.evidence.boxes]} if with_evidence else {}))
    return built


def half(completions: list, **columns: object) -> list[float]:
    """A reward of 1 for every other answer."""
    return [float(idx % 2) for idx in range(len(completions))]


def trainer_of(kind: str, models: dict, folder: Path, with_evidence: bool = False, **options: object) -> Any:
    common = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "max_completion_length": 6,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "log_completions": True,
        "num_completions_to_print": 0,
        **options,
    }
    student, teacher = (AutoModelForImageTextToText.from_pretrained(models[name]) for name in ("student", "teacher"))
    processor = load_processor(models["student"], AutoConfig.from_pretrained(models["student"]))
    data = datasets.Dataset.from_list(rows(with_evidence))
    shared = {"train_dataset": data, "processing_class": processor}
    if kind == "distillation":
        config = trl.DistillationConfig(**common, beta=1.0)
        return trl.DistillationTrainer(model=student, teacher_model=teacher, args=config, **shared)
    return trl.GRPOTrainer(model=student, reward_funcs=half, args=trl.GRPOConfig(**common, num_generations=2), **shared)


def run(kind: str, models: dict, folder: Path, with_evidence: bool = False, **record: object) -> Outcome:
    trainer = trainer_of(kind, models, folder, with_evidence)
    callback = record_rollouts(trainer, folder / "recorded", **record) if record else None
    trainer.train()
    return Outcome(folder, sum(float(p.detach().double().abs().sum()) for p in trainer.model.parameters()), callback)


@pytest.fixture(scope="module")
def distilled(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run("distillation", models, tmp_path_factory.mktemp("d"), method="dopd", privilege="crop", data=DATA)


def test_recording_does_not_change_training(models: dict, distilled: Outcome, tmp_path: Path) -> None:
    assert run("distillation", models, tmp_path).weights == distilled.weights


def test_distillation_is_recorded_with_its_own_teacher(models: dict, distilled: Outcome) -> None:
    traces = open_traces(distilled.folder / "recorded")
    counted = traces.sql("SELECT step, count(*) AS n FROM rollouts GROUP BY step ORDER BY step").to_pylist()
    assert counted == [{"step": 1, "n": 4}, {"step": 2, "n": 4}] and not distilled.callback.skipped
    status = RunFolder(distilled.folder / "recorded").status
    assert status["status"] == "finished" and status["scored"]["prompts"] == {"equal": 8}
    assert status["scored"]["matched_by"] == {"id": 8}
    # the first step is sampled and scored by the models as they were before training
    config = scoring_config(
        distilled.folder / "again",
        student=str(models["student"]),
        teacher=str(models["teacher"]),
        privilege="crop",
        data=DATA,
        overrides=["models.max_pixels=null"],
    )
    score_rollouts(distilled.folder / "recorded" / "rollouts.jsonl", config, data=DATA)
    columns = "token_id, regime, logprob_student, logprob_teacher, logprob_self"
    query = f"SELECT {columns} FROM tokens WHERE step = 1 ORDER BY rollout_idx, position"
    live, later = (open_traces(distilled.folder / name).sql(query).to_pylist() for name in ("recorded", "again"))
    assert len(live) == len(later) > 4
    for row, expected in zip(live, later, strict=True):
        assert row == {key: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v for key, v in expected.items()}


def test_completions_that_trl_logs_are_scored(models: dict, distilled: Outcome, tmp_path: Path) -> None:
    """The Parquet files that TRL itself writes, matched by the questions inside its decoded prompts."""
    config = scoring_config(
        tmp_path / "scored", student=str(models["student"]), teacher=str(models["teacher"]), privilege="crop", data=DATA
    )
    logged = distilled.folder / "trl" / "completions"
    result = score_rollouts(logged, config, data=DATA, max_skipped=7)
    facts = RunFolder(result.run_dir).status["scored"]
    assert facts["layout"] == "trl" and facts["matched_by"] == {"question": 8} and facts["rows"] == 8
    assert result.rollouts + sum(result.skipped.values()) == 8


def test_rewards_of_grpo_are_recorded(models: dict, tmp_path: Path) -> None:
    outcome = run("grpo", models, tmp_path, with_evidence=True, every=2)
    answers = open_traces(tmp_path / "recorded").sql("SELECT * FROM rollouts ORDER BY rollout_idx").to_pylist()
    assert [row["step"] for row in answers] == [2] * 4 and outcome.callback.num_recorded == 4
    assert sorted(row["reward"] for row in answers) == [0.0, 0.0, 1.0, 1.0]
    assert all(dict(row["annotations"])["half"] == row["reward"] for row in answers)
    signs = {(row["reward"], dict(row["annotations"])["advantage"] > 0) for row in answers}
    assert signs == {(1.0, True), (0.0, False)}
    boxes = {example.id: example.evidence.boxes for example in load_examples(DATA)}
    assert all(len(row["evidence_boxes"]) == len(boxes[row["example_id"]]) > 0 for row in answers)


def test_teacher_is_loaded_where_the_trainer_has_none(models: dict, tmp_path: Path) -> None:
    run("grpo", models, tmp_path, with_evidence=True, method="dopd", privilege="crop", teacher=str(models["teacher"]))
    tokens = open_traces(tmp_path / "recorded").sql("SELECT logprob_teacher, capability_gap FROM tokens").to_pylist()
    assert tokens and all(row["capability_gap"] is not None for row in tokens)


def test_rows_without_evidence_are_counted_and_training_goes_on(models: dict, tmp_path: Path) -> None:
    outcome = run("distillation", models, tmp_path, method="dopd", privilege="crop")
    assert outcome.callback.num_recorded == 0 and outcome.callback.skipped == {"no boxes (or crop)": 8}
    assert len((tmp_path / "recorded" / "skipped.jsonl").read_text().splitlines()) == 8


def test_gkd_is_recorded_from_its_tokens(models: dict, tmp_path: Path) -> None:
    """GKD keeps no rows, so that examples are matched by the questions inside its decoded prompts."""
    gkd = pytest.importorskip("trl.experimental.gkd", reason="a former version of TRL has it elsewhere")
    questions = [f"what is the number of shape {word}?" for word in ("one", "two", "three", "four")]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"id": f"q{idx}", "question": q}) + "\n" for idx, q in enumerate(questions)))
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": "one"}] for q in questions]
    student, teacher = (AutoModelForImageTextToText.from_pretrained(models[name]) for name in ("student", "teacher"))
    tokenizer = load_processor(models["student"], AutoConfig.from_pretrained(models["student"])).tokenizer
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    options = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True}
    config = gkd.GKDConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=4,
        max_steps=2,
        lmbda=1.0,
        max_new_tokens=5,
        logging_steps=1,
        save_strategy="no",
        **options,
    )
    dataset = datasets.Dataset.from_list([{"messages": turn} for turn in turns])
    trainer = gkd.GKDTrainer(
        model=student, teacher_model=teacher, args=config, train_dataset=dataset, processing_class=tokenizer
    )
    callback = record_rollouts(trainer, tmp_path / "recorded", data=str(data))
    trainer.train()
    answers = open_traces(tmp_path / "recorded").sql("SELECT step, example_id, sampled_by FROM rollouts").to_pylist()
    assert callback.num_recorded + callback.skipped.total() == 8 and answers
    assert {row["sampled_by"] for row in answers} == {"student"}
    assert {row["example_id"] for row in answers if row["step"] == 1} <= {"q0", "q1", "q2", "q3"}
    gaps = open_traces(tmp_path / "recorded").sql("SELECT total_gap FROM tokens").to_pylist()
    assert all(row["total_gap"] is not None for row in gaps)


def test_trainer_or_method_that_cannot_be_recorded_is_refused(models: dict, tmp_path: Path) -> None:
    trainer = trainer_of("distillation", models, tmp_path)
    with raises(ConfigError, "opsd", "student@start"):
        record_rollouts(trainer, tmp_path / "recorded", method="opsd")

    class Plain:
        model, args = torch.nn.Linear(1, 1), trainer.args

    with raises(ConfigError, "Plain", "DistillationTrainer"):
        record_rollouts(Plain(), tmp_path / "recorded", method="grpo")
