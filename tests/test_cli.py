"""Every command once for real, and every mistake as one sentence: exit status 2 and no traceback, ever."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from families import save_llava
from PIL import Image
from safetensors.torch import load_file, save_file
from small import run_config

from workbench.app.arguments import build_parser
from workbench.cli import COMMANDS, main
from workbench.methods import list_methods
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.jobs import read_job
from workbench.training.loop import Trainer


@pytest.fixture(scope="module")
def config_file(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "small.yaml"
    values = run_config(models, folder / "runs", training__steps=2).to_dict()
    file.write_text(yaml.safe_dump({**values, "name": "small"}))
    return file


@pytest.fixture(scope="module")
def run(config_file: Path) -> Path:
    """The folder of a finished run."""
    assert main(["train", str(config_file)]) == 0
    return config_file.parent / "runs" / "small"


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return Path(shutil.copytree(run, tmp_path / "own"))


def printed(capsys: pytest.CaptureFixture, *arguments: object, status: int = 0) -> str:
    """What a command prints; a sentence about a mistake if that is what is expected."""
    capsys.readouterr()
    result = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert result == status, err
    assert "Traceback" not in out + err
    return err if status == 2 else out


def test_every_option_has_help_text() -> None:
    (subparsers,) = (action for action in build_parser(COMMANDS)._actions if isinstance(action.choices, dict))
    assert set(subparsers.choices) == set(COMMANDS)
    options = [(name, action) for name, parser in subparsers.choices.items() for action in parser._actions]
    assert len(options) > 60
    assert [(name, action.dest) for name, action in options if not action.help] == []


def test_train_prints_summary_and_next_commands(config_file: Path, capsys: pytest.CaptureFixture) -> None:
    out = printed(capsys, "train", config_file, "name=printed", "training.steps=1", "data.eval=null")
    assert "dopd · 1 steps · finished" in out
    assert "workbench show" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_train_stopped_exits_130_with_resume_command(
    number: int, config_file: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", lambda self, at: os.kill(os.getpid(), number) or step(self, at))
        assert main(["train", str(config_file), f"name=stopped-{number:d}"]) == 130
    reported = capsys.readouterr().out.splitlines()[-1]
    assert reported.startswith("stopped after step 1, with a checkpoint. To resume: workbench resume ")
    run = reported.rpartition(" ")[2]
    assert read_job(run).status == "stopped"
    assert main(["resume", run]) == 0
    assert read_job(run).status == "finished"


def test_reading_commands_print_the_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    summary = printed(capsys, "summary", run)
    for part in (
        "dopd · 2 steps · finished",
        "student +plain",
        "teacher +crop",
        "HT",
        "of loss",
        "truncated @0 +@2",
        r"from student: [\d,]+ sequences.* tokens each, [\d.]+% truncated",
    ):
        assert re.search(part, summary), part
    assert "regime" in printed(capsys, "show", run, "--step", 2, "--rollout", 3)
    for quantity in ("information", "denoising"):
        assert "\x1b[" in printed(capsys, "show", run, "--step", 0, "--probe", "--color-by", quantity, "--color")
    table = printed(
        capsys, "eval", run, "--contexts", "plain", "caption", "--max-examples", 3, "--data", "scenes:hard?count=9"
    )
    assert re.search("student +caption +all +all +3 ", table) and re.search("teacher +plain", table)


def test_eval_prints_accuracy_by_kind_and_visibility(
    run: Path, models: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = "scenes:eval?count=16"
    table = printed(capsys, "eval", run, "--contexts", "plain,crop", "boxes", "--data", data, "--max-examples", 16)
    for policy in ("student", "teacher"):
        for context in ("plain", "crop", "boxes"):
            for group in (
                "all +all +16",
                "all +visible +12",
                "all +privileged +4",
                "compare +privileged +2",
                "count +visible +2",
            ):
                assert re.search(f"{policy} +{context} +{group} ", table), group
    assert re.search(
        "questions +accuracy +confidence +over-confidence +calibration error +entropy +length +truncated", table
    )
    for folder in (models["teacher"], next(run.glob("checkpoint-*"))):  # a checkpoint holds its student
        table = printed(capsys, "eval", folder, "--data", data, "--max-examples", 8, "--grader", "contains")
        assert re.search("model +plain +all +all +8 ", table) and "student" not in table
    exact = printed(capsys, "eval", models["teacher"], "--data", data, "--grader", "exact", "--max-examples", 8)
    assert re.search(r"model +plain +all +all +8 +0.0%", exact)
    assert "no answer could be graded" in printed(
        capsys, "eval", models["teacher"], "--data", "scenes:eval?start=2&count=1", "--grader", "numeric"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "bare.jsonl").write_text(json.dumps({"question": "What?", "images": ["a.png"], "answer": "a"}) + "\n")
    for target in (run, models["teacher"]):
        assert main(["eval", str(target), "--data", str(tmp_path / "bare.jsonl"), "--contexts", "plain,crop"]) == 2
        assert re.search(
            'no example of .*bare.jsonl has "boxes.*", which context "crop" needs', capsys.readouterr().err
        )


def test_check_prints_table_and_verdict(config_file: Path, capsys: pytest.CaptureFixture) -> None:
    out = printed(capsys, "check", config_file)
    assert "sampler = student on plain" in out
    assert "WRONG" not in out


def test_methods_and_options_list_all(capsys: pytest.CaptureFixture) -> None:
    listed = printed(capsys, "methods")
    assert all(f"  {name} " in listed for name in list_methods())
    assert "method.beta_light=0.6" in printed(capsys, "methods", "dopd")
    assert "training.learning_rate=5e-06" in printed(capsys, "options")
    assert "method.fraction=0.2" in printed(capsys, "options", "--method", "opsa")


def test_import_output_trains(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (30, 30), (200, 0, 0)).save(tmp_path / "a.png")
    row = {
        "messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "red"}],
        "images": ["a.png"],
    }
    (tmp_path / "theirs.jsonl").write_text(
        json.dumps({**row, "privileged_context": "it is red", "solution": "red"}) + "\n"
    )
    report = printed(capsys, "import", tmp_path / "theirs.jsonl", tmp_path / "ours")
    assert "1" in report
    data = next((tmp_path / "ours").glob("*.jsonl"))
    printed(capsys, "check", config_file, f"data.train={data}", "data.eval=null", "method.privilege=caption")


def test_pretrain_output_trains(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = {"text_width": 16, "vision_width": 16, "text_layers": 1, "vision_layers": 1, "heads": 2}
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump({"output_dir": str(tmp_path / "model"), "steps": 1, "batch_size": 2, "eval_count": 0, **sizes})
    )
    assert str(tmp_path / "model") in printed(capsys, "pretrain", tmp_path / "p.yaml")
    out = printed(
        capsys,
        "train",
        config_file,
        "name=pretrained",
        "training.steps=1",
        "data.eval=null",
        f"models.student={tmp_path / 'model'}",
    )
    assert "finished" in out


def test_resume_stores_changed_keys(run_copy: Path, capsys: pytest.CaptureFixture) -> None:
    assert "2 steps · finished" in printed(capsys, "resume", run_copy, "training.save_total_limit=1")
    assert yaml.safe_load((run_copy / "config.yaml").read_text())["training"]["save_total_limit"] == 1
    assert "sampling.top_k" in printed(capsys, "resume", run_copy, "sampling.top_k=3", status=2)


def test_resume_run_named_like_a_number(run_copy: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("2024", "true # x", "1e5"):
        moved = run_copy.rename(run_copy.parent / name)
        assert "finished" in printed(capsys, "resume", moved)
        run_copy = moved


def rows(folder: Path, *values: dict) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps({"question": "what?", "answer": "red", **value}) + "\n" for value in values))
    return file


def red(folder: Path) -> str:
    Image.new("RGB", (20, 10), (200, 0, 0)).save(folder / "red.png")
    return "red.png"


def bomb(folder: Path) -> str:
    """A few kilobytes that say they are 10,000 x 10,000 pixels."""
    Image.new("1", (10_000, 10_000)).save(folder / "bomb.png")
    return "bomb.png"


BOX = {"x0": 1, "y0": 1, "x1": 9, "y1": 9}
BAD_DATA = {
    "missing image": (
        lambda f: [{"images": ["nowhere.png"]}],
        [],
        r"data.jsonl:1, column \"images\[0\]\": must be an image file",
    ),
    "image bomb": (
        lambda f: [{"images": [bomb(f)]}],
        ["method.name=opd"],
        r"step 1: none of the 1 examples.* the first is \S*data.jsonl:1: .*pixels",
    ),
    "no evidence": (
        lambda f: [{"images": [red(f)]}],
        [],
        r"none of the 1 examples .* missing: no boxes .* the first is \S*data.jsonl:1: it has no \"boxes",
    ),
    "box outside": (
        lambda f: [{"images": [red(f)], "boxes": [{**BOX, "x1": 21}]}],
        [],
        "leaves the image of 20 x 10 pixels",
    ),
    "box without image": (lambda f: [{"boxes": [BOX]}], [], "the row has boxes and no image"),
    "empty prompt": (lambda f: [{"question": " "}], [], 'column "question": must be text that is not empty'),
    "unknown column": (lambda f: [{"qestion": "x"}], [], 'column "qestion" is unknown.*Did you mean "question"'),
    "half a character": (lambda f: [{"answer": "\ud83d"}], [], r"data.jsonl:1 is not valid JSON .*half of a character"),
    "special token": (
        lambda f: [{"question": "what is <image>?"}],
        ["method.name=opd"],
        r'data.jsonl:1: column "question": .*special token "<image>"',
    ),
    "too long": (lambda f: [{"question": "what " * 600}], ["method.name=opd"], "step 1: none of the 1 examples"),
    "answer with an end": (
        lambda f: [{"answer": "a<end_of_utterance>"}],
        ["method.name=gkd", "method.dataset_fraction=1"],
        'special token "<end_of_utterance>"',
    ),
    "nothing to compare": (lambda f: [{"answer": None}], ["method.name=opd", "data.eval={data}"], 'has an "answer"'),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_train_faulty_data_is_one_sentence(
    fault: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make, overrides, sentence = BAD_DATA[fault]
    data = rows(tmp_path, *make(tmp_path))
    settings = ["data.eval=null", *(text.format(data=data) for text in overrides)]
    error = printed(capsys, "train", config_file, f"output_dir={tmp_path}", f"data.train={data}", *settings, status=2)
    assert re.search(sentence, error), error


def test_train_unreadable_image_is_skipped_and_named(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "torn.png").write_bytes((tmp_path / red(tmp_path)).read_bytes()[:40])
    good, torn = {"images": ["red.png"]}, {"images": ["torn.png"]}
    data = rows(tmp_path, good, torn, good)
    out = printed(
        capsys,
        "train",
        config_file,
        f"output_dir={tmp_path}",
        f"data.train={data}",
        "data.eval=null",
        "method.name=opd",
    )
    assert "skipped examples: image cannot be read: 1" in out


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method.name=dpod"], 'method "dpod" is unknown.*Did you mean "dopd"'),
        (["method.name=3"], 'method "3" is unknown'),
        (["method.privelege=crop"], 'Did you mean "privilege"'),
        (["method.privilege=cropp"], 'context "cropp" is unknown.*Did you mean "crop"'),
        (["method.self_policy=studnet"], '"studnet" is unknown.*Did you mean "student"'),
        (["training.stepz=3"], 'Did you mean "training.steps"'),
        (["name.first=3"], "name must be a mapping"),
        (["training=3", "training.steps=3"], "training must be a mapping"),
        (["seed=99999999999999999999"], "seed must be from 0 to"),
        (["training.report_to=[nope]"], "nope"),
        (["sampling.max_completion_length=512"], "the models' 512 tokens"),
        (["models.teacher=nowhere"], 'teacher: cannot load "nowhere"'),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["data.eval=scenes:nowhere"], '"nowhere" is unknown'),
        (["data.train=scenes:train?count=0"], "count must be a whole number"),
        (["nonsense"], "must look like key.subkey=value"),
    ],
)
def test_train_faulty_config_is_one_sentence(
    overrides: list[str], sentence: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = printed(capsys, "train", config_file, f"output_dir={tmp_path}", "name=bad", *overrides, status=2)
    assert re.search(sentence, error), error
    # what never began leaves nothing that would stand in the way of the corrected command
    assert printed(capsys, "train", config_file, f"output_dir={tmp_path}", "name=bad", *overrides, status=2) == error


def test_train_run_that_never_began_starts_again(
    config_file: Path, models: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = ["train", config_file, f"output_dir={tmp_path}", "training.steps=1", "data.eval=null"]
    damaged = shutil.copytree(models["teacher"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"damaged")
    printed(capsys, *common, f"models.teacher={damaged}", status=2)
    assert "cannot load" in printed(capsys, "summary", tmp_path / "small")
    assert "finished" in printed(capsys, *common)
    assert "exists. Continue it with" in printed(capsys, *common, status=2)


def test_train_teacher_of_other_vocabulary_raises(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = save_llava(tmp_path / "llava")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    for command in ("train", "check"):
        error = printed(capsys, command, config_file, f"output_dir={tmp_path}", f"models.teacher={other}", status=2)
        assert "teacher has another vocabulary than student" in error


def test_train_model_without_end_token_raises(
    models: dict, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = Path(shutil.copytree(models["student"], tmp_path / "bare"))
    (bare / "generation_config.json").write_text("{}")
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    error = printed(capsys, "check", config_file, f"models.student={bare}", status=2)
    assert "has an end token" in error and "generation_config.json" in error


def test_damaged_runs_are_one_sentence(run_copy: Path, capsys: pytest.CaptureFixture) -> None:
    for checkpoint in list_checkpoints(run_copy):
        weights = checkpoint.student / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
    error = printed(capsys, "eval", run_copy, status=2)
    assert "has no complete checkpoint yet" in error and "student/model.safetensors" in error
    with (run_copy / "metrics.jsonl").open("r+") as file:
        file.write("#")
    assert "is not a line of metrics" in printed(capsys, "resume", run_copy, status=2)
    (run_copy / "run.json").write_text("{")
    assert "run.json cannot be read" in printed(capsys, "summary", run_copy, status=2)
    shutil.rmtree(run_copy / "traces")
    printed(capsys, "show", run_copy, "--step", 1, status=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["summary", "{run}/nowhere"], "is not a run folder"),
        (["resume", "{run}/nowhere"], "is not a run folder"),
        (["resume", "{run}", "seed=3"], "seed=3"),
        (["eval", "{run}", "--contexts", "cropp"], 'Did you mean "crop"'),
        (["eval", "{run}/nowhere"], "model folder"),
        (["eval", "{run}/traces"], "model folder"),
        (["eval", "{run}/checkpoint-000002"], "is a model, not a run"),
        (
            ["eval", "{run}/checkpoint-000002", "--data", "scenes:eval", "--contexts", "plain,cropp"],
            'Did you mean "crop"',
        ),
        (["study", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["study", "{run}/config.yaml"], "is unknown. Allowed: baseline, evaluate"),
        (["eval", "{run}", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["eval", "{run}", "--max-examples", "-3"], "max_examples must be at least 1"),
        (["eval", "{run}", "--tolerance", "0.1"], 'grader "numeric" only'),
        (["show", "{run}", "--step", "99"], "Steps with recorded rollouts: 1, 2"),
        (["show", "{run}", "--step", "1", "--rollout", "99"], "has no rollout 99 of step 1. Its rollouts are 0, 1,"),
        (["methods", "dpod"], 'Did you mean "dopd"'),
        (["options", "--method", "dpod"], 'Did you mean "dopd"'),
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train", "{run}"], "is not a file"),
        (["check", "{run}/run.json"], "method.name is missing"),
        (["import", "nowhere.jsonl", "{run}/x"], "nowhere.jsonl does not exist"),
        (["import", "x.jsonl", "{run}/x", "--column", "answer"], "must look like ours=theirs"),
        (["pretrain", "nowhere.yaml"], "does not exist"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sentence in printed(capsys, *(argument.format(run=run) for argument in arguments), status=2)


def test_eval_without_evidence_raises(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", str(run), "--data", str(rows(tmp_path, {})), "--contexts", "hint"]) == 2
    assert 'has "hint", which context "hint" needs' in capsys.readouterr().err


def test_train_non_finite_weights_raise_before_first_step(
    models: dict, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = Path(shutil.copytree(models["teacher"], tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "layers.0.self_attn.q_proj" in name and "text" in name)
    weights[name].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    error = printed(
        capsys,
        "train",
        config_file,
        f"output_dir={tmp_path}",
        f"models.teacher={broken}",
        "data.eval=null",
        "trace.probes=0",
        status=2,
    )
    assert "teacher: 1 weights of" in error and "are infinite or NaN" in error and name in error


def test_program_error_has_no_traceback_and_closed_pipe_ends(run: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = f'"{sys.executable}" -m workbench'
    wrong = subprocess.run(
        f"{command} summary nowhere", shell=True, env=environment, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("RunError: nowhere is not a run folder") and not wrong.stdout
    piped = subprocess.run(
        f"{command} options | head -1", shell=True, env=environment, capture_output=True, text=True, check=True
    )
    assert piped.stderr == "" and piped.stdout.startswith("  name=")


def test_argument_error_shortens_long_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "configs/demo.yaml", "-" + "9" * 5000 + "=1"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "unrecognized arguments: -999" in message
    assert len(message) < 1000
