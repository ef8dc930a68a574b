"""The user's cache folder: proofs of models, and files of served teachers."""

import os
from pathlib import Path

FOLDER = "WORKBENCH_CACHE"  # overrides ~/.cache/vlm-distillation-workbench


def cache_folder() -> Path:
    """The cache folder; it may not exist yet."""
    return Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "vlm-distillation-workbench")
