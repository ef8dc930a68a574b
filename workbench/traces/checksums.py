"""Checksums of a trace's Parquet files: CRC-32 of the rows and of the footer, stored in the footer.

Parquet itself has only page checksums, which DuckDB ignores. A file is written with zeros as checksums, which `seal`
replaces. The footer is checked whenever it is read; the rows once per file and process, before the first query. Files
of older versions have no such checksums; pyarrow checks their pages.
"""

import functools
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import TraceError

# metadata of a footer: checksums of rows and footer in hexadecimal, and a mark that the file has them
ENTRIES = {"workbench.crc32": 16 * "0", "workbench.is_sealed": "true"}
_KEY, _DIGITS = b"workbench.crc32\x18\x10", 16  # in Thrift's compact protocol: key, field 2, length
_IS_SEALED = b"workbench.is_sealed"
_TAIL = 8  # bytes after a footer: its length and PAR1
_CHUNK = 2**20
_MOST_KNOWN = 2**14  # files


class _Damaged(ValueError):
    """A damaged file, with the reason."""


def seal(file: Path) -> None:
    """Write the checksums into a file that has ENTRIES in its footer."""
    with file.open("rb+") as stream:
        start, footer = _footer(stream)
        offset = footer.find(_KEY)
        assert offset >= 0, "the file was written without ENTRIES"
        offset += len(_KEY)
        sums = f"{_crc_of_rows(stream, start):08x}{zlib.crc32(footer):08x}"
        stream.seek(start + offset)
        stream.write(sums.encode())


def check_footer(file: Path) -> None:
    """Check a file's footer. Raises TraceError if it is damaged, FileNotFoundError if the file was merged away."""
    try:
        with file.open("rb") as stream:
            _, footer = _footer(stream)
            if (sums := _sums(footer)) is not None:
                zeros = footer.replace(_KEY + sums, _KEY + b"0" * _DIGITS)
                if zlib.crc32(zeros) != int(sums[8:], 16):
                    raise _Damaged("its footer does not match its checksum")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise torn(file, error) from error


def check_rows_once(files: Iterable[Path]) -> None:
    """Check the rows of files, skipping files that were checked and have not changed."""
    for file in files:
        state = file.stat()
        _check_rows(file, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(_MOST_KNOWN)
def _check_rows(file: Path, *_state: int) -> None:
    check_rows(file)


def check_rows(file: Path) -> None:
    """Check a file's rows. Raises TraceError if they are damaged, FileNotFoundError if the file was merged away."""
    check_footer(file)
    try:
        with file.open("rb") as stream:
            start, footer = _footer(stream)
            sums = _sums(footer)
            if sums is not None and _crc_of_rows(stream, start) != int(sums[:8], 16):
                raise _Damaged("its rows do not match their checksum")
        if sums is None:
            for _ in pq.ParquetFile(file, page_checksum_verification=True).iter_batches():
                pass
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise torn(file, error) from error


def has_checksums(file: Path) -> bool:
    """Return whether a file has checksums in its footer; files of older versions have none."""
    with file.open("rb") as stream:
        return _sums(_footer(stream)[1]) is not None


def torn(file: Path, error: Exception) -> TraceError:
    """Build the error for a truncated or damaged file."""
    return TraceError(
        f"{file} cannot be read: it is truncated or damaged ({str(error)[:200].strip()}). Delete this file to "
        "read the other steps, or copy it again from an intact copy."
    )


def _footer(stream) -> tuple[int, bytes]:
    """Return the offset and bytes of a file's footer. Raises _Damaged if the file does not end like Parquet."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    tail = stream.read(_TAIL)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size - _TAIL:
        raise _Damaged("it does not end like a Parquet file")
    start = size - _TAIL - length
    stream.seek(start)
    return start, stream.read(length)


def _sums(footer: bytes) -> bytes | None:
    """Return the checksums in a footer; None in a file of an older version. Raises _Damaged if they are invalid."""
    offset = footer.find(_KEY)
    if offset < 0:
        if _IS_SEALED in footer:
            raise _Damaged("its checksums are missing")
        return None
    sums = footer[offset + len(_KEY) :][:_DIGITS]
    if len(sums) < _DIGITS or sums.strip(b"0123456789abcdef"):
        raise _Damaged("its checksums are not numbers")
    return sums


def _crc_of_rows(stream, end: int) -> int:
    """Compute the CRC-32 of the bytes before the footer."""
    stream.seek(0)
    crc, left = 0, end
    while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc
