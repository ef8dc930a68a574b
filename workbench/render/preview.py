"""What an import would make of a data set, drawn: its first rows with their evidence, before anything is written for good."""

import itertools
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.data.examples import load_examples
from workbench.data.importing import ImportReport, import_dataset
from workbench.render.examples import write_preview

NUM_SHOWN = 5
_NUM_TRIED = 50  # rows that are read to find so many that can be converted


@dataclass(frozen=True)
class Preview:
    """An HTML file, and what an import of the first rows would do."""

    path: Path
    report: ImportReport

    def __str__(self) -> str:
        head = f"of the first {self.report.written + self.report.skipped.total()} rows {self.report.written} can be imported."
        return f"{head}\n{str(self.report).partition(chr(10))[2]}\nthe first of them, with their evidence drawn: {self.path}"


def preview_dataset(source: str | Path, **options) -> Preview:
    """Draw the first rows that can be converted into one HTML file; options are those of import_dataset.

    It lies beside a file or folder as NAME.preview.html, and for a hub name in the current folder.
    Raises: ConfigError and DataError as import_dataset does.
    """
    source = str(source)
    is_hub = source.startswith("hf:")
    name = re.sub(r"[^\w.-]+", "-", source.removeprefix("hf:")) if is_hub else Path(source).name
    folder = Path() if is_hub else Path(source).parent
    with tempfile.TemporaryDirectory() as temporary:
        report = import_dataset(source, Path(temporary) / "data", limit=_NUM_TRIED, **options)
        loaded = itertools.islice(load_examples(report.path), NUM_SHOWN)
        examples = [replace(example, origin="") for example in loaded]  # not of the file that is gone in a moment
        title = f"{name}: {len(examples)} rows as they would be imported"
        return Preview(write_preview(examples, folder / f"{name}.preview.html", title), report)
