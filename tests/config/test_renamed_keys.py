"""Former keys of recipes, overrides, studies and stored runs are refused with their present names."""

import re
from pathlib import Path

import pytest
import yaml
from failures import raises

from workbench.config.foreign import FOREIGN
from workbench.config.renamed import RENAMED, RENAMED_STUDY_KEYS, upgrade_config
from workbench.config.schema import describe_config, load_config, resumed_config
from workbench.errors import ConfigError
from workbench.methods import list_methods
from workbench.studies.plan import load_study

RECIPE = {
    "models": {"student": "s", "teacher": "t"},
    "data": {"train": "scenes:train"},
    "method": {"name": "opd"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


@pytest.mark.parametrize("key", RENAMED)
def test_former_key_override_names_present_key(recipe: Path, key: str) -> None:
    with raises(ConfigError, f'"{key}"', f'"{RENAMED[key]}"'):
        load_config(recipe, [f"{key}=1"])


@pytest.mark.parametrize("key", RENAMED)
def test_former_key_in_recipe_names_file_and_present_key(recipe: Path, key: str) -> None:
    section, _, name = key.partition(".")
    recipe.write_text(yaml.safe_dump({**RECIPE, section: {**RECIPE.get(section, {}), name: 1}}))
    with raises(ConfigError, "mine.yaml", f'"{key}"', f'"{RENAMED[key]}"'):
        load_config(recipe)


@pytest.mark.parametrize("key", RENAMED.values())
def test_present_names_exist(key: str) -> None:
    assert any(key in describe_config(method) for method in list_methods())


@pytest.mark.parametrize("method", list_methods())
def test_present_keys_differ_from_former_ones(method: str) -> None:
    assert RENAMED.keys().isdisjoint(describe_config(method))


def test_key_of_another_trainer_names_ours(recipe: Path) -> None:
    assert FOREIGN.keys().isdisjoint(describe_config())
    current = describe_config("gkd")
    for key, ours in FOREIGN.items():
        command = ours.startswith(("workbench resume", "accelerate launch"))
        named = re.findall(r"\b(?:models|data|training|sampling|evaluation|method)\.[a-z_.]+", ours)
        assert all(
            any(name == each or each.startswith(f"{name}.") for each in current)
            for name in named or [ours]
            if not command
        ), ours
        for written in (key, f"training.{key}"):
            with raises(ConfigError, f'"{written}"', ours):
                load_config(recipe, [f"{written}=1"])


def test_key_of_another_section_names_its_own(recipe: Path) -> None:
    with raises(ConfigError, '"training.num_generations"', "sampling.num_generations"):
        load_config(recipe, ["training.num_generations=1"])
    with raises(ConfigError, '"learning_rate"', "training.learning_rate"):
        load_config(recipe, ["learning_rate=1"])
    with raises(ConfigError, '"rank"', "models.lora.rank"):
        load_config(recipe, ["rank=1"])


def test_former_base_names_extends(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("base: mine.yaml\n")
    with raises(ConfigError, "other.yaml", "base", "extends"):
        load_config(other)


def test_former_study_keys_name_present_ones(recipe: Path, tmp_path: Path) -> None:
    present = {"extends": str(recipe), "variants": {"one": {}}, "evaluate": [{"data": "scenes:eval?count=4"}]}
    former = [
        ("base", {**present, "base": str(recipe)}),
        ("after", {**present, "variants": {"one": {}, "two": {"after": "one"}}}),
        ("count", {**present, "evaluate": [{"data": "scenes:eval?count=4", "count": 2}]}),
    ]
    for key, values in former:
        study = tmp_path / "study.yaml"
        study.write_text(yaml.safe_dump(values))
        with raises(ConfigError, f'"{key}"', f'"{RENAMED_STUDY_KEYS[key]}"'):
            load_study(study, check=False)


def test_former_key_on_resume_names_present_key(recipe: Path) -> None:
    with raises(ConfigError, "training.keep", "training.save_total_limit"):
        resumed_config(recipe.parent, ["training.keep=1"])


def test_stored_run_with_former_keys_names_command(recipe: Path) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text(yaml.safe_dump({**RECIPE, "training": {"keep": 1}}))
    with raises(ConfigError, f"workbench upgrade {run}"):
        load_config(run / "config.yaml")


def test_upgrade_config_keeps_options_that_a_method_has() -> None:
    values = {"method": {"name": "opd", "average": "position", "share": 1}, "training": {"keep": 2}, "seed": 3}
    assert upgrade_config(values, {"method.share"}) == {
        "method": {"name": "opd", "loss_aggregation": "token_mean", "share": 1},
        "training": {"save_total_limit": 2},
        "seed": 3,
    }
