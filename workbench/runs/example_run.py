"""The example run that ships with the package: a recorded run of the built-in pair, for a runs folder without runs."""

import zipfile
from pathlib import Path

from workbench.errors import RunError
from workbench.files.folders import new_folder, reason
from workbench.files.shipped import BUILT_IN
from workbench.runs.folder import RunFolder, safe_run_dir

EXAMPLE_RUN = BUILT_IN / "data" / "example-run.zip"
NAME = "example"


def add_example_run(runs_dir: str | Path) -> str:
    """Copy the example run into a runs folder, unless a run of its name is there. Returns the name.

    The copy has no checkpoint, so it can be read but neither resumed nor scored again.

    Raises: RunError if the folder cannot be written, or if something else has the name.
    """
    target = safe_run_dir(runs_dir, NAME)
    try:
        with new_folder(target) as folder, zipfile.ZipFile(EXAMPLE_RUN) as archive:
            archive.extractall(folder)
    except FileExistsError:
        RunFolder.open(target)
    except OSError as error:
        raise RunError(f"{target} cannot be written ({reason(error)}). Check the runs folder's permissions.") from None
    return NAME
