"""Preview of an import: the first rows of a dataset with their evidence, without writing the import."""

import itertools
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.data.contexts import build_prompt, missing_evidence
from workbench.data.examples import load_examples
from workbench.data.images import image_size
from workbench.data.importing import ImportReport, import_dataset
from workbench.policies.image_size import reduced_size
from workbench.render.examples import write_preview
from workbench.types import Example

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


def preview_dataset(source: str | Path, *, model: str | None = None, **options) -> Preview:
    """Write the first rows that can be converted to an HTML file; options as for import_dataset.

    model  folder or hub name of a model, whose processor tells the tokens that each row's images cost

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
        costs = {} if model is None else _costs(examples, model)
        return Preview(write_preview(examples, folder / f"{name}.preview.html", title, costs), report)


def _costs(examples: list[Example], model: str) -> dict[str, str]:
    """Tokens of the images of each example by its id, under the contexts that show some of their own."""
    from workbench.policies.loading import load_encoder  # noqa: PLC0415  (imports transformers)

    encoder = load_encoder(model, "model")
    costs = {}
    for example in examples:
        contexts = ["plain", *(name for name in ("crop",) if missing_evidence(example, name) is None)]
        prompts = {name: replace(build_prompt(example, name), key="") for name in contexts}
        sizes = [image_size(image) for image in prompts[contexts[-1]].all_images]
        reduced = [size for size in sizes if reduced_size(*size, encoder.max_pixels) != size]
        parts = [f"{encoder.picture_tokens(prompt):,} under {name}" for name, prompt in prompts.items()]
        note = f"; {len(reduced)} reduced to {encoder.max_pixels:,} pixels (models.max_pixels)" if reduced else ""
        costs[example.id] = f"{', '.join(parts)}{note}"
    return costs
