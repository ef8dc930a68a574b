"""A byte that is not the one that was written is found before a number is read."""

import os
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from workbench.errors import TraceError
from workbench.traces import checksums, parts
from workbench.traces.parts import compact
from workbench.traces.reader import open_traces
from workbench.traces.writer import TraceWriter

TABLES = ("tokens", "rollouts", "aggregates")


def write(folder: Path, make_batch, steps: int = 3) -> None:
    writer = TraceWriter(folder, method="dopd", policy_text=str)
    for step in range(steps):
        writer.write(make_batch(step, top=2))


def flip(file: Path, position: int, bit: int = 0x10) -> bytes:
    """Change one bit of a file; returns what it was."""
    raw, state = file.read_bytes(), file.stat()
    file.write_bytes(raw[:position] + bytes([raw[position] ^ bit]) + raw[position + 1 :])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))  # a clock may be too coarse to tell
    return raw


def read(folder: Path, tables: tuple[str, ...] = TABLES) -> list:
    traces = open_traces(folder)
    return [traces.sql(f"SELECT * FROM {table} ORDER BY ALL").to_pylist() for table in tables]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("merged", [False, True])
def test_checksum_any_flipped_byte_raises(tmp_path: Path, make_batch, table: str, merged: bool) -> None:
    write(tmp_path, make_batch)
    if merged:
        compact(tmp_path)
    before = read(tmp_path)
    file = next(iter(sorted((tmp_path / "traces" / table).glob("*.parquet"))))
    size = file.stat().st_size
    for position in {*range(0, size, max(1, size // 80)), *range(size - 12, size)} - set(
        range(4)
    ):  # PAR1 holds no number
        raw = flip(file, position, 1 << position % 8)
        with pytest.raises(TraceError, match=rf"{file.name} cannot be read: it is truncated or damaged.*copy it again"):
            read(tmp_path, (table,))
        file.write_bytes(raw)
    assert read(tmp_path) == before


def test_checksums_are_crc_32_of_rows_and_footer(tmp_path: Path, make_batch) -> None:
    write(tmp_path, make_batch, steps=1)
    file = next((tmp_path / "traces" / "tokens").iterdir())
    raw, sums = file.read_bytes(), pq.read_metadata(file).metadata[b"workbench.crc32"]
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    assert int(sums[:8], 16) == zlib.crc32(raw[:start])
    assert int(sums[8:], 16) == zlib.crc32(raw[start:-8].replace(sums, b"0" * 16))


def test_checksum_is_computed_once_per_file(tmp_path: Path, make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, make_batch)
    checked = []
    monkeypatch.setattr(checksums, "check_rows", checked.append)
    open_traces(tmp_path).sql("SELECT count(*) FROM tokens")
    assert len(checked) == 3
    open_traces(tmp_path).sql("SELECT count(*) FROM tokens")
    assert len(checked) == 3
    flip(checked[0], 100)
    open_traces(tmp_path).sql("SELECT count(*) FROM tokens")
    assert checked[3:] == checked[:1]


def test_checksum_missing_pages_are_checked(tmp_path: Path, make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(parts, "ENTRIES", {})
        older.setattr(parts, "seal", lambda file: None)
        write(tmp_path, make_batch)
    before = read(tmp_path)
    file = min((tmp_path / "traces" / "tokens").iterdir())
    raw, refused = file.read_bytes(), 0
    rows = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")  # their footers are checked by nothing
    for index in range(4, rows, rows // 40):
        flip(file, index)
        try:
            assert read(tmp_path) == before  # a byte of a page's header that says nothing
        except TraceError as error:
            assert f"{file.name} cannot be read: it is truncated or damaged" in str(error)
            refused += 1
        file.write_bytes(raw)
    assert refused >= 30
