"""Two processes train what one trains, each with all weights or with its shard: same losses, every token recorded
once, one evaluation, one checkpoint; if one dies, the other reports it once, and the run resumes from its
checkpoint in any number of processes.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate.commands.config.config_args import load_config_from_file
from failures import raises
from PIL import Image
from processes import launch
from small import run_config

from workbench.config.schema import RunConfig
from workbench.distributed import LostProcess, ProcessGroup, Sharding, choose_device, requested_sharding
from workbench.errors import ConfigError
from workbench.evals.records import load_records
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder, StopSignal
from workbench.traces.reader import open_traces
from workbench.training.learner import require_shardable
from workbench.training.run import resume, train

ROOT = Path(__file__).parent.parent
SPEED = re.compile("second|padding")  # differ by machine, and by what shares a pass
DIES = """
import os, signal, sys
import workbench.distill.step
import workbench.training.checkpointing
from workbench.training.run import main as launched

compute_losses, passes = workbench.distill.step.compute_losses, []

def die(*arguments, **options):
    passes.append(None)
    if len(passes) == 3:  # step 2, its probes, step 3
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_losses(*arguments, **options)

def killed(run):
    if os.environ["RANK"] == "0":
        workbench.distill.step.compute_losses = die
    elif os.environ.get("WORKBENCH_SHARDS"):
        workbench.training.checkpointing.safe_open = None  # rank 0 reads the moments for all
    return launched(["--resume", run])
"""
RUNS = (
    DIES
    + """
done = [launched([sys.argv[1]]), launched([sys.argv[2]])]
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
done.append(launched([sys.argv[3]]))
create = os.memfd_create
del os.memfd_create  # as where processes cannot share memory
done.append(launched([sys.argv[4]]))
os.memfd_create = create
os.environ["FSDP_RESHARD_AFTER_FORWARD"] = "false"
if not any(done):
    sys.exit(killed(sys.argv[5]))
"""
)
SETTINGS = {
    "method": {"name": "dopd", "privilege": "crop", "self_policy": "student@ema"},
    "training__steps": 3,
    "training__save_every": 1,
    "training__micro_batch_size": 2,  # one process has one, the other two
    "training__weight_decay": 0.1,
    "evaluation__contexts": ["plain"],
}


QUICK = SETTINGS | {"training__steps": 2, "training__save_every": 1, "evaluation__contexts": ["plain"]}


def data(folder: Path, displayed: str) -> dict[str, str]:
    """Rows with hints; those marked p have a picture beside their question."""
    rows = [
        {"id": str(n), "question": f"what is {n}?", "answer": str(n), "hint": f"below {n + 2}"}
        for n in range(len(displayed))
    ]
    for row, kind in zip(rows, displayed, strict=True):
        if kind == "p":
            Image.new("RGB", (40, 30), (20 * int(row["id"]), 90, 200)).save(folder / f"{row['id']}.png")
            row["images"] = [f"{row['id']}.png"]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": str(folder / "data.jsonl"), "eval": None}


def text_config(models: dict, folder: Path) -> RunConfig:
    """A vision-language model with questions without images."""
    method = {"name": "dopd", "privilege": "hint", "self_policy": "student"}
    return run_config(models, folder, **QUICK | {"method": method, "data": data(folder, "......")})


def lora_config(models: dict, folder: Path) -> RunConfig:
    """Adapters on questions with pictures and without; one step's are in one process with, in the other without.
    Micro-batches are by tokens.
    """
    settings = {"student": str(models["student"]), "teacher": str(models["teacher"]), "lora": {"rank": 4}}
    method = {"name": "dopd", "privilege": "hint", "self_policy": "student@start"}
    by_tokens = {"training__micro_batch_size": 0, "training__tokens_per_micro_batch": 60}  # in no process equally many
    values = {"models": settings, "method": method, "data": data(folder, "p.p.p."), **by_tokens}
    return run_config(models, folder, **QUICK | values)


def numbers(config: RunConfig, kind: str) -> list[dict]:
    lines = RunFolder.open(config.run_dir).metrics(kind)
    return [
        {key: value for key, value in line.items() if isinstance(value, (int, float)) and not SPEED.search(key)}
        for line in lines
    ]


def assert_same_run(item: RunConfig, other: RunConfig, rel: float = 1e-3) -> None:
    for kind in ("train", "eval", "probe"):
        values, theirs = numbers(item, kind), numbers(other, kind)
        assert [line["step"] for line in values] == [line["step"] for line in theirs]
        for line, again in zip(values, theirs, strict=True):
            assert line == pytest.approx(again, rel=rel, abs=1e-5)
    tokens = "SELECT step, example_id, sample_idx, position, token_id, regime, loss, loss_normalizer"
    joined = f"{tokens} FROM tokens JOIN rollouts USING (step, process_rank, rollout_idx) ORDER BY ALL"
    values, theirs = (open_traces(config.run_dir).sql(joined).to_pylist() for config in (item, other))
    assert len(values) == len(theirs) == sum(line["tokens"] for line in numbers(item, "train"))
    for row, again in zip(values, theirs, strict=True):
        assert row.pop("loss") == pytest.approx(again.pop("loss"), rel=rel, abs=1e-5)
        assert row.pop("loss_normalizer") == pytest.approx(again.pop("loss_normalizer"))
        assert row == again


def killed_after_first_checkpoint(config: RunConfig, models: dict, folder: Path) -> RunConfig:
    shutil.copytree(config.run_dir, folder / config.name)
    for later in list_checkpoints(folder / config.name)[1:]:
        shutil.rmtree(later.path)
    return run_config(models, folder, **SETTINGS)


@pytest.fixture(scope="module")
def alone(models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = run_config(models, tmp_path_factory.mktemp("alone"), **SETTINGS)
    train(config)
    return config


@pytest.fixture(scope="module")
def pair(alone: RunConfig, models: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Two processes do a run, another on text alone, the first with sharded weights, and one with sharded LoRA; then,
    sharded with layers that stay whole, they resume one of a single process after its first step, and amid the third
    rank 0 is killed.
    """
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "text", "parts", "lora", "broken")]
    whole, text, parts, lora, broken = folders
    configs = [
        run_config(models, whole, **SETTINGS),
        text_config(models, text),
        run_config(models, parts, **SETTINGS),
        lora_config(models, lora),
    ]
    for config, folder in zip(configs, folders, strict=False):
        (folder / "config.yaml").write_text(config.to_yaml())
    going_on = killed_after_first_checkpoint(alone, models, broken)
    files = [str(folder / "config.yaml") for folder in folders[:4]]
    return *configs, going_on, *launch(tmp_path_factory.mktemp("pair"), RUNS, *files, str(going_on.run_dir))


def test_two_processes_train_as_one(pair: tuple, alone: RunConfig, models: dict, tmp_path: Path) -> None:
    config, *_, first, second = pair
    assert "3 steps · finished" in first.stdout and not second.stdout, first.stderr + second.stderr
    assert_same_run(alone, config)
    shares = open_traces(config.run_dir).sql(
        "SELECT step, process_rank AS rank, count(*) AS n FROM rollouts GROUP BY ALL"
    )
    result = {(row["step"], row["rank"]): row["n"] for row in shares.to_pylist()}
    assert result == {(step, rank): count for step in (1, 2, 3) for rank, count in ((0, 2), (1, 4))}
    ours, theirs = (
        [(row.step, row.policy, row.context, row.example_id, row.text) for row in load_records(item.run_dir)]
        for item in (config, alone)
    )
    assert ours == theirs
    assert [checkpoint.step for checkpoint in list_checkpoints(config.run_dir)] == [1, 2, 3]
    going_on = killed_after_first_checkpoint(config, models, tmp_path)
    resume(going_on.run_dir)  # in one process
    assert_same_run(alone, going_on)


def test_sharded_run_trains_and_writes_as_one(pair: tuple, alone: RunConfig) -> None:
    config = pair[2]
    assert_same_run(alone, config)
    saved = [list_checkpoints(each.run_dir)[-1].path for each in (alone, config)]
    values, theirs = ({str(path.relative_to(entry)) for path in entry.rglob("*")} for entry in saved)
    assert values == theirs
    for file in ("student/model.safetensors", "student_ema/model.safetensors", "optimizer.safetensors"):
        values, theirs = (safetensors.torch.load_file(item / file) for item in saved)
        assert values.keys() == theirs.keys() and not all(torch.equal(values[name], theirs[name]) for name in values)
        for name in values:
            torch.testing.assert_close(values[name], theirs[name], rtol=1e-3, atol=2e-4)


def test_sharded_adapters_train_as_one_process(pair: tuple, models: dict, tmp_path: Path) -> None:
    """The start is the same weights with the adapters off; what is saved is the adapters alone."""
    pytest.importorskip("peft")
    config, item = pair[3], lora_config(models, tmp_path)
    train(item)
    assert_same_run(
        item, config, rel=1e-2
    )  # adapters begin at zero: AdamW's first steps are as long, however small a gradient
    saved = [list_checkpoints(settings.run_dir)[-1].path / "student" for settings in (item, config)]
    assert {path.name for path in saved[0].iterdir()} == {path.name for path in saved[1].iterdir()}
    values, theirs = (safetensors.torch.load_file(path / "adapter_model.safetensors") for path in saved)
    assert values.keys() == theirs.keys() and any(value.any() for name, value in values.items() if "lora_B" in name)
    for name in values:
        torch.testing.assert_close(values[name], theirs[name], rtol=1e-3, atol=2e-4)
    shutil.rmtree(list_checkpoints(config.run_dir)[-1].path)
    resume(config.run_dir)  # in one process
    assert_same_run(item, config, rel=1e-2)


def test_text_only_run_trains_as_one_process(pair: tuple, models: dict, tmp_path: Path) -> None:
    item = text_config(models, tmp_path)
    train(item)
    assert_same_run(item, pair[1])
    saved = [
        safetensors.torch.load_file(list_checkpoints(values.run_dir)[-1].path / "optimizer.safetensors")
        for values in (item, pair[1])
    ]
    assert saved[0].keys() == saved[1].keys() and not any("vision" in name for name in saved[0])


@pytest.mark.parametrize("sharded", [True, False], ids=["parts", "whole"])
def test_lost_process_stops_others_and_run_resumes(
    sharded: bool, pair: tuple, alone: RunConfig, models: dict, tmp_path: Path
) -> None:
    if sharded:
        *_, config, killed, survivor = pair
    else:
        config = killed_after_first_checkpoint(alone, models, tmp_path)
        killed, survivor = launch(tmp_path, f"{DIES}\nsys.exit(killed(sys.argv[1]))", str(config.run_dir))
    assert (killed.returncode, survivor.returncode) == (-9, 2), survivor.stderr
    errors = [line for line in survivor.stderr.splitlines() if line.startswith("LostProcess")]
    assert len(errors) == 1 and f"--resume {config.run_dir}" in errors[0]
    assert "all of them if none was saved" in errors[0]
    assert "Traceback" not in survivor.stderr
    assert RunFolder.open(config.run_dir).status["status"] == "failed"
    assert [checkpoint.step for checkpoint in list_checkpoints(config.run_dir)] == [1, 2]  # of one process; of two
    resume(config.run_dir)
    assert_same_run(alone, config)


def test_requested_sharding_follows_accelerate_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in ("one-node-8", "several-nodes", "one-node-8-fsdp2"):
        result = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{recipe}.yaml"))
        kind = "FSDP" if recipe.endswith("fsdp2") else "MULTI_GPU"
        assert result.distributed_type == kind and result.num_processes == 8 * result.num_machines
    assert requested_sharding() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in result.fsdp_config.items():
        monkeypatch.setenv(name.upper(), str(value).lower())
    assert requested_sharding() == Sharding(reshard=True)
    for name, value in (
        ("VERSION", "1"),
        ("OFFLOAD_PARAMS", "true"),
        ("TRANSFORMER_CLS_TO_WRAP", "Layer"),
        ("RESHARD_AFTER_FORWARD", "FULL_SHARD"),
    ):
        with monkeypatch.context() as patch, raises(ConfigError, f"fsdp_{name.lower()}={value}"):
            patch.setenv(f"FSDP_{name}", value)
            requested_sharding()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with raises(ConfigError, "DEEPSPEED"):
        requested_sharding()


def test_local_range_is_even_and_needs_a_prompt_per_rank() -> None:
    assert [list(ProcessGroup(rank, 3).local_range(8)) for rank in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    with raises(ConfigError, "training.batch_size=2"):
        ProcessGroup(0, 3).require_prompts(2)


def test_choose_device_unavailable_names_available(
    models: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for name in ("cuda", "gpu", "cuda:1"):
        with raises(ConfigError, f"models.device={name}", "cpu"):
            train(
                run_config(
                    models,
                    tmp_path,
                    models={"student": str(models["student"]), "device": name},
                    method={"name": "opsa"},
                )
            )
    assert not list(tmp_path.iterdir()) and choose_device("cpu") == torch.device("cpu")
    with raises(ConfigError, "models.device=cpu:0"):
        choose_device("cpu:0", ProcessGroup(0, 2))


def test_sharding_with_unsupported_options_raises(models: dict, tmp_path: Path) -> None:
    for key, value in (("models.compile", "inductor"), ("models.teacher_dtype", "int8")):
        settings = {"student": str(models["student"]), "teacher": str(models["teacher"]), key.partition(".")[2]: value}
        with raises(ConfigError, key, "sharded weights"):
            require_shardable(run_config(models, tmp_path, models=settings))
    require_shardable(run_config(models, tmp_path))


def test_lockstep_failure_exits_and_others_report() -> None:
    process_group = ProcessGroup(0, 2)  # without connections: a message would fail
    process_group.in_lockstep, process_group.remedy = True, "start again"
    with pytest.raises(MemoryError) as values, process_group.propagate_errors():
        raise MemoryError("no memory")
    assert values.value.print_anyway and values.value.reported
    for kind in (RuntimeError, torch.distributed.DistBackendError):
        with raises(LostProcess, "1 of 2 ranks", "rank 0 with: no peer. start again"), process_group.propagate_errors():
            raise kind("no peer\nin a file")
    lost = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer. This is typically caused by a crash. 🏖️"
    hung = "[/gloo/transport/tcp/unbound_buffer.cc:129] Timed out waiting 3000ms for send operation to complete. "
    for message, what, reason in (
        (lost, "exited unexpectedly", "with: Connection closed by peer. start again"),
        (hung, "hangs (1 of 2 ranks", "with: Timed out waiting 3000ms for send operation to complete. start again"),
    ):
        with raises(LostProcess, what, reason), process_group.propagate_errors():
            raise RuntimeError(message)


def test_stop_signal_of_a_launched_run_outlasts_its_error() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for stays in (False, True):
            with pytest.raises(LostProcess), StopSignal(stays=stays) as stop:
                raise LostProcess("rank 1")
            assert (signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]) is not stays
        os.kill(os.getpid(), signal.SIGTERM)  # of the launcher, while the error is being printed
        assert stop.requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with StopSignal(stays=True):
        pass
    assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
