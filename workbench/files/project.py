"""`workbench init`: create a project folder that runs unchanged.

recipe.yaml    a commented recipe with the small built-in models
data.jsonl     one row with every kind of evidence
images/        its image and its crop
"""

import json
import shutil
from pathlib import Path

from workbench.errors import ConfigError
from workbench.files.folders import new_folder
from workbench.files.shipped import BUILT_IN

SAMPLES = BUILT_IN / "data" / "samples"
SAMPLE = "street"  # id of the row


def create_project(folder: str | Path) -> Path:
    """Write a project into a new folder. Raises ConfigError if something exists under that name."""
    folder = Path(folder)
    try:
        with new_folder(folder) as partial:
            shutil.copyfile(BUILT_IN / "project" / "recipe.yaml", partial / "recipe.yaml")
            (partial / "images").mkdir()
            row = _sample_row()
            for name in (*row["images"], row["crop"]):
                shutil.copyfile(SAMPLES / name, partial / "images" / name)
            row |= {"images": [f"images/{name}" for name in row["images"]], "crop": f"images/{row['crop']}"}
            (partial / "data.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f'"{folder}" exists already. Choose the name of a new folder: workbench init NAME.') from None
    return folder


def _sample_row() -> dict:
    lines = (SAMPLES / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return next(row for row in map(json.loads, lines) if row["id"] == SAMPLE)
