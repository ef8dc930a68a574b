"""Recipes for larger machines start by the command lines of their comments, on a CPU with small models."""

import re
import shlex
from pathlib import Path

import pytest
from processes import Program
from servers import Server, free_port

from workbench.cli import main
from workbench.config.schema import load_config
from workbench.runs.folder import RunFolder

ACCELERATE = "import sys; from accelerate.commands.accelerate_cli import main; sys.exit(main())"
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


def launched(folder: Path, command: list[str], *options: str, changed: list[str]) -> Program:
    """The launcher of a command line in a process of its own, which starts the run's as its children."""
    assert command[:2] == ["accelerate", "launch"]
    start = command.index("-m")
    two = "--num_processes", "2", "--main_process_ip", "127.0.0.1"
    return Program(folder, ACCELERATE, *command[1:start], *two, *options, *command[start:], *changed)


def output_of(*launchers: Program) -> str:
    """What launchers and their processes wrote, which must all have ended well."""
    statuses = [launcher.wait() for launcher in launchers]
    output = "".join(launcher.err.read_text() for launcher in launchers)
    assert not any(statuses), output[-4000:]
    return output


@pytest.mark.subprocess
@pytest.mark.parametrize(("recipe", "nodes"), [("vlm-8gpus", 1), ("vlm-two-nodes", 2)])
def test_recipe_of_nodes_starts_with_every_model_in_parts(
    recipe: str, nodes: int, models: dict, tmp_path: Path
) -> None:
    """Each launcher starts its share of two processes."""
    (command,) = commands(f"configs/{recipe}.yaml")
    port, changed = str(free_port()), overrides(models, tmp_path / "runs")
    output = output_of(
        *(
            launched(
                tmp_path / str(rank), command, "--main_process_port", port, "--machine_rank", str(rank), changed=changed
            )
            for rank in range(nodes)
        )
    )
    assert "sharded over 2 processes; student is whole on each while sampling" in output
    status = RunFolder.open(tmp_path / "runs" / recipe).status
    assert (status["status"], status["processes"]) == ("finished", 2)


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
    assert len({tuple(line[3:-1]) for line in servers}) == 1 and servers[0][-2] == "--port"
    server = Server(tmp_path / "server", models["teacher"], options=servers[0][4:-2])
    try:
        changed = [*overrides(models, tmp_path / "runs"), f"models.teacher={server.address}"]
        output_of(launched(tmp_path / "run", command, "--main_process_port", str(free_port()), changed=changed))
    finally:
        server.stop()
    run = RunFolder.open(tmp_path / "runs" / "vlm-served")
    assert (run.status["status"], run.status["processes"]) == ("finished", 2)
