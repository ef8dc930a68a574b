"""Convert images of foreign rows to paths: of the source's own file, or of a newly written one."""

import hashlib
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.data.conversations import Refused
from workbench.data.embedded import NotAPicture, resolve_picture
from workbench.data.examples import decode_image, image_size
from workbench.errors import DataError, show

IMAGES_FOLDER = "images"
_MOST_ARCHIVES = 20  # number of zip files beside the data that are searched for a missing file


def store_picture(picture: Any, folder: Path, target: Path) -> str:
    """Return the path of an image for the converted row.

    folder  folder for relative paths
    target  destination; an embedded image is written once to its images/, under its digest
    Raises  Refused if the value is not an image, does not exist or cannot be read
    """
    try:
        resolved = resolve_picture(picture)
    except NotAPicture as error:
        raise Refused(error.what, show(picture)) from None
    if isinstance(resolved, bytes):
        return _store_embedded(resolved, target)
    full = folder / resolved
    if not os.path.isfile(full):
        raise Refused("image file does not exist", show(str(full)) + _archive_hint(folder, resolved))
    picture_size(full)
    if Path(resolved).is_absolute():
        return resolved
    return os.path.relpath(os.path.realpath(full), os.path.realpath(target))


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels. Raises Refused if the file is not an image."""
    try:
        return image_size(path)
    except DataError as error:
        raise Refused("image cannot be read", str(error)) from None


def _store_embedded(data: bytes, target: Path) -> str:
    name = f"{IMAGES_FOLDER}/{hashlib.sha256(data).hexdigest()[:20]}.png"
    if not (target / name).is_file():
        try:
            image = decode_image(data)
        except DataError as error:
            raise Refused("image cannot be read", str(error)) from None
        image.save(target / name)
    return name


def _archive_hint(folder: Path, path: str) -> str:
    """Name the zip file beside the data that contains a missing file, as the end of a sentence."""
    name = os.path.basename(path)
    holder = next((archive.name for archive, names in _archives(folder) if name in names), None)
    return f"; {holder} beside the data holds it: unpack it there first" if holder else ""


@lru_cache(maxsize=8)
def _archives(folder: Path) -> list[tuple[Path, frozenset[str]]]:
    """List the zip files of a folder with the names of their files."""
    archives = []
    for path in sorted(folder.glob("*.zip"))[:_MOST_ARCHIVES]:
        try:
            with zipfile.ZipFile(path) as archive:
                archives.append((path, frozenset(os.path.basename(name) for name in archive.namelist())))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            continue
    return archives
