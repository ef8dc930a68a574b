"""Recipes, models and samples of the package, found where the working directory has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from failures import raises

from workbench.config.models import check_models
from workbench.config.schema import load_config
from workbench.errors import ConfigError
from workbench.files.parsing import read_yaml
from workbench.files.project import create_project
from workbench.files.shipped import BUILT_IN, RECIPES, find_recipe, locate
from workbench.studies.plan import load_study
from workbench.training.pretraining.train import load_pretrain_config

HEAVY = ("torch", "transformers", "gradio", "pandas", "numpy", "pyarrow", "duckdb", "accelerate", "peft", "matplotlib")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["demo", "configs/demo.yaml"])
def test_recipe_by_name_or_path_is_built_in(name: str) -> None:
    config = load_config(name)
    assert (config.name, config.models.student) == ("demo", str(BUILT_IN / "data/models/student-pruned"))
    check_models(config)


def test_recipe_with_base_is_found_with_its_base() -> None:
    assert load_config("opd").models.teacher == str(BUILT_IN / "data/models/teacher")


def test_samples_and_models_by_domain_are_located() -> None:
    assert load_config("own-data").data.train == str(BUILT_IN / "data/samples/samples.jsonl")
    assert set(load_config("mopd").models.teachers.values()) == {
        str(BUILT_IN / f"data/models/specialist-{family}") for family in ("relation", "compare")
    }


def test_override_path_is_located() -> None:
    assert load_config("demo", ["models.teacher=data/models/student"]).models.teacher.startswith(str(BUILT_IN))


def test_file_in_working_directory_wins(elsewhere: Path) -> None:
    (elsewhere / "data/models/teacher").mkdir(parents=True)
    (elsewhere / "demo").write_text("")
    assert load_config("configs/demo.yaml").models.teacher == "data/models/teacher"
    assert find_recipe("demo") == Path("demo")


def test_folder_of_recipe_name_does_not_hide_recipe(elsewhere: Path) -> None:
    (elsewhere / "demo").mkdir()
    assert find_recipe("demo") == RECIPES / "demo.yaml"


@pytest.mark.parametrize(
    "path", ["data/models/mine", "data/../data/models/teacher", "models/teacher", "owner/name", ""]
)
def test_other_paths_stay_unchanged(path: str) -> None:
    assert locate(path) == path


def test_study_and_pretraining_recipe_are_found_by_name() -> None:
    assert load_study("studies/main", check=False).name == "main"
    assert load_pretrain_config("pretrain-student").output_dir == "data/models/student"


@pytest.mark.parametrize(("name", "meant"), [("dem", '"demo"'), ("dopd_part.yaml", '"dopd_parts"'), ("qqq", "init")])
def test_unknown_recipe_suggests_names(name: str, meant: str) -> None:
    with raises(ConfigError, meant):
        load_config(name)


def test_too_long_recipe_name_raises() -> None:
    with pytest.raises(ConfigError):
        load_config("x" * 5000)


def test_project_recipe_loads_with_usable_evidence(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = create_project(elsewhere / "mine")
    monkeypatch.chdir(project)
    check_models(load_config("recipe.yaml"))
    row = json.loads((project / "data.jsonl").read_text())
    assert {"question", "answer", "boxes", "caption", "hint", "reference"} <= row.keys()
    assert read_yaml(project / "recipe.yaml")["data"]["train"] == "data.jsonl"


def test_project_over_existing_folder_raises(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    with raises(ConfigError, "exists"):
        create_project("mine")
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


@pytest.mark.parametrize("statement", ["import workbench", "from workbench.cli import main; main(['--help'])"])
def test_help_and_import_load_nothing_heavy(statement: str) -> None:
    script = f"import atexit, sys; atexit.register(lambda: print('\\n', *sys.modules))\n{statement}"
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True, timeout=60)
    loaded = done.stdout.splitlines()[-1].split()
    assert "workbench" in loaded
    assert not [name for name in HEAVY if name in loaded]
