"""Build the API pages from the docstrings: python docs/api.py [FOLDER], by default build/docs. Any warning ends it."""

import sys
import warnings
from pathlib import Path

import pdoc

import workbench

PACKAGE = Path(workbench.__file__).parent


def module_names() -> list[str]:
    """The package, which has the public names, its rooms with all that lies in them, and the files beside them."""
    parts = [path for path in sorted(PACKAGE.iterdir()) if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return ["workbench", *(f"workbench.{path.stem}" for path in parts if not path.stem.startswith("_"))]


def main(folder: Path) -> None:
    warnings.filterwarnings("error", module="pdoc")
    vars(workbench).update({name: getattr(workbench, name) for name in workbench.__all__})  # pdoc loads no lazy names
    pdoc.render.configure(show_source=False)
    pdoc.pdoc(*module_names(), output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "build/docs"))
