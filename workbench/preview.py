"""What an import would make of a data set, drawn: its first rows with their evidence, before anything is written for good."""

import itertools
import re
import tempfile
from pathlib import Path

from workbench.datasets import load_examples
from workbench.importing import import_dataset
from workbench.rendering.examples import write_preview

NUM_SHOWN = 5
_NUM_TRIED = 50  # rows that are read to find so many that can be converted


def preview_dataset(source: str | Path, **options) -> Path:
    """One HTML file of the first rows that can be converted; options are those of import_dataset.

    It lies beside a file or folder as NAME.preview.html, and for a hub name in the current folder.
    Raises: ConfigError and DataError as import_dataset does.
    """
    source = str(source)
    is_hub = source.startswith("hf:")
    name = re.sub(r"[^\w.-]+", "-", source.removeprefix("hf:")) if is_hub else Path(source).name
    folder = Path() if is_hub else Path(source).parent
    with tempfile.TemporaryDirectory() as temporary:
        report = import_dataset(source, Path(temporary) / "data", limit=_NUM_TRIED, **options)
        examples = list(itertools.islice(load_examples(report.path), NUM_SHOWN))
        return write_preview(
            examples, folder / f"{name}.preview.html", f"{name}: {len(examples)} rows as they would be imported"
        )
