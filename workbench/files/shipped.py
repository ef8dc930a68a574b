"""Recipes, models, samples and guides that come with the package, so that an installed workbench needs no clone.

workbench/files/builtin has them under their paths in the repository: configs/, data/models/, data/samples/, docs/. A
file in the working directory takes precedence.
"""

import os
from pathlib import Path

BUILT_IN = Path(__file__).parent / "builtin"
RECIPES = BUILT_IN / "configs"
_DATA = "data/"


def find_recipe(path: str | Path) -> Path:
    """Find the file of a recipe or study by its path or built-in name, such as demo or studies/main.

    Returns the path unchanged, whether it exists or not, if no built-in recipe has that name.
    """
    if os.path.isfile(path) or os.path.isabs(path) or ".." in Path(path).parts:
        return Path(path)
    candidates = (BUILT_IN / path, RECIPES / f"{path}.yaml")
    return next((file for file in candidates if os.path.isfile(file)), Path(path))


def recipe_names() -> list[str]:
    """List the names of the built-in recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def locate(path: str) -> str:
    """Resolve the path of a model or data file: to the package's copy if it starts with data/ and exists only there."""
    if not path.startswith(_DATA) or ".." in Path(path).parts or os.path.exists(path):
        return path
    built_in = BUILT_IN / path
    return str(built_in) if os.path.exists(built_in) else path


def locate_all(values: object) -> object:
    """Resolve every text in nested values."""
    if isinstance(values, dict):
        return {key: locate_all(value) for key, value in values.items()}
    if isinstance(values, list):
        return [locate_all(value) for value in values]
    return locate(values) if isinstance(values, str) else values
