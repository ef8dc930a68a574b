"""Limit the folders and the memory of a dataset's images, before any image is decoded.

The page passes `folders` to its own readers, and to processes that it starts in the variable PICTURE_FOLDERS. A data
file from elsewhere can then show only images beside itself, not other files of this machine.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from workbench.data.images import UNREADABLE
from workbench.errors import DataError
from workbench.types import Example

PICTURE_FOLDERS = "WORKBENCH_PICTURE_FOLDERS"  # a JSON list of folders; unset = anywhere


class TooManyPicturesError(DataError):
    """The embedded images of a dataset exceed the memory limit. num_rows: number of rows that fit."""

    def __init__(self, message: str, num_rows: int) -> None:
        super().__init__(message)
        self.num_rows = num_rows


def allowed_folders() -> tuple[Path, ...] | None:
    """Return the folders, besides the data file's own, from which this process may read images; None = any."""
    text = os.environ.get(PICTURE_FOLDERS)
    return None if text is None else tuple(Path(folder) for folder in json.loads(text))


def as_variable(folders: Sequence[Path]) -> dict[str, str]:
    """Return the environment variable that restricts a process to these folders."""
    return {PICTURE_FOLDERS: json.dumps([str(folder.resolve()) for folder in folders])}


class PictureBounds:
    """Check the images of one dataset, row by row.

    name       name of the dataset, for messages
    base       folder for relative paths
    folders    further allowed folders; None = those of this process
    max_bytes  limit of all embedded images, decoded
    """

    def __init__(self, name: str, base: Path, folders: Sequence[Path] | None, max_bytes: int) -> None:
        folders = allowed_folders() if folders is None else folders
        self._name, self._base, self._max_bytes = name, base, max_bytes
        self._roots = None if folders is None else [base.resolve(), *(folder.resolve() for folder in folders)]
        self._total_bytes = self._num_rows = 0

    def check_row(self, values: dict[str, Any], origin: str, number: int) -> None:
        """Check a row before its images are read. Follows links and "..". Raises TooManyPicturesError or DataError."""
        self._total_bytes += embedded_bytes(values)
        if self._total_bytes > self._max_bytes:
            raise TooManyPicturesError(
                f"{self._name} holds more than {self._max_bytes / 2**30:.3g} GiB of embedded images by row {number}. "
                f"Run `workbench import {self._name} FOLDER`, which writes image files, or set a limit.",
                self._num_rows,
            )
        self._num_rows += 1
        for entry in _pictures(values) if self._roots is not None else ():
            name = entry.get("path") if isinstance(entry, dict) and not entry.get("bytes") else entry
            if isinstance(name, str):
                self._check_file(self._base / name.removeprefix("file://"), name, origin)

    def check_files(self, example: Example) -> None:
        """Check the image files of an example."""
        revealed = [image for turn in example.turns for image in turn.images]
        for picture in (*example.images, *example.evidence.crops, *revealed):
            if isinstance(picture, Path):
                self._check_file(picture, str(picture), example.origin)

    def _check_file(self, file: Path, name: str, origin: str) -> None:
        if self._roots is None:
            return
        try:
            target = file.resolve()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have
            return
        if not any(target.is_relative_to(root) for root in self._roots):
            raise DataError(
                f'{origin}: image "{name[:200]}" is outside {self._roots[0]}. The page reads images beside their data '
                "file and in allowed folders. Allow one with workbench app --allow-dir FOLDER."
            )


def embedded_bytes(values: dict[str, Any]) -> int:
    """Return the decoded size of a row's embedded images in bytes, 3 per pixel, from their headers only.

    Unreadable images count as 0: reading them raises an error later.
    """
    total = 0
    for entry in _pictures(values):
        data = entry.get("bytes") if isinstance(entry, dict) else entry
        try:
            if isinstance(data, bytes):
                with Image.open(io.BytesIO(data)) as image:
                    total += 3 * image.width * image.height
            elif isinstance(data, Image.Image):
                total += 3 * data.width * data.height
        except (DataError, *UNREADABLE):
            continue
    return total


def _pictures(values: dict[str, Any]) -> Iterator[Any]:
    """Yield the raw values of a row's image columns: names, records of bytes or path, images."""
    turns = values.get("turns")
    crop = values.get("crop")
    lists = [values.get("images"), crop if isinstance(crop, list | tuple) else [crop]]
    lists += [turn.get("images") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    for pictures in lists:
        if isinstance(pictures, list | tuple):
            yield from pictures
