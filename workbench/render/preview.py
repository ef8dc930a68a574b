"""Preview of an import: the first rows of a dataset with their evidence, without writing the import."""

import itertools
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.data.examples import load_examples
from workbench.data.importing import ImportReport, import_dataset
from workbench.render.examples import write_preview

NUM_SHOWN = 5
_NUM_READ = 50  # rows read to find NUM_SHOWN that can be converted


@dataclass(frozen=True)
class Preview:
    """An HTML file with examples, and the report of importing the first rows."""

    path: Path
    report: ImportReport

    def __str__(self) -> str:
        num_rows = self.report.written + self.report.skipped.total()
        details = str(self.report).partition("\n")[2]
        return (
            f"{self.report.written} of the first {num_rows} rows can be imported.\n{details}\n"
            f"preview with evidence: {self.path}"
        )


def preview_dataset(source: str | Path, **options) -> Preview:
    """Write the first rows that can be converted to an HTML file; options as for import_dataset.

    The file NAME.preview.html is beside the source; for a dataset of the hub, in the current folder.
    Raises: ConfigError and DataError as import_dataset does.
    """
    source = str(source)
    is_hub = source.startswith("hf:")
    name = re.sub(r"[^\w.-]+", "-", source.removeprefix("hf:")) if is_hub else Path(source).name
    folder = Path() if is_hub else Path(source).parent
    with tempfile.TemporaryDirectory() as temporary:
        report = import_dataset(source, Path(temporary) / "data", max_examples=_NUM_READ, **options)
        loaded = itertools.islice(load_examples(report.path), NUM_SHOWN)
        examples = [replace(example, origin="") for example in loaded]  # the temporary file is deleted below
        title = f"{name}: {len(examples)} rows as they would be imported"
        return Preview(write_preview(examples, folder / f"{name}.preview.html", title), report)
