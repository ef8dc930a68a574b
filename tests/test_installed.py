"""The wheel in an environment of its own: everything a newcomer does, without a clone of the repository."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml

from workbench.app.guide import GUIDES

ROOT = Path(__file__).parent.parent
FOLDERS, FILES = (
    ("workbench", "configs", "data", "docs"),
    ("pyproject.toml", "README.md", "LICENSE"),
)  # a wheel is built of
MAX_WHEEL_BYTES = 42e6


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that succeeds, without the paths of the suite."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, so that no leftover of an earlier build gets in and none stays behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / "source" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "./source", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path) -> Path:
    """The `workbench` of an environment that has the wheel, and of the suite's environment the other packages."""
    env = wheel.parent / "env"
    run(sys.executable, "-m", "venv", "--without-pip", env, cwd=wheel.parent)
    python = env / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    (site,) = env.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])  # of which an editable workbench is not read
    file = run(python, "-c", "import workbench; print(workbench.__file__)", cwd=wheel.parent)
    assert Path(file.strip()).is_relative_to(env)
    return env / "bin" / "workbench"


def test_wheel_has_recipes_models_and_samples(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "workbench/py.typed" in names
    needed = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("data/models/*/*"), *ROOT.glob("data/smolvlm/*")]
    needed += [ROOT / "data/samples/samples.jsonl", *(ROOT / f"docs/{name}.md" for name in GUIDES)]
    assert not [file for file in needed if f"workbench/files/builtin/{file.relative_to(ROOT)}" not in names]


def test_init_and_built_in_recipe_train_without_clone(command: Path, tmp_path: Path) -> None:
    printed = run(command, "init", "my-project", cwd=tmp_path)
    assert "workbench train recipe.yaml" in printed
    project = tmp_path / "my-project"
    (row,) = map(json.loads, (project / "data.jsonl").read_text().splitlines())
    assert all((project / name).is_file() for name in [*row["images"], row["crop"]])

    quick = ["training.steps=1", "evaluation.max_examples=2", "trace.probes=0"]
    commands = [["train", "recipe.yaml", *quick], ["train", "demo", *quick, "data.train=scenes:hard?count=8"]]
    script = f"from workbench.cli import main; print([main(command) for command in {commands}])"  # imports torch once
    assert run(command.with_name("python"), "-c", script, cwd=project).endswith("[0, 0]\n")
    for name in ("first-run", "demo"):
        models = yaml.safe_load((project / "runs" / name / "config.yaml").read_text())["models"]
        assert Path(models["student"]).is_relative_to(command.parents[1])


def test_app_opens_with_built_in_recipes(command: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with subprocess.Popen(
        [command, "app", "--read-only", "--port", port], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE
    ) as app:
        try:
            address = re.search(r"http://\S+", app.stdout.readline()).group()
            page = urllib.request.urlopen(address, timeout=60).read().decode()
        finally:
            app.terminate()
    assert "recipe  demo.yaml" in page
    assert "Runs can be viewed, not started or stopped" in page
