"""Convert the folder of a run that the former version of the workbench wrote: `workbench upgrade RUN`.

This is the only reader of former files. It renames configuration keys (config.yaml, run.json), tables and columns of
traces, and fields of stored rollouts; values stay as they are. Files are replaced one by one, config.yaml last, so an
interrupted conversion is completed by the same command.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from workbench.config.renamed import upgrade_config
from workbench.config.schema import known_keys
from workbench.errors import RunError
from workbench.files.atomic import write_text
from workbench.files.folders import saving
from workbench.files.parsing import dump_yaml, read_object, read_yaml
from workbench.runs.folder import RunFolder
from workbench.traces.parts import traces_folder, write_part
from workbench.traces.schema import HEADER_KEY, VERSION, decode_fields, decode_header

FORMER = 5  # version of the traces that are converted
TABLES = {
    "rollouts": "rollouts",
    "positions": "tokens",
    "cells": "aggregates",
    "probe_rollouts": "probe_rollouts",
    "probe_positions": "probe_tokens",
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
}
PREFIXES = {"alternatives_": "top_k_"}  # of columns with the name of a view
ROLLOUT_FIELDS = {"facts": "annotations"}


@dataclass(frozen=True)
class Upgrade:
    """What a conversion changed: files of traces, and other files by name."""

    num_trace_files: int
    files: tuple[str, ...]


def upgrade_run(path: str | Path) -> Upgrade:
    """Convert a run's folder in place. A folder of this version stays as it is.

    Raises: RunError if the folder is not a run, is being trained, or was written before the former version.
    """
    folder = RunFolder.open(path)
    with folder.claim():
        num_trace_files = sum(
            _upgrade_table(traces_folder(folder.path) / old, traces_folder(folder.path) / new)
            for old, new in TABLES.items()
        )
        stored = [*sorted(folder.path.glob("sequences*.jsonl")), folder.path / "probes.json"]
        rewritten = [file.name for file in stored if file.is_file() and _rewrite(file, _upgrade_rollouts)]
        rewritten += [
            name
            for name, convert in (("run.json", _upgrade_status), ("config.yaml", _upgrade_yaml))
            if _rewrite(folder.path / name, convert)
        ]
    return Upgrade(num_trace_files, tuple(rewritten))


def _upgrade_table(old: Path, new: Path) -> int:
    """Convert the files of one table; returns their number."""
    converted = 0
    for file in sorted(old.glob("*.parquet")):
        metadata = pq.read_metadata(file).metadata or {}
        version = _version_of(metadata, file)
        if version == VERSION:
            continue
        if version != FORMER:
            raise RunError(
                f"{file} has trace version {version}. Expected {FORMER}, the only one that can be converted. "
                "Read it with "
                "the version of the workbench that wrote it (commit in run.json)."
            )
        header = decode_fields(json.loads(metadata[HEADER_KEY.encode()]))
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
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    converted = [json.dumps(_rename_fields(json.loads(line)), ensure_ascii=False) for line in lines]
    unchanged = [json.loads(line) for line in lines] == [json.loads(line) for line in converted]
    return text if unchanged else "".join(f"{line}\n" for line in converted)


def _rename_fields(value: object) -> object:
    if isinstance(value, list):
        return [_rename_fields(entry) for entry in value]
    if isinstance(value, dict):
        return {ROLLOUT_FIELDS.get(name, name): _rename_fields(entry) for name, entry in value.items()}
    return value


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
