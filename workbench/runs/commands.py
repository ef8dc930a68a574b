"""Command lines and overrides of a configuration, and the check that a resumed run's config.yaml is unchanged."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.config.schema import RESUMABLE, RunConfig, as_it_ran, describe_config, load_config, resumed_config
from workbench.errors import ConfigError, show
from workbench.files.parsing import dump_yaml
from workbench.runs.folder import RunFolder


def train_command(recipe: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return the command that starts a run in a terminal, as arguments."""
    return ["workbench", "train", str(recipe), *overrides]


def copyable(command: Sequence[str]) -> str:
    """Quote a command for a shell."""
    return shlex.join(command)


def called() -> str:
    """Return the command line of this process."""
    program = Path(sys.argv[0])
    called = ["python", sys.argv[0]] if program.suffix == ".py" and program.name != "__main__.py" else ["workbench"]
    return shlex.join([*called, *sys.argv[1:]])


def overrides_between(recipe: str | Path, config: RunConfig) -> list[str]:
    """Return the overrides that turn a recipe into `config`: load_config(recipe, overrides) == config.

    Raises: ConfigError if the recipe cannot be read.
    """
    name = config.method["name"]
    is_same_method = load_config(recipe).method["name"] == name
    overrides = [] if is_same_method else [f"method.name={name}"]
    before, after = load_config(recipe, overrides).to_dict(), config.to_dict()
    for key in describe_config(name):
        value = value_at(after, key)
        if value != value_at(before, key):
            overrides.append(f"{key}={as_yaml(value)}")
    return overrides


def value_at(values: dict, key: str, default: object = None) -> object:
    """Look up a dotted key; `default` if missing."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return default
        values = values[part]
    return values


def as_yaml(value: object) -> str:
    """Format a value as YAML on one line."""
    return dump_yaml(value, on_one_line=True)


def unedited_config(folder: RunFolder, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration to resume a run with: its config.yaml and `overrides` of keys in RESUMABLE.

    Raises: ConfigError if the file is truncated or edited, or an override is not allowed.
    """
    status = folder.status
    _refuse_cut(folder.path / "config.yaml", status.get("config"))
    config = resumed_config(folder.path, overrides)
    refuse_edited(folder.path, status, config)
    return config


def _refuse_cut(file: Path, began: object) -> None:
    """Raise ConfigError if a file holds only the beginning of the configuration in run.json (`began`)."""
    if not isinstance(began, dict):
        return
    whole = dump_yaml(began).encode()
    try:
        raw = file.read_bytes()
    except OSError:
        return
    if len(raw) < len(whole) and whole.startswith(raw):
        raise ConfigError(
            f"{file} is truncated after {len(raw)} of {len(whole)} bytes. Copy it again, or restore it from "
            f'"config" in {file.with_name("run.json")}.'
        )


def refuse_edited(run_dir: Path, status: dict, config: RunConfig) -> None:
    """Raise ConfigError if a run's config.yaml (`config`) differs from the configuration in its run.json (`status`)."""
    began = status.get("config")
    if not isinstance(began, dict):  # run of an older version
        return
    began = as_it_ran(began)
    now = json.loads(json.dumps(config.to_dict()))  # in JSON types, as in run.json
    for key, (_, default, _) in describe_config(config.method["name"]).items():
        before = value_at(began, key, default)  # the default for keys of later versions
        if key not in (*RESUMABLE, "name", "output_dir") and before != value_at(now, key):
            raise ConfigError(
                f"{run_dir / 'config.yaml'} was edited: {key} is {show(value_at(now, key))}, but the run started with "
                f"{show(before)}. Set it back, or start a new run. Allowed changes on resume: {', '.join(RESUMABLE)}."
            )
