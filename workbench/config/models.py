"""Checks of the models that a configuration names, before a run folder is made or a model loaded.

`check_models`: whether they can be there. `refuse_remote_code`: whether they may bring programs.
"""

from pathlib import Path

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError

_FILES = ("config.json", "adapter_config.json")


def check_models(config: RunConfig) -> None:
    """Raises ConfigError if a model that the method needs can only be a folder here, and is none; loads nothing.

    A name on the hub (`owner/name`) cannot be told without a network.
    """
    models = config.models
    needed = {"student": models.student} | {f"peers.{name}": path for name, path in models.peers.items()}
    if any(policy.startswith("teacher") for policy in config.load_method().policies):
        needed |= {"teacher": models.teacher or ""}
        needed |= {f"teachers.{domain}": path for domain, path in models.teachers.items()}
    for key, model in needed.items():
        folder = Path(model)
        if not model or any((folder / name).is_file() for name in _FILES) or not (folder.is_dir() or _is_path(model)):
            continue
        why = "it has no config.json" if folder.is_dir() else "there is no such folder"
        raise ConfigError(
            f'models.{key} "{model}" is no model folder: {why}. Give a folder written by save_pretrained, or the name of a '
            "model on the hub."
        )


def refuse_remote_code(config: RunConfig, terminal: str, *, allowed: bool = False) -> None:
    """Raises ConfigError if models of the configuration may bring Python code. Every door of the page asks this rule.

    terminal  the command that does the same in a terminal, for the message
    allowed   whether the caller, a program, trusts the models
    """
    if config.models.trust_remote_code and not allowed:
        raise ConfigError(
            "models.trust_remote_code=true runs Python code that comes with a model, and nothing is started from here that "
            f"may. If you trust the model, write in a terminal: {terminal}"
        )


def _is_path(model: str) -> bool:
    """Whether a text can be no name on the hub: those are `name` or `owner/name`, and no owner is a folder here."""
    owner, slash, _ = model.partition("/")
    return model.count("/") > 1 or model.startswith((".", "/", "~")) or (bool(slash) and Path(owner).is_dir())
