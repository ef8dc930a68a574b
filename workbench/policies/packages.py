"""Name the package that transformers misses, and how to install it."""

import re

_REQUIRES = re.compile(r"requires the (?:following packages?[^:]*: )?([\w-]+) library", re.IGNORECASE)
_NAMES = {"pytesseract": "pytesseract", "pil": "pillow", "sklearn": "scikit-learn"}  # where import and package differ
_BESIDE_TORCH = ("torchvision", "torchaudio", "timm")  # compiled against one version of torch


def missing_package(error: BaseException | None) -> str | None:
    """Say which package an ImportError misses and how to install it; None for another error."""
    while error is not None:
        if isinstance(error, ImportError):
            match = _REQUIRES.search(str(error))
            name = match[1].lower() if match else (error.name or "").partition(".")[0]
            if name:
                name = _NAMES.get(name, name)
                note = " (the build for the installed torch)" if name in _BESIDE_TORCH else ""
                return f"it needs the package {name}, which is not installed. Run: pip install {name}{note}"
        error = error.__cause__ or error.__context__
    return None
