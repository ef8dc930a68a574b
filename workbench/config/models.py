"""Check configured models before creating a run folder: `check_models` their paths, `refuse_remote_code` their code."""

from pathlib import Path

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError
from workbench.files.gguf_paths import refuse_gguf
from workbench.policies.serving.addresses import is_served, meant_addresses

_FILES = ("config.json", "adapter_config.json")


def check_models(config: RunConfig) -> None:
    """Raise ConfigError if a model that the method needs is given as a path, and that is not a model folder.

    A name on the hub (`owner/name`) is not checked. Nothing is loaded. A GGUF file is answered with its conversion.
    """
    models = config.models
    needed = {"student": models.student} | {f"peers.{name}": path for name, path in models.peers.items()}
    if any(policy.startswith("teacher") for policy in config.load_method().policies):
        needed |= {"teacher": models.teacher or ""}
        needed |= {f"teachers.{domain}": path for domain, path in models.teachers.items()}
    for key, model in needed.items():
        if is_served(model):
            continue
        if key.startswith("teacher") and (addresses := meant_addresses(model)):
            raise ConfigError(
                f'models.{key} "{model}" is neither a model folder nor a name on the hub. Did you mean {addresses}?'
            )
        folder = Path(model)
        refuse_gguf(f"models.{key}", model)
        if not model or any((folder / name).is_file() for name in _FILES) or not (folder.is_dir() or _is_path(model)):
            continue
        why = "it has no config.json" if folder.is_dir() else "the folder does not exist"
        raise ConfigError(
            f'models.{key} "{model}" is not a model folder: {why}. Give a folder written by save_pretrained, or the '
            "name of a model on the hub."
        )


def refuse_remote_code(config: RunConfig, terminal: str) -> None:
    """Raise ConfigError if models of the configuration may run Python code. Every action of the page checks this.

    terminal  equivalent command in a terminal, for the message
    """
    if config.models.trust_remote_code:
        raise ConfigError(
            "models.trust_remote_code=true runs Python code from a model, which is not allowed from here. If you trust "
            f"the model, run in a terminal: {terminal}"
        )


def _is_path(model: str) -> bool:
    """Whether a text must be a path: names on the hub are `name` or `owner/name`, where owner is not a local folder."""
    owner, slash, _ = model.partition("/")
    return model.count("/") > 1 or model.startswith((".", "/", "~")) or (bool(slash) and Path(owner).is_dir())
