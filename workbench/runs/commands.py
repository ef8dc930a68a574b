"""The command line that does the same as a form: shown beside it, so that nothing started by mouse is a secret."""

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
    """The command that starts such a run in a terminal, as arguments."""
    return ["workbench", "train", str(recipe), *overrides]


def copyable(command: Sequence[str]) -> str:
    """A command as it is pasted into a shell."""
    return shlex.join(command)


def called() -> str:
    """What this process was called with."""
    program = Path(sys.argv[0])
    called = ["python", sys.argv[0]] if program.suffix == ".py" and program.name != "__main__.py" else ["workbench"]
    return shlex.join([*called, *sys.argv[1:]])


def overrides_between(recipe: str | Path, config: RunConfig) -> list[str]:
    """The overrides that make `config` of a recipe, method.name first: load_config(recipe, these) == config.

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
    """The value of a dotted key; `default` where there is none."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return default
        values = values[part]
    return values


def as_yaml(value: object) -> str:
    """A value on one line, as a configuration file or an override writes it."""
    return dump_yaml(value, on_one_line=True)


def unedited_config(folder: RunFolder, overrides: Sequence[str] = ()) -> RunConfig:
    """What a run goes on with: its config.yaml, and `overrides` of the keys in RESUMABLE.

    Raises: ConfigError if the file was cut or edited, or an override would make another run of it.
    """
    status = folder.status
    _refuse_cut(folder.path / "config.yaml", status.get("config"))
    config = resumed_config(folder.path, overrides)
    refuse_edited(folder.path, status, config)
    return config


def _refuse_cut(file: Path, began: object) -> None:
    """Raises ConfigError if a file holds only the beginning of the configuration in run.json, `began`: a copy was cut short."""
    if not isinstance(began, dict):
        return
    whole = dump_yaml(began).encode()
    try:
        raw = file.read_bytes()
    except OSError:
        return
    if len(raw) < len(whole) and whole.startswith(raw):
        raise ConfigError(
            f"{file} is cut: it ends after {len(raw)} of {len(whole)} bytes. Copy it again from where it is whole, or write it "
            f'anew from "config" in {file.with_name("run.json")}.'
        )


def refuse_edited(run_dir: Path, status: dict, config: RunConfig) -> None:
    """Raises ConfigError if a run's config.yaml, read as `config`, is not what it began with by its run.json, `status`."""
    began = status.get("config")
    if not isinstance(began, dict):  # of an older version
        return
    began = as_it_ran(began)
    now = json.loads(json.dumps(config.to_dict()))  # as run.json keeps it
    for key, (_, default, _) in describe_config(config.method["name"]).items():
        before = value_at(began, key, default)  # a key that came with a later version
        if key not in (*RESUMABLE, "name", "output_dir") and before != value_at(now, key):
            raise ConfigError(
                f"{run_dir / 'config.yaml'} was edited: {key} is {show(value_at(now, key))}, and the run began with {show(before)}. "
                f"That makes another run of it: set it back, or start a new one. On resume only {', '.join(RESUMABLE)} may change."
            )
