"""Convert the folder of a run that a former version of the workbench wrote: `workbench upgrade RUN`.

This is the only reader of former files. It renames configuration keys (config.yaml, run.json), tables and columns of
traces, metrics, and fields of stored rollouts and answers; values stay as they are. Files are replaced one by one,
config.yaml last, so an interrupted conversion is completed by the same command.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from workbench.config.renamed import upgrade_config
from workbench.config.schema import known_keys
from workbench.errors import RunError
from workbench.files.atomic import replacing, write_text
from workbench.files.folders import saving
from workbench.files.parsing import dump_yaml, read_object, read_yaml
from workbench.runs.folder import RunFolder
from workbench.traces.parts import traces_folder, write_part
from workbench.traces.schema import HEADER_KEY, VERSION, decode_fields, decode_header

FORMER = (5, 6)  # versions of the traces that are converted
TABLES = {
    "rollouts": "rollouts",
    "positions": "tokens",
    "cells": "aggregates",
    "probe_rollouts": "probe_rollouts",
    "probe_positions": "probe_tokens",
    "tokens": "tokens",
    "aggregates": "aggregates",
    "probe_tokens": "probe_tokens",
}
COLUMNS = {
    "opening": "completion_preview",
    "source_policy": "sampled_by",
    "facts": "annotations",
    "coefficient": "loss_normalizer",
    "loss_size": "abs_loss",
    "capability_size": "abs_capability_gap",
    "information_size": "abs_information_gap",
    "num_information": "num_information_dominated",
    "information_loss_size": "information_dominated_abs_loss",
    "kind": "token_type",
    "kinds": "token_types",
    "truth": "visibility",
    "truths": "visibilities",
}
PREFIXES = {"alternatives_": "top_k_"}  # of columns with the name of a view
REGIME_FIELDS = {"source": "target"}
ROLLOUT_FIELDS = {"facts": "annotations", "source": "sampled_by"}
RECORD_FIELDS = {"truth": "visibility"}
METRICS = {
    "sampler_gap": "sampler_logprob_gap",
    "agreement": "duplicate_rate",
    "weights_moved": "updated_weight_fraction",
    "skipped": "skipped_total",
    "capability_gap_abs": "abs_capability_gap",
    "information_gap_abs": "abs_information_gap",
    "seconds/write": "seconds/sample",
    "seconds/read": "seconds/score",
    "fact": "annotation",
}


@dataclass(frozen=True)
class Upgrade:
    """What a conversion changed: files of traces, and other files by name."""

    num_trace_files: int
    files: tuple[str, ...]


def upgrade_run(path: str | Path) -> Upgrade:
    """Convert a run's folder in place. A folder of this version stays as it is.

    Raises: RunError if the folder is not a run, is being trained, or was written before version 5.
    """
    folder = RunFolder.open(path)
    with folder.claim():
        num_trace_files = sum(
            _upgrade_table(traces_folder(folder.path) / old, traces_folder(folder.path) / new)
            for old, new in TABLES.items()
        )
        files = [
            *((file, _upgrade_rollouts) for file in sorted(folder.path.glob("sequences*.jsonl"))),
            (folder.path / "probes.json", _upgrade_rollouts),
            *((file, _upgrade_records) for file in sorted(folder.path.glob("evals/step-*.jsonl"))),
            (folder.path / "metrics.jsonl", _upgrade_metrics),
            (folder.path / "run.json", _upgrade_status),
            (folder.path / "config.yaml", _upgrade_yaml),
        ]
        rewritten = [file.name for file, convert in files if file.is_file() and _rewrite(file, convert)]
        rewritten += [file.name for file in folder.path.glob("questions.parquet") if _upgrade_questions(file)]
    return Upgrade(num_trace_files, tuple(rewritten))


def _upgrade_table(old: Path, new: Path) -> int:
    """Convert the files of one table; returns their number."""
    converted = 0
    for file in sorted(old.glob("*.parquet")):
        metadata = pq.read_metadata(file).metadata or {}
        version = _version_of(metadata, file)
        if version == VERSION:
            continue
        if version not in FORMER:
            raise RunError(
                f"{file} has trace version {version}. Expected {FORMER[0]} or {FORMER[1]}. Read it with the version of "
                "the workbench that wrote it (commit in run.json)."
            )
        fields = json.loads(metadata[HEADER_KEY.encode()])
        fields["regimes"] = {name: _rename(regime, REGIME_FIELDS) for name, regime in fields["regimes"].items()}
        header = decode_fields(fields)
        table = pq.read_table(file)
        write_part(new / file.name, table.rename_columns([_column(name) for name in table.column_names]), header)
        if old != new:
            file.unlink()
        converted += 1
    if old != new and old.is_dir() and not any(old.iterdir()):
        old.rmdir()
    return converted


def _version_of(metadata: dict[bytes, bytes], file: Path) -> int:
    try:
        return int(json.loads(metadata[HEADER_KEY.encode()])["version"])
    except (KeyError, ValueError, TypeError):
        decode_header(metadata, file)  # raises an error that names the file
        raise


def _column(name: str) -> str:
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return COLUMNS.get(name, name)


def _rewrite(file: Path, convert: Callable[[Path], str]) -> bool:
    """Replace a file by its conversion, atomically; returns whether that changed it."""
    text = convert(file)
    if text == file.read_text(encoding="utf-8"):
        return False
    with saving(file):
        write_text(file, text)
    return True


def _upgrade_rollouts(file: Path) -> str:
    return _rename_lines(file, ROLLOUT_FIELDS)


def _upgrade_records(file: Path) -> str:
    return _rename_lines(file, RECORD_FIELDS)


def _upgrade_metrics(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    for old, new in METRICS.items():
        text = re.sub(rf'"((?:[^"/]+/)?){old}(?=[/"])', rf'"\1{new}', text)  # a peer's metrics begin with its name
    return text


def _rename_lines(file: Path, names: Mapping[str, str]) -> str:
    """Rename fields in a JSON file, or in every line of a .jsonl file."""
    text = file.read_text(encoding="utf-8")
    lines = text.split("\n") if file.suffix == ".jsonl" else [text]
    return "\n".join(_rename_line(line, names) for line in lines)


def _rename_line(line: str, names: Mapping[str, str]) -> str:
    """The line itself if it has none of the fields, or is empty or incomplete, as the last one may be."""
    try:
        value = json.loads(line)
    except ValueError:
        return line
    converted = _rename(value, names)
    return line if converted == value else json.dumps(converted, ensure_ascii=False)


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_rename(entry, names) for entry in value]
    if isinstance(value, dict):
        return {names.get(name, name): _rename(entry, names) for name, entry in value.items()}
    return value


def _upgrade_questions(file: Path) -> bool:
    """Rename the columns of a study's answers; returns whether that changed the file."""
    table = pq.read_table(file)
    names = [RECORD_FIELDS.get(name, name) for name in table.column_names]
    if names != table.column_names:
        with saving(file), replacing(file) as temporary:
            pq.write_table(table.rename_columns(names), temporary, compression="zstd")
    return names != table.column_names


def _upgrade_status(file: Path) -> str:
    status = read_object(file)
    config = status.get("config")
    if not isinstance(config, dict) or upgrade_config(config, known_keys(config)) == config:
        return file.read_text(encoding="utf-8")
    return json.dumps({**status, "config": upgrade_config(config, known_keys(config))}, indent=1)


def _upgrade_yaml(file: Path) -> str:
    values = read_yaml(file)
    upgraded = upgrade_config(values, known_keys(values))
    return file.read_text(encoding="utf-8") if upgraded == values else dump_yaml(upgraded)
