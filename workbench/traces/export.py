"""Export the traces of a run as a Hugging Face dataset: `datasets.load_dataset(FOLDER, "tokens")`.

    rollouts tokens aggregates probe_rollouts probe_tokens    a configuration each, with the columns of docs/traces.md
    images                                                     every image once: `image`, and its `name` in rollouts

Differences to the run folder: derived columns are stored, maps are lists of {key, value}, and paths of this machine are
removed: images are named by their content, and `origin` is only the name of the file.
"""

import hashlib
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from workbench.files.packages import importing
from workbench.traces.reader import Traces
from workbench.traces.schema import TABLES, document

IMAGES = "images"


def write_dataset(traces: Traces, folder: Path, title: str) -> dict[str, int]:
    """Write every non-empty table and a card below `folder`. Returns the number of rows of each.

    Raises: ConfigError if the package datasets is missing; TraceError if a trace cannot be read.
    """
    with importing("traces as a dataset need", "data"):
        library = importlib.import_module("datasets")
    pictures = _Pictures(traces.folder)
    counts = {}
    for table in TABLES:
        steps = traces.steps(table)
        if steps:
            parts = (_step(traces, table, step, pictures) for step in steps)
            counts[table] = _write(library, folder / table / "train.parquet", parts)
    if pictures.names:
        counts[IMAGES] = _write(library, folder / IMAGES / "train.parquet", pictures.rows(), image="image")
    (folder / "columns.md").write_text(document(), "utf-8")
    (folder / "README.md").write_text(_card(title, traces.method, counts), "utf-8")
    return counts


class _Pictures:
    """Content-based names of the image files in rollouts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, tuple[str, bool]] = {}  # path in the traces -> name, and whether the file exists

    def name(self, path: str | None) -> str | None:
        if path is None:
            return None
        if path not in self.names:
            file = self.folder / path
            data = file.read_bytes() if file.is_file() else None
            digest = hashlib.sha256(data if data is not None else path.encode()).hexdigest()[:20]
            self.names[path] = digest + Path(path).suffix.lower(), data is not None
        return self.names[path][0]

    def rows(self) -> Iterator[pa.Table]:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for name, path in sorted({name: path for path, (name, _) in self.names.items()}.items()):
            data = (self.folder / path).read_bytes() if self.names[path][1] else None
            image = None if data is None else {"bytes": data, "path": name}
            yield pa.table({"name": [name], "image": pa.array([image], kind)})


def _step(traces: Traces, table: str, step: int, pictures: _Pictures) -> pa.Table:
    """Read the rows of one step in order, with paths of this machine replaced by names."""
    fields = traces.sql(f"SELECT * FROM {table} LIMIT 0").schema
    columns = ", ".join(
        f'map_entries("{field.name}") AS "{field.name}"' if pa.types.is_map(field.type) else f'"{field.name}"'
        for field in fields
    )
    order = ", ".join(name for name in ("process_rank", "rollout_idx", "position") if fields.get_field_index(name) >= 0)
    rows = traces.sql(f"SELECT {columns} FROM {table} WHERE step = ?{f' ORDER BY {order}' if order else ''}", [step])
    for idx, field in enumerate(rows.schema):
        values: list | None = None
        if field.name == IMAGES or field.name.startswith(f"{IMAGES}_"):
            values = [None if row is None else [pictures.name(path) for path in row] for row in rows[idx].to_pylist()]
        elif field.name == "evidence_crop":
            values = [pictures.name(path) for path in rows[idx].to_pylist()]
        elif field.name == "origin":
            values = [None if text is None else Path(text).name for text in rows[idx].to_pylist()]
        if values is not None:
            rows = rows.set_column(idx, field, pa.array(values, field.type))
    return rows


def _write(library: Any, file: Path, parts: Iterator[pa.Table], image: str | None = None) -> int:
    """Write the parts to one Parquet file with the features of `datasets`. Returns the number of rows."""
    file.parent.mkdir(parents=True)
    first = next(parts)
    features = library.Features.from_arrow_schema(first.schema)
    if image is not None:
        features[image] = library.Image()
    schema, count = features.arrow_schema, 0
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in itertools.chain([first], parts):
            writer.write_table(part.cast(schema))
            count += part.num_rows
    return count


def _card(title: str, method: str, counts: dict[str, int]) -> str:
    configurations = "".join(
        f"- config_name: {name}\n  data_files: {name}/train.parquet\n"
        + ("  default: true\n" if name == "rollouts" else "")
        for name in counts
    )
    rows = "\n".join(f"| `{name}` | {count:,} |" for name, count in counts.items())
    return f"""---
pretty_name: {title}
tags: [vlm-distillation-workbench, distillation, {method}]
configs:
{configurations}---
# {title}

Traces of a distillation with `{method}`: scores, supervision and loss of every token, written by the VLM distillation
workbench.

| configuration | rows |
|---|---|
{rows}

`datasets.load_dataset(FOLDER, "tokens")["train"]`. Columns, units and meanings: [columns.md](columns.md). Rows of
one answer share `step`, `process_rank` and `rollout_idx`. The configuration `images` holds all images by `name`.
Teachers saw the evidence in these tables; the deployed student never sees it.
"""
