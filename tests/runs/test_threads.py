"""Threads: OMP_NUM_THREADS of the user is kept, and no thread waits by spinning, for every entry of the workbench."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from small import run_config

from workbench.runs.folder import RunFolder
from workbench.runs.threads import configured_threads, num_cores
from workbench.training.run import train

WAITS = "import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3), ("2,1", 2), ("", None), ("0", None), ("many", None), (None, None)]
)
def test_configured_threads_follows_environment(monkeypatch, text: str | None, number: int | None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert configured_threads() == number
    assert num_cores() >= 1


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_resume_uses_as_many_threads_as_before(models: dict, tmp_path, monkeypatch, four_threads: None, caplog) -> None:
    config = run_config(models, tmp_path, training__steps=1, data__eval=None, trace__probes=0)
    train(config)
    folder = RunFolder(config.run_dir)
    assert folder.status["threads"] == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    train(config, resume=True)
    assert torch.get_num_threads() == folder.status["threads"] == 4
    assert "last digits" not in caplog.text
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # kept, and said
    torch.set_num_threads(2)
    train(config, resume=True)
    assert torch.get_num_threads() == 2 and "2 threads instead of 4" in caplog.text


@pytest.mark.parametrize("entry", ["import workbench", "import workbench.cli", "from workbench.studies import task"])
def test_threads_wait_passively_for_every_entry(entry: str) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}

    def policy(**values: str) -> list[str]:
        command = [sys.executable, "-c", f"{entry}; {WAITS}"]
        return subprocess.run(command, env=plain | values, capture_output=True, text=True, check=True).stdout.split()

    assert policy() == ["passive", "0"]
    if entry == "import workbench":  # which every entry begins with
        assert policy(OMP_WAIT_POLICY="active", KMP_BLOCKTIME="200") == ["active", "200"]
