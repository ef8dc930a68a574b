"""Name the package that transformers misses, and how to install it."""

import importlib.util
import re

from workbench.errors import ConfigError

_REQUIRES = re.compile(r"requires the (?:following packages?[^:]*: )?([\w-]+) library", re.IGNORECASE)
_OPTIONAL = re.compile(r"Missing optional dependencies: ([\w-]+)")  # of a ValueError of AutoImageProcessor
_NAMES = {"pytesseract": "pytesseract", "pil": "pillow", "sklearn": "scikit-learn"}  # where import and package differ
_BESIDE_TORCH = ("torchvision", "torchaudio", "timm")  # compiled against one version of torch


def missing_package(error: BaseException | None) -> str | None:
    """Say which package an error of an import misses and how to install it; None for another error."""
    while error is not None:
        match = (_REQUIRES if isinstance(error, ImportError) else _OPTIONAL).search(str(error))
        name = match[1].lower() if match else (getattr(error, "name", None) or "").partition(".")[0]
        if name and (match or isinstance(error, ImportError)):
            name = _NAMES.get(name, name)
            note = " (the build for the installed torch)" if name in _BESIDE_TORCH else ""
            return f"it needs the package {name}, which is not installed. Run: pip install {name}{note}"
        error = error.__cause__ or error.__context__
    return None


def require_bitsandbytes(need: str, remedy: str) -> None:
    """Raise ConfigError unless bitsandbytes is installed; `need` begins the sentence, `remedy` ends it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{need} the package bitsandbytes: pip install 'vlm-distillation-workbench[quantized]', or {remedy}."
        )
