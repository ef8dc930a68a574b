"""Recognize GGUF files where a model folder is expected. Nothing is read but names."""

import shlex
from pathlib import Path

from workbench.errors import ConfigError

SUFFIX = ".gguf"


def gguf_file(model: str | Path) -> Path | None:
    """Return the GGUF file that `model` names, or that is alone in its folder without other weights, else None."""
    path = Path(model)
    if path.suffix.lower() == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("adapter_config.json")):
        return None
    return min(path.glob(f"*{SUFFIX}"), default=None)


def refuse_gguf(where: str, model: str | Path) -> None:
    """Raise ConfigError with the conversion if `model` is a GGUF file or a folder of it; `where` is its key or name."""
    file = gguf_file(model)
    if file is not None:
        raise ConfigError(
            f'{where} "{model}" is a GGUF file, which holds a model for llama.cpp: make a model folder of it with '
            f"workbench fetch {shlex.quote(str(file))} FOLDER, and give that folder."
        )
