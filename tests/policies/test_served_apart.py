"""Two processes train with a teacher and a sampler on servers: the losses are those of one process, without servers or
sampled ahead as there.
"""

import re
from pathlib import Path

import pytest
import torch
from processes import launch
from servers import Server
from small import run_config
from torch.distributed.tensor import DTensor

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
from workbench.training.run import train

SPEED = re.compile("second|padding|retries")
CODE = "import sys; from test_served_apart import work; work(*sys.argv[1:])"
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
VALUES = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}  # of the fixture trained


def work(file: str) -> None:
    """One of the ranks: train."""
    torch.set_num_threads(1)
    config, group = load_config(file), join()
    if group.sharding is not None:
        compare_weights(config, group)

    def spoil(step: int, _: dict) -> None:
        """As another run that sends its weights to the sampler."""
        if step == 1:
            client = ServerClient((config.sampling.server,), "another", Patience(60.0, 0.0), SAMPLER)
            client.send(pack({}, {"protocol": PROTOCOL, "version": "another", "last": False}), "/weights").result()

    train(config, on_step=spoil)


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
def addresses(models: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a teacher and of a sampler."""
    folder = tmp_path_factory.mktemp("servers")
    teacher = Server(folder / "teacher", models["teacher"])
    sampler = Server(folder / "sampler", models["student"], command="sampler")
    yield {"teacher": teacher.address, "sampler": sampler.address}
    assert [teacher.stop(), sampler.stop()] == [-15, -15]


def two_processes(config: RunConfig, folder: Path, environment: dict[str, str]) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    ended = launch(folder, CODE, str(folder / "config.yaml"), environment=environment)
    assert not any(item.returncode for item in ended), [item.stderr[-3000:] for item in ended]


@pytest.mark.slow
@pytest.mark.subprocess
def test_two_processes_with_servers_train_as_one_without(
    addresses: dict, models: dict, trained: Path, tmp_path: Path
) -> None:
    values = VALUES | {"method": {"name": "opd"}, "sampling__server": addresses["sampler"]}
    config = run_config({**models, "teacher": addresses["teacher"]}, tmp_path, **values)
    two_processes(config, tmp_path / "ranks", {})
    assert_same(config.run_dir, trained / "opd")


@pytest.mark.slow
@pytest.mark.subprocess
def test_two_sharded_processes_with_servers_train_as_one_ahead(addresses: dict, models: dict, tmp_path: Path) -> None:
    values = VALUES | {"sampling__server": addresses["sampler"], "sampling__ahead": 1, "sampling__ratio_clip": 2.0}
    alone = run_config(models, tmp_path, name="alone", **values)
    train(alone)
    config = run_config({**models, "teacher": addresses["teacher"]}, tmp_path, **values)
    two_processes(config, tmp_path / "ranks", SHARDED)
    assert "sharded over 2 processes; a server samples" in (config.run_dir / "train.log").read_text()
    assert_same(config.run_dir, alone.run_dir)
    assert [line["sampler_lag"] for line in numbers(config.run_dir, "train")] == [0, 1, 1, 1]
