"""Two processes train with a teacher and a sampler on servers: the losses are those of one process, without servers or
sampled ahead as there.
"""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import Ended, launch
from servers import Server
from small import run_config
from torch.distributed.tensor import DTensor

import workbench.policies.serving.sampler
from workbench.config.schema import LoraConfig, RunConfig, load_config
from workbench.distributed import ProcessGroup, join
from workbench.policies.fsdp import shard, unsharded_root
from workbench.policies.loading import load_policy
from workbench.policies.serving.addresses import Patience
from workbench.policies.serving.client import ServerClient
from workbench.policies.serving.engine import unique_weights
from workbench.policies.serving.sampler import _weights
from workbench.policies.serving.wire import PROTOCOL, SAMPLER, pack
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.learner import adapter_config
from workbench.training.run import resume, train

SPEED = re.compile("second|padding|retries")
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
VALUES = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}  # of the fixture trained


def work(file: str, sampler: str = "") -> None:
    """One of the ranks: train. sampler: process that is killed after the first step."""
    torch.set_num_threads(1)
    completions_of = workbench.policies.serving.sampler.completions_of
    workbench.policies.serving.sampler.completions_of = lambda *given: [  # as vLLM's
        [replace(completion, entropies=None) for completion in completions] for completions in completions_of(*given)
    ]
    config, group = load_config(file), join()
    if group.sharding is not None:
        compare_weights(config, group)

    def disturb(step: int, _: dict) -> None:
        if sampler and step == 1 and group.is_main:
            os.kill(int(sampler), signal.SIGKILL)
        spoil(config, step)

    train(config, on_step=disturb)


def go_on(run_dir: str, *overrides: str) -> None:
    """One of the ranks: resume."""
    torch.set_num_threads(1)
    config = load_config(Path(run_dir) / "config.yaml", list(overrides))
    resume(run_dir, overrides, on_step=lambda step, _: spoil(config, step))


def spoil(config: RunConfig, step: int) -> None:
    """As another run that sends its weights to the sampler, which had those of this step's evaluation."""
    if step == 2:
        client = ServerClient((config.sampling.server,), "another", Patience(60.0, 0.0), SAMPLER)
        client.send(pack({}, {"protocol": PROTOCOL, "version": "another", "last": False}), "/weights").result()


def compare_weights(config: RunConfig, group: ProcessGroup) -> None:
    """What a sharded student with adapters sends equals what a whole one sends, and only one layer is whole at once."""
    policies = [load_policy(config.models.student, "student") for _ in range(2)]
    for policy in policies:
        torch.manual_seed(0)
        policy.add_adapter(adapter_config(LoraConfig(rank=2)))
        for name, weight in policy.model.named_parameters():
            torch.nn.init.normal_(weight) if "lora_B" in name else None
    sharded, whole = policies
    shard([sharded], group, "cpu")
    expected, seen = unique_weights(whole.model), {}
    with unsharded_root(sharded):
        for part in _weights(sharded):
            seen |= {name: value.clone() for name, value in part.items()}
            assert sum(not isinstance(next(layer.parameters()), DTensor) for layer in sharded.shards.layers) <= 1
    assert seen.keys() == expected.keys() and all(torch.equal(seen[name], expected[name]) for name in seen)


def numbers(folder: Path, kind: str) -> list[dict]:
    return [
        {key: value for key, value in line.items() if isinstance(value, (int, float)) and not SPEED.search(key)}
        for line in RunFolder.open(folder).metrics(kind)
    ]


def assert_same(folder: Path, expected: Path) -> None:
    for kind in ("train", "eval", "probe"):
        pairs = list(zip(numbers(folder, kind), numbers(expected, kind), strict=True))
        assert pairs
        for line, other in pairs:
            assert line == pytest.approx(other, rel=1e-3, abs=1e-5)
    tokens = (
        "SELECT step, example_id, sample_idx, position, token_id, sampler_logprob FROM tokens "
        "JOIN rollouts USING (step, process_rank, rollout_idx) ORDER BY ALL"
    )
    rows, others = (open_traces(run).sql(tokens).to_pylist() for run in (folder, expected))
    for row, other in zip(rows, others, strict=True):
        assert row.pop("sampler_logprob") == pytest.approx(other.pop("sampler_logprob"), abs=1e-3)
        assert row == other


@pytest.fixture(scope="module")
def addresses(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a teacher and of a sampler."""
    folder = tmp_path_factory.mktemp("servers")
    teacher = Server(folder / "teacher", models["teacher"])
    sampler = Server(folder / "sampler", models["student"], command="sampler")
    yield {"teacher": teacher.address, "sampler": sampler.address}
    assert [teacher.stop(), sampler.stop()] == [-15, -15]


def two_processes(folder: Path, name: str, *arguments: str, **environment: str) -> list[Ended]:
    """A function of this file in two ranks."""
    code = f"import sys; from test_served_apart import {name}; {name}(*sys.argv[1:])"
    return launch(folder, code, *arguments, environment=environment)


def written(config: RunConfig, folder: Path) -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    return str(folder / "config.yaml")


@pytest.mark.slow
@pytest.mark.subprocess
def test_two_processes_with_servers_train_as_one_without(
    addresses: dict, models: dict, trained: Path, tmp_path: Path
) -> None:
    values = VALUES | {"method": {"name": "opd"}, "sampling__server": addresses["sampler"]}
    config = run_config({**models, "teacher": addresses["teacher"]}, tmp_path, **values)
    ended = two_processes(tmp_path / "ranks", "work", written(config, tmp_path / "config"))
    assert not any(item.returncode for item in ended), [item.stderr[-3000:] for item in ended]
    assert_same(config.run_dir, trained / "opd")


@pytest.mark.slow
@pytest.mark.subprocess
def test_two_sharded_processes_ahead_resume_after_a_killed_sampler_and_train_as_one(
    addresses: dict, models: dict, tmp_path: Path
) -> None:
    values = VALUES | {"sampling__server": addresses["sampler"], "sampling__ahead": 1, "sampling__ratio_clip": 2.0}
    alone = run_config(models, tmp_path, name="alone", **values)
    train(alone)
    first = Server(tmp_path / "first", models["student"], command="sampler")
    values |= {"sampling__server": first.address, "sampling__server_wait": 0.0}
    config = run_config({**models, "teacher": addresses["teacher"]}, tmp_path, **values)
    file, pid = written(config, tmp_path / "config"), str(first.program.process.pid)
    ended = two_processes(tmp_path / "killed", "work", file, pid, **SHARDED)
    assert all(item.returncode > 0 for item in ended) and "checkpoint-000001" in ended[0].stderr, ended
    assert "sharded over 2 processes; a server samples" in (config.run_dir / "train.log").read_text()
    override = f"sampling.server={addresses['sampler']}"
    ended = two_processes(tmp_path / "resumed", "go_on", str(config.run_dir), override, **SHARDED)
    assert not any(item.returncode for item in ended), [item.stderr[-3000:] for item in ended]
    assert_same(config.run_dir, alone.run_dir)
    assert [line["sampler_lag"] for line in numbers(config.run_dir, "train")] == [0, 1, 1, 1]
