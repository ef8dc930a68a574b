"""Recipes for larger machines start by the command line of their comment, on a CPU with small models."""

import argparse
import os
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from processes import launch
from servers import Server

from workbench.cli import main
from workbench.config.schema import load_config
from workbench.runs.folder import RunFolder

CODE = "import sys; from workbench.training.run import main; sys.exit(main(sys.argv[1:]))"
SMALL = (
    "data.train=scenes:train?count=4",
    "data.eval=null",
    "sampling.max_completion_length=4",
    "sampling.num_generations=2",
    "training.steps=1",
    "training.batch_size=2",
    "trace.probes=1",
)


def commands(recipe: str) -> list[list[str]]:
    """Command lines of a recipe's comment, without continuation marks."""
    lines = [line[1:] for line in Path(recipe).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ {3}((?:accelerate|workbench|CUDA\w*=).*)$", text, re.M)]


def overrides(models: dict[str, Path], folder: Path) -> list[str]:
    return [
        *SMALL,
        f"models.student={models['student']}",
        f"models.teacher={models['teacher']}",
        f"output_dir={folder}",
    ]


def parsed(command: list[str], *more: str) -> argparse.Namespace:
    """Arguments of `accelerate launch`, with the settings of its file."""
    assert command[:2] == ["accelerate", "launch"]
    start = command.index("-m")
    arguments = launch_command_parser().parse_args([*command[2:start], *more, *command[start:]])
    return _validate_launch_command(arguments)[0]


def launched(command: list[str], changed: list[str], folder: Path, *more: str) -> list[str]:
    """Run two processes with what `accelerate launch` would give them; their error outputs."""
    arguments = parsed(command, "--num_processes", "2", *more)
    environment = prepare_multi_gpu_env(arguments)
    changed_here = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    given = {name: value for name, value in changed_here.items() if not name.startswith("MASTER_")}
    assert arguments.module and arguments.training_script == "workbench.training.run"
    ended = launch(folder, CODE, *arguments.training_script_args, *changed, environment=given)
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    return [item.stderr for item in ended]


@pytest.mark.subprocess
def test_recipe_of_two_nodes_starts_with_every_model_in_parts(models: dict, tmp_path: Path) -> None:
    (command,) = commands("configs/vlm-two-nodes.yaml")
    first = launched(command, overrides(models, tmp_path / "runs"), tmp_path / "ranks")[0]
    assert "sharded over 2 processes; student is whole on each while sampling" in first
    run = RunFolder.open(tmp_path / "runs" / "vlm-two-nodes")
    assert run.status["status"] == "finished"
    assert run.status["processes"] == 2
    arguments = parsed(command)
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 16, 0)


def test_recipe_of_one_gpu_starts_with_adapters(models: dict, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    (command,) = commands("configs/vlm-lora.yaml")
    assert command[0] == "workbench"
    assert main([*command[1:], *overrides(models, tmp_path)]) == 0
    assert RunFolder.open(tmp_path / "vlm-lora").status["status"] == "finished"


@pytest.mark.subprocess
def test_recipe_of_a_served_teacher_starts_with_a_server(models: dict, tmp_path: Path) -> None:
    *servers, command = commands("configs/vlm-served.yaml")
    assert [line[:3] for line in servers] == [
        [f"CUDA_VISIBLE_DEVICES={n}", "workbench", "teacher"] for n in range(len(servers))
    ]
    ports = [line[line.index("--port") + 1] for line in servers]
    addresses = load_config("configs/vlm-served.yaml").models.teacher.split(",")
    assert addresses == [f"http://127.0.0.1:{port}" for port in ports]
    assert {tuple(line[4:-1]) for line in servers} == {("--dtype", "bfloat16", "--port")}
    server = Server(tmp_path / "server", models["teacher"])
    try:
        changed = [*overrides(models, tmp_path / "runs"), f"models.teacher={server.address}"]
        launched(command, changed, tmp_path / "ranks")
    finally:
        server.stop()
    assert RunFolder.open(tmp_path / "runs" / "vlm-served").status["status"] == "finished"
