"""Parquet files of a trace: names, precedence of rows, merging and deletion.

1. `step-000012-rank-0.parquet` holds one step of one process; `merged-000001.parquet` holds many, listed in its header.
2. Writes are atomic: a file is written under a name that starts with a dot and then renamed.
3. If two files hold the same step of the same process, a step file precedes merged ones, and a later merged file an
   earlier one. Merging adds the merged file, then deletes the step files, so every row counts once after any kill.
4. Rollouts are written after their positions and deleted before them, so a visible rollout has all its positions.
"""

import os
import re
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workbench.errors import TraceError
from workbench.files.atomic import replacing
from workbench.traces.checksums import ENTRIES, check_footer, check_rows, seal, torn
from workbench.traces.schema import PROBE, Header, decode_header, merge_headers

WRITE_ORDER = ("tokens", "aggregates", "rollouts", PROBE + "tokens", PROBE + "rollouts")
SMALL_BYTES = 2**20  # larger step files are not merged: it gains nothing and needs much memory
_STEP_FILE = re.compile(r"step-(\d+)-rank-(\d+)\.parquet")
_MERGED_FILE = re.compile(r"merged-(\d+)\.parquet")
_POSITION_ROWS, _OTHER_ROWS = 2**15, 2**12  # per row group, the smallest unit of a read
# columns that filters scan; lz4 is read in half the time of zstd
_SCANNED = ("step", "process_rank", "rollout_idx", "regime", "visibility", "token_type", "logprob_")
_MEASURED = ("logprob_", "min_", "max_", "sampler_logprob", "loss")  # columns with few repeated values

Pair = tuple[int, int]  # step, process rank


@dataclass(frozen=True)
class TraceFile:
    """A file with its columns, the pairs that it holds, and those of them that a newer file replaces (hidden)."""

    file: Path
    header: Header
    columns: frozenset[str]
    pairs: frozenset[Pair]
    hidden: frozenset[Pair] = frozenset()

    def has(self, steps: Container[int]) -> bool:
        """Whether the file may hold rows of any of these steps."""
        return not self.pairs or any(step in steps for step, _ in self.pairs)


def traces_folder(run_folder: Path) -> Path:
    """Path of the traces of a run."""
    return Path(run_folder) / "traces"


def step_file(folder: Path, step: int, rank: int) -> Path:
    """Path of one step of one process in a table's folder."""
    return folder / f"step-{step:06d}-rank-{rank}.parquet"


def write_part(file: Path, table: pa.Table, header: Header, *, durable: bool = False) -> None:
    """Write a file atomically. durable: also flush it to disk."""
    exact = [field.name for field in table.schema if field.name.startswith(_MEASURED)]
    coded = [path for field in table.schema if field.name not in exact for path in _leaves(field)]
    compression: str | dict[str, str] = "lz4"
    # zstd's set-up takes longer than writing a small step file, which merging rewrites anyway
    if durable or table.nbytes > SMALL_BYTES:
        compression = {name: "lz4" if name.startswith(_SCANNED) else "zstd" for name in (*coded, *exact)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            with pq.ParquetWriter(
                temporary,
                table.schema,
                compression=compression,
                use_dictionary=coded,
                use_byte_stream_split=exact,
                write_statistics=["step", "rollout_idx"],
                write_page_checksum=True,
                store_schema=False,  # would be half of a small file; Parquet's own types suffice
            ) as parquet:
                rows = _POSITION_ROWS if "token_id" in table.column_names else _OTHER_ROWS
                parquet.write_table(table, row_group_size=rows)
                parquet.add_key_value_metadata(header.encode() | ENTRIES)
            seal(temporary)
            if durable:
                _flush(temporary)
    except OSError as error:
        raise TraceError(
            f"{file} cannot be written ({error}). Free some space or check the folder's permissions."
        ) from error


def list_parts(folder: Path, headers: dict | None = None) -> list[TraceFile]:
    """List the files of a table's folder in order of step, with their pairs.

    headers  cache of headers and columns by file
    Raises   TraceError naming a file that cannot be read; FileNotFoundError if a file is merged away meanwhile, so that
             the caller must list again
    """
    headers = {} if headers is None else headers
    parts = []
    for name in _stable_names(folder):
        file = folder / name
        header, columns = _header_of(file, headers)
        pair = _pair_of(name)
        pairs = frozenset({pair} if pair else header.covers)
        parts.append(TraceFile(file, header, columns, pairs))
    parts.sort(key=lambda part: (_number_of(part.file) > 0, -_number_of(part.file)))
    seen: set[Pair] = set()
    counted = []
    for part in parts:
        counted.append(replace(part, hidden=part.pairs & seen))
        seen |= part.pairs
    return sorted(counted, key=lambda part: (min(part.pairs, default=(0, 0)), part.file.name))


def compact(run_folder: Path, *, min_parts: int = 2) -> None:
    """Merge the small step files of each table that has at least `min_parts` of them.

    Safe beside readers and writers of later steps; only one process may compact or delete at a time.
    """
    for table in WRITE_ORDER:
        folder = traces_folder(run_folder) / table
        names = _stable_names(folder)
        small = {
            pair: folder / name for name in names if (pair := _pair_of(name)) and _size(folder / name) <= SMALL_BYTES
        }
        if len(small) < min_parts:
            continue
        covers = tuple(sorted(small))
        headers, tables = zip(*(_read(small[pair]) for pair in covers), strict=True)
        header = replace(merge_headers(list(headers)), covers=covers)
        earlier = [folder / name for name in names if _number_of(folder / name)]
        useless = [file for file in earlier if set(_header_of(file, {})[0].covers) <= small.keys()]
        number = max(map(_number_of, earlier), default=0) + 1
        merged = pa.concat_tables(tables, promote_options="default")
        write_part(folder / f"merged-{number:06d}.parquet", merged, header, durable=True)
        for file in (*small.values(), *useless):
            file.unlink()


def delete_after(run_folder: Path, step: int) -> None:
    """Delete the rows of later steps and the partial files of a killed run.

    For a run that resumes from a checkpoint. Call it in one process, before any writes.
    """
    _delete_hidden(traces_folder(run_folder) / "images")
    for table in reversed(WRITE_ORDER):
        folder = traces_folder(run_folder) / table
        if not folder.is_dir():
            continue
        _delete_hidden(folder)
        for name in _stable_names(folder):
            pair = _pair_of(name)
            if pair and pair[0] > step:
                (folder / name).unlink()
        for part in list_parts(folder):
            kept = tuple(sorted(pair for pair in part.pairs if pair[0] <= step))
            if not kept and part.pairs:
                part.file.unlink()
            elif len(kept) < len(part.pairs):
                _, rows = _read(part.file)
                rows = rows.filter(pc.less_equal(rows["step"], step))
                write_part(part.file, rows, replace(part.header, covers=kept), durable=True)


def _delete_hidden(folder: Path) -> None:
    """Delete files that were being written when the run was killed."""
    for file in folder.glob(".*"):
        if not file.is_file():
            raise TraceError(f"{file} does not belong to a trace. Move it elsewhere.")
        file.unlink()


def _stable_names(folder: Path) -> list[str]:
    """List the names of a table's files until two listings agree, since one may miss a file merged meanwhile."""
    previous = None
    while True:
        try:
            names = sorted(
                name for name in os.listdir(folder) if _STEP_FILE.fullmatch(name) or _MERGED_FILE.fullmatch(name)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        if names == previous:
            return names
        previous = names


def _header_of(file: Path, headers: dict) -> tuple[Header, frozenset[str]]:
    """The header of a file and the names of its columns."""
    state = file.stat()
    key = (str(file), state.st_mtime_ns, state.st_size, state.st_ino)
    if key not in headers:
        check_footer(file)
        try:
            metadata = pq.read_metadata(file)
            columns = frozenset(metadata.schema.to_arrow_schema().names)
            headers[key] = decode_header(metadata.metadata, file), columns
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise torn(file, error) from error
    return headers[key]


def _read(file: Path) -> tuple[Header, pa.Table]:
    check_rows(file)
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        return decode_header(parquet.metadata.metadata, file), parquet.read(use_threads=False)  # faster here
    except (pa.ArrowException, OSError, ValueError) as error:
        raise torn(file, error) from error


def recorded_steps(run_folder: Path) -> dict[str, set[int]]:
    """Return the steps of each table, after checking the checksums of all files.

    Raises: TraceError naming a truncated or damaged file.
    """
    steps = {}
    for table in WRITE_ORDER:
        parts = list_parts(traces_folder(run_folder) / table)
        for part in parts:
            check_rows(part.file)
        steps[table] = {step for part in parts for step, _ in part.pairs}
    return steps


def has_probes(run_folder: Path, step: int) -> bool:
    """Return whether probes of a step were recorded; no file's content is read."""
    parts = list_parts(traces_folder(run_folder) / WRITE_ORDER[-1])
    return any(step == recorded for part in parts for recorded, _ in part.pairs)


def _pair_of(name: str) -> Pair | None:
    """Parse step and process of a step file's name; None for a merged file."""
    match = _STEP_FILE.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def _number_of(file: Path) -> int:
    """Parse the number of a merged file, from 1; 0 for a step file."""
    match = _MERGED_FILE.fullmatch(file.name)
    return int(match[1]) if match else 0


def _size(file: Path) -> int:
    return file.stat().st_size


def _leaves(field: pa.Field, prefix: str = "") -> list[str]:
    """Return Parquet's names of the leaf columns of a field."""
    path, dtype = prefix + field.name, field.type
    if pa.types.is_list(dtype):
        return _leaves(dtype.value_field.with_name("element"), f"{path}.list.")
    if pa.types.is_map(dtype):
        return [f"{path}.key_value.key", f"{path}.key_value.value"]
    if pa.types.is_struct(dtype):
        return [leaf for child in dtype for leaf in _leaves(child, f"{path}.")]
    return [path]


def _flush(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())
