"""The loop on real, tiny models with random weights: its records, resume after a kill, errors in one sentence."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from failures import raises
from families import save_llava
from PIL import Image
from processes import Program
from small import run_config

from workbench.config.schema import RunConfig, load_config
from workbench.distill.method import Loss, Method
from workbench.distill.step import compute_step
from workbench.errors import ConfigError, DataError, PolicyError, RunError
from workbench.evals import evaluate
from workbench.evals.records import load_records
from workbench.methods import list_methods, load_method
from workbench.runs.checkpoints import Checkpoint, list_checkpoints, open_checkpoint
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.traces.writer import TracedBatch, TraceWriter
from workbench.training.checkpointing import save_checkpoint
from workbench.training.run import resume, train

POSITIONS = "SELECT * EXCLUDE (process_rank) FROM {} ORDER BY step, rollout_idx, position"


@pytest.fixture(scope="module")
def dopd(models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished DOPD run."""
    config = run_config(models, tmp_path_factory.mktemp("runs"))
    train(config)
    return config


def stop_after(step: int):
    """Sends SIGTERM when a step is done, as a cluster or a person would; the next step is then the last."""

    def interrupt(done: int, metrics: dict) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return interrupt


def losses(config: RunConfig) -> list[float]:
    return [line["loss"] for line in RunFolder.open(config.run_dir).metrics("train")]


def copy_of(run: RunConfig, models: dict, folder: Path) -> RunConfig:
    """The configuration of a copy of a finished run, to damage."""
    shutil.copytree(run.run_dir, folder / run.name)
    return run_config(models, folder)


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(list_checkpoints(config.run_dir)[-1].student / "model.safetensors")


def test_train_writes_every_file_of_a_run(dopd: RunConfig) -> None:
    run = RunFolder.open(dopd.run_dir)
    assert run.status["status"] == "finished"
    assert run.status["steps_done"] == 4
    assert {"torch", "transformers", "python"} <= run.status["versions"].keys()
    assert [line["step"] for line in run.metrics("train")] == [1, 2, 3, 4]
    assert [line["step"] for line in run.metrics("probe")] == [0, 2, 4]
    assert [line["step"] for line in run.metrics("eval")] == [0, 4]
    assert [checkpoint.step for checkpoint in list_checkpoints(dopd.run_dir)] == [2, 4]
    assert {(row.step, row.policy, row.context) for row in load_records(dopd.run_dir)} == {
        *((step, "student", context) for step in (0, 4) for context in ("plain", "crop")),
        *((0, "teacher", context) for context in ("plain", "crop")),
    }
    assert "dopd: 12 examples" in (dopd.run_dir / "train.log").read_text()


def test_train_traces_every_token_in_one_regime(dopd: RunConfig) -> None:
    traces = open_traces(dopd.run_dir)
    rows = traces.sql(POSITIONS.format("tokens")).to_pylist()
    metrics = RunFolder.open(dopd.run_dir).metrics("train")
    assert len(rows) == sum(line["tokens"] for line in metrics)
    assert {row["regime"] for row in rows} == {"LH", "LL", "HT", "HS"}
    for row in rows:
        assert row["capability_gap"] == pytest.approx(row["logprob_teacher"] - row["logprob_self"], abs=1e-6)
        assert row["information_gap"] == pytest.approx(row["logprob_self"] - row["logprob_student"], abs=1e-6)
        assert row["sampler_logprob"] == pytest.approx(row["logprob_student"], abs=1e-3)
        leads = row["logprob_teacher"] >= row["logprob_self"]
        assert row["regime"] in (("LH", "LL", "HT") if leads else ("LH", "LL", "HS"))
    for line in metrics:  # what the trace says a step cost is what the optimiser was given
        selected = [row["contribution"] for row in rows if row["step"] == line["step"]]
        assert sum(selected) == pytest.approx(line["loss"], abs=1e-5)
        shares = [line[f"share/{name}"] for name in traces.regimes]
        assert sum(shares) == pytest.approx(1.0)


def test_probes_are_equal_tokens_at_every_step(dopd: RunConfig) -> None:
    probes = open_traces(dopd.run_dir).sql("SELECT * FROM probe_tokens").to_pylist()
    by_step: dict[int, list] = {}
    for row in probes:
        by_step.setdefault(row["step"], []).append((row["rollout_idx"], row["position"], row["token_id"]))
    assert sorted(by_step) == [0, 2, 4]
    assert sorted(by_step[0]) == sorted(by_step[2]) == sorted(by_step[4])


def test_train_twice_is_equal_bit_for_bit(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    again = run_config(models, tmp_path)
    train(again)
    assert losses(again) == losses(dopd)
    repeated = weights(again)
    for name, value in weights(dopd).items():
        assert torch.equal(repeated[name], value)


def test_micro_batches_of_one_equal_batch_of_six(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    pieces = run_config(models, tmp_path, data__eval=None, training__micro_batch_size=1)
    train(pieces)
    # the same sums in another order, carried through four steps
    assert losses(pieces) == pytest.approx(losses(dopd), abs=2e-4)


def test_train_without_traces_has_equal_losses(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    silent = run_config(models, tmp_path, data__eval=None, trace__every=0, trace__probes=0, trace__top_k=0)
    train(silent)
    assert losses(silent) == losses(dopd)


def test_steps_outside_the_trace_collect_no_likely_tokens(
    models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def counted(*args, top_k: int, **options):
        counts.append(top_k)
        return compute_step(*args, top_k=top_k, **options)

    monkeypatch.setattr("workbench.training.loop.compute_step", counted)
    train(run_config(models, tmp_path, trace__every=2, trace__probes=0, trace__top_k=3))
    assert counts == [0, 3, 0, 3]


def test_train_samples_question_anew_in_every_step(models: dict, tmp_path: Path) -> None:
    item = {
        "data__max_train_examples": 1,
        "data__eval": None,
        "training__batch_size": 1,
        "training__learning_rate": 0.0,
    }
    config = run_config(models, tmp_path, **item)
    train(config)
    written = open_traces(config.run_dir).sql(
        "SELECT step, list(completion ORDER BY sample_idx) AS own FROM rollouts GROUP BY step"
    )
    assert len({tuple(row) for row in written["own"].to_pylist()}) == 4


def test_checkpoint_is_written_after_traces(models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, result = TraceWriter._write, []

    def slowly(writer: TraceWriter, batches: tuple[TracedBatch, ...], prefix: str) -> None:
        time.sleep(0.1)
        write(writer, batches, prefix)

    def looking(folder: Path, step: int, *values: object, **options: object) -> Checkpoint:
        tables = ("tokens", "probe_tokens")
        result.append(
            (step, *(open_traces(folder).sql(f"SELECT max(step) AS s FROM {t}")["s"][0].as_py() for t in tables))
        )
        return save_checkpoint(folder, step, *values, **options)

    monkeypatch.setattr(TraceWriter, "_write", slowly)
    monkeypatch.setattr(sys.modules["workbench.training.loop"], "save_checkpoint", looking)
    train(run_config(models, tmp_path, data__eval=None))
    assert result == [(2, 2, 2), (4, 4, 4)]


# d_opsd trains another kind of student: tests/methods/test_d_opsd.py
@pytest.mark.parametrize("name", [name for name in list_methods() if name not in ("dopd", "d_opsd")])
def test_every_method_trains_and_is_traced(name: str, models: dict, tmp_path: Path) -> None:
    # models of random weights are never right: all may speak, of anything
    method = {"name": name} | ({"exchange": "ungated", "anchor": False} if name == "opcod" else {})
    peers = {"models__peers": {"ann": str(models["student"])}} if load_method(name).min_learners > 1 else {}
    turns = {"data__train": "scenes:train?count=12&turns=rows"} if name == "ccopd" else {}
    config = run_config(models, tmp_path, method=method, training__steps=2, data__eval=None, **peers, **turns)
    train(config)
    traces = open_traces(config.run_dir)
    assert traces.method == name
    learns = name not in (
        "sdpo",
        "grpo",
    )  # which need a right answer: without one nothing is supervised, and nothing moves
    assert (traces.sql("SELECT count(*) AS n FROM tokens WHERE loss != 0").to_pylist()[0]["n"] > 0) == learns
    start = safetensors.torch.load_file(models["student"] / "model.safetensors")
    assert any(not torch.equal(start[key], value) for key, value in weights(config).items()) == learns


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_trains_adapter_only_and_resumes(dtype: str, models: dict, tmp_path: Path) -> None:
    """With a moving average of it, in float32 for every model dtype, since its steps are too small for bfloat16."""
    settings = {"student": str(models["student"]), "lora": {"rank": 2}, "dtype": dtype}
    values = {"models": settings, "method": {"name": "opsd", "self_policy": "student@ema"}, "data__eval": None}
    whole = run_config(models, tmp_path / "whole", **values)
    train(whole)
    half = run_config(models, tmp_path / "half", **values)
    assert train(half, on_step=stop_after(1)).steps == 2
    train(half, resume=True)
    assert losses(half) == losses(whole)
    folder = list_checkpoints(whole.run_dir)[-1].student
    assert (folder / "adapter_config.json").is_file() and not (folder / "model.safetensors").exists()
    saved = [
        safetensors.torch.load_file(entry / "adapter_model.safetensors")
        for entry in (folder, folder.with_name("student_ema"))
    ]
    assert {value.dtype for item in saved for value in item.values()} == {torch.float32}
    assert any(not torch.equal(value, saved[1][name]) for name, value in saved[0].items())


def test_resume_of_edited_config_raises(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, data__eval=None)
    train(config, on_step=stop_after(1))
    file = config.run_dir / "config.yaml"
    whole = file.read_text()
    file.write_text(whole.replace("rank: 0", "rank: 2", 1))
    assert file.read_text() != whole
    with raises(ConfigError, "config.yaml", "models.lora.rank", "is 2,", "with 0", "save_every"):
        resume(config.run_dir)
    file.write_text(whole)
    assert resume(config.run_dir, ["training.save_total_limit=1"]).steps == 4 == resume(config.run_dir).steps


def test_resume_of_older_run_keeps_constant_rate(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, data__eval=None, training__schedule="constant")
    train(config, on_step=stop_after(2))
    file = config.run_dir / "config.yaml"
    file.write_text(file.read_text().replace("warmup_steps: 0", "warmup_steps: 3"))
    folder = RunFolder.open(config.run_dir)
    began = folder.status["config"]
    folder.update(config={**began, "training": {**began["training"], "warmup_steps": 3}})
    assert resume(config.run_dir).steps == 4
    rates = [line["learning_rate"] for line in folder.metrics("train")]
    assert rates == [config.training.learning_rate] * 4
    assert "warmup_steps: 0" in file.read_text()  # what it acted on
    file.write_text(file.read_text().replace("warmup_steps: 0", "warmup_steps: 3"))
    with raises(ConfigError, "warmup_steps=2", "training.schedule=constant"):
        load_config(file, ["training.warmup_steps=2"])
    assert load_config(file, ["training.schedule=constant_with_warmup"]).training.warmup_steps == 3


def test_unexpected_error_and_full_memory_are_recorded(models: dict, tmp_path: Path) -> None:
    def fails(error: Exception) -> tuple[str, str]:
        def on_step(step: int, metrics: dict) -> None:
            raise error

        config = run_config(models, tmp_path, name=type(error).__name__, data__eval=None)
        with pytest.raises(RunError if isinstance(error, torch.OutOfMemoryError) else type(error)):
            train(config, on_step=on_step)
        status = RunFolder.open(config.run_dir).status
        assert status["status"] == "failed"
        return status["error"], (config.run_dir / "train.log").read_text()

    output, log = fails(ZeroDivisionError("by zero"))
    assert output == "ZeroDivisionError: by zero (see train.log for the traceback)" and "Traceback" in log
    output, _ = fails(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert output.startswith("out of device memory: CUDA out of memory.") and "models.lora.rank" in output


def test_gradient_checkpointing_keeps_losses(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, data__eval=None, models__gradient_checkpointing=True)
    train(config)
    assert losses(config) == pytest.approx(losses(dopd), abs=1e-5)


def test_bfloat16_warns_of_rounded_updates(models: dict, tmp_path: Path) -> None:
    for name, precision, rate, output in (
        ("half", {"models__dtype": "bfloat16"}, 1e-6, True),
        ("far", {"models__dtype": "bfloat16"}, 1e-1, False),
        ("mixed", {"training__mixed_precision": "bf16", "models__teacher_dtype": "bfloat16"}, 1e-6, False),
    ):
        settings = {"training__steps": 2, "training__learning_rate": rate, "data__eval": None, **precision}
        config = run_config(models, tmp_path, name=name, **settings)
        warned = [warning for warning in train(config).warnings if "weights changed in this step" in warning]
        moved = [line.get("updated_weight_fraction") for line in RunFolder(config.run_dir).metrics("train")]
        assert len(losses(config)) == 2 and bool(warned) == output, (name, moved)
        if output:
            assert max(moved) < 0.5 and "models.lora.rank" in warned[0]
        elif name == "far":
            assert min(moved) > 0.5
        else:
            assert moved == [None, None], "float32 weights round nothing away"


def test_killed_run_resumes_to_equal_end(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    program = Program(tmp_path, "import sys; from workbench.cli import main; main(['train', sys.argv[1]])", str(file))
    metrics = config.run_dir / "metrics.jsonl"
    while program.process.is_alive():  # killed after step 3: one step behind the checkpoint of step 2
        if metrics.exists() and any(line["step"] == 3 for line in RunFolder(config.run_dir).metrics("train")):
            program.process.kill()
            break
        time.sleep(0.01)
    program.wait()
    assert RunFolder.open(config.run_dir).status["status"] == "running"
    train(config, resume=True)
    assert losses(config) == losses(dopd)
    for table in ("tokens", "probe_tokens"):
        rows = [open_traces(entry.run_dir).sql(POSITIONS.format(table)).to_pylist() for entry in (config, dopd)]
        assert rows[0] == rows[1]
    key = ("step", "policy", "context", "example_id", "text", "confidence")
    answers = [[[getattr(row, k) for k in key] for row in load_records(item.run_dir)] for item in (config, dopd)]
    assert answers[0] == answers[1]


def test_sigterm_saves_and_run_resumes(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path)
    result = train(config, on_step=stop_after(2))
    assert result.stopped and result.steps == 3
    run = RunFolder.open(config.run_dir)
    assert run.status["status"] == "stopped"
    assert [checkpoint.step for checkpoint in list_checkpoints(config.run_dir)] == [2, 3]
    train(config, resume=True)
    assert losses(config) == losses(dopd)
    for kind in ("probe", "eval"):  # nothing that an uninterrupted run would not have
        assert [line["step"] for line in run.metrics(kind)] == [
            line["step"] for line in RunFolder.open(dopd.run_dir).metrics(kind)
        ]


def test_evaluation_lost_to_a_kill_is_repeated(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    config = copy_of(dopd, models, tmp_path)
    before = load_records(config.run_dir)
    (config.run_dir / "evals" / "step-000004.jsonl").unlink()
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "eval" or json.loads(line)["step"] < 4]
    (config.run_dir / "metrics.jsonl").write_text("".join(kept))
    train(config, resume=True)
    assert load_records(config.run_dir) == before


def test_failed_resume_leaves_run_unchanged(dopd: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PolicyError("the model does not exist")

    monkeypatch.setattr(sys.modules["workbench.training.loop"], "build_learner", refuse)
    with pytest.raises(PolicyError):
        train(dopd, resume=True)
    assert RunFolder.open(dopd.run_dir).status["status"] == "finished"


def test_torn_checkpoint_is_skipped_on_resume(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    config = copy_of(dopd, models, tmp_path)
    newest = list_checkpoints(config.run_dir)[-1]
    file = newest.student / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with raises(RunError, "student/model.safetensors"):
        open_checkpoint(newest.path)
    train(config, resume=True)
    assert "torn" in (config.run_dir / "train.log").read_text()
    assert losses(config) == losses(dopd)


def test_evaluation_of_repeated_step_is_deleted(dopd: RunConfig, models: dict, tmp_path: Path) -> None:
    config = copy_of(dopd, models, tmp_path)
    evals = config.run_dir / "evals"
    (evals / "step-000003.jsonl").write_bytes((evals / "step-000004.jsonl").read_bytes())
    (list_checkpoints(config.run_dir)[-1].student / "model.safetensors").write_bytes(b"torn")
    train(config, resume=True)
    assert sorted(file.name for file in evals.iterdir()) == ["step-000000.jsonl", "step-000004.jsonl"]
    assert losses(config) == losses(dopd)


def test_non_finite_loss_stops_with_last_good_weights(
    models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"data__eval": None, "training__learning_rate": 1e30, "training__max_grad_norm": 0.0}
    config = run_config(models, tmp_path, **values)
    with raises(RunError, "training.learning_rate"):
        train(config)
    status = RunFolder.open(config.run_dir).status
    assert status["status"] == "failed" and "lower training.learning_rate" in status["error"]


def test_existing_run_is_not_overwritten(dopd: RunConfig) -> None:
    before = (dopd.run_dir / "metrics.jsonl").read_bytes()
    with raises(RunError, "exists", "`workbench resume"):
        train(dopd)
    assert (dopd.run_dir / "metrics.jsonl").read_bytes() == before


def test_rows_without_evidence_are_counted(models: dict, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"id": str(n), "question": "what is this?", "answer": "red"} for n in range(6)]
    for row in rows[:4]:
        row["hint"] = "top left"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(
        models, tmp_path, method={"name": "dopd", "privilege": "hint"}, data={"train": str(data)}, training__steps=1
    )
    result = train(config)
    assert result.skipped == {"no hint": 2}
    assert RunFolder.open(config.run_dir).status["skipped"] == {"no hint": 2}
    nothing = run_config(
        models, tmp_path, name="other", method={"name": "dopd", "privilege": "caption"}, data={"train": str(data)}
    )
    with raises(DataError, "6 examples"):
        train(nothing)


def test_row_without_answer_is_skipped_if_trained_on(models: dict, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"id": "1", "question": "what?", "answer": "red"}, {"id": "2", "question": "what?"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(models, tmp_path, method={"name": "gkd"}, data={"train": str(data)}, training__steps=1)
    assert train(config).skipped == {"no reference or answer": 1}


def test_unreadable_image_is_skipped_and_counted(models: dict, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    data = tmp_path / "data.jsonl"
    rows = [{"id": str(n), "question": "what?", "answer": "red"} for n in range(3)]
    rows[1]["images"] = ["torn.png"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(models, tmp_path, method={"name": "opd"}, data={"train": str(data)}, training__steps=2)
    result = train(config)
    assert result.skipped == {"image cannot be read": 1}
    assert "torn.png cannot be read" in (config.run_dir / "train.log").read_text()
    assert train(config, resume=True).skipped == {"image cannot be read": 1}  # not forgotten when it goes on
    assert [json.loads(line)["example"] for line in (config.run_dir / "skipped.jsonl").read_text().splitlines()] == [
        "1"
    ]
    Image.new("RGB", (40, 40)).save(tmp_path / "torn.png")
    with raises(RunError, "data.train", "data.jsonl:2", "1"):
        train(config, resume=True)


def test_batch_of_unreadable_images_takes_next_readable(models: dict, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    data = tmp_path / "data.jsonl"
    rows = [{"id": str(n), "question": "what?", "answer": "red", "images": ["torn.png"]} for n in range(4)]
    del rows[2]["images"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"method": {"name": "opd"}, "data": {"train": str(data)}, "training__batch_size": 1}
    config = run_config(models, tmp_path, **values)
    assert train(config).skipped == {"image cannot be read": 3}
    displayed = open_traces(config.run_dir).sql("SELECT DISTINCT step, example_id FROM rollouts ORDER BY step")
    assert displayed.to_pylist() == [{"step": step, "example_id": "2"} for step in (1, 2, 3, 4)]
    data.write_text(json.dumps(rows[0]) + "\n")
    with raises(DataError, "step 1", "1 examples"):
        train(run_config(models, tmp_path, name="none", **values))


def test_metrics_are_logged_to_tracker(models: dict, tmp_path: Path) -> None:
    config = run_config(models, tmp_path, training__steps=1, training__report_to=["tensorboard"])
    train(config)
    events = list(config.run_dir.rglob("events.out.tfevents.*"))
    assert events and b"loss_share/HT" in b"".join(file.read_bytes() for file in events)
    for name, sentence in (("wandb", "wandb is not installed"), ("tensorbord", "tensorbord")):
        with pytest.raises(ConfigError, match=sentence):
            train(run_config(models, tmp_path, name=name, training__report_to=[name]))


def test_teacher_of_other_vocabulary_raises(models: dict, tmp_path: Path) -> None:
    other = save_llava(tmp_path / "llava")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = run_config({"student": models["student"], "teacher": other}, tmp_path)
    with raises(PolicyError, "teacher", "student", "token"):
        train(config)


def test_folder_without_model_is_named_before_run_folder(models: dict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for student, why in (("empty", "it has no config.json"), ("gone", "the folder does not exist")):
        config = run_config({"student": tmp_path / student, "teacher": models["teacher"]}, tmp_path)
        with raises(ConfigError, "models.student", student, why):
            train(config)
        assert not config.run_dir.exists()


def test_loop_names_no_method() -> None:
    source = Path(__file__).parents[2] / "workbench"
    for file in (
        "training/run.py",
        "training/loop.py",
        "training/metrics.py",
        "training/learner.py",
        "distill/step.py",
        "distill/scoring.py",
        "distill/losses.py",
    ):
        text = (source / file).read_text()
        assert not [name for name in list_methods() if f'"{name}"' in text], file
    assert Method and Loss


def test_run_json_has_progress_between_steps(models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(models, tmp_path, training__steps=1, evaluation__every=0)
    seen, requested = [], evaluate.evaluate_policies

    def look(*values: object, **options: object) -> list:
        status = RunFolder.open(config.run_dir).status
        seen.append((status["steps_done"], status["doing"]))
        return requested(*values, **options)

    monkeypatch.setattr(evaluate, "evaluate_policies", look)
    train(config)
    assert [done for done, _ in seen[:1] + seen[-1:]] == [0, 1], "the last step counts before the last evaluation"
    assert all(re.fullmatch(r"evaluating (student|teacher): \d+ questions", doing) for _, doing in seen)
    assert RunFolder.open(config.run_dir).status["doing"] is None
