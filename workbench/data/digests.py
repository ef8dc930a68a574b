"""Digests of pictures and files, by which rows and models are compared.

A digest covers size and content; of a file of more than WHOLE_BYTES only the first, middle and last BLOCK_BYTES, so
that 100,000 photos take seconds.
"""

import os
from hashlib import blake2b
from pathlib import Path

from PIL import Image

BLOCK_BYTES = 2**13
WHOLE_BYTES = 2**17
_DIGEST_BYTES = 6


def picture_digest(picture: Image.Image | Path) -> list[object]:
    """Size and digest of an image file, or mode, width, height and digest of an image in memory."""
    if isinstance(picture, Path):
        return file_digest(picture)
    return [picture.mode, *picture.size, digest(picture.tobytes())]


def file_digest(path: Path) -> list[object]:
    """Size in bytes and digest of a file; of one that cannot be read, the reason."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE_BYTES:
                return [size, digest(file.read())]
            blocks = []
            for start in (0, (size - BLOCK_BYTES) // 2, size - BLOCK_BYTES):
                file.seek(start)
                blocks.append(file.read(BLOCK_BYTES))
            return [size, digest(b"".join(blocks))]
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]


def digest(content: bytes) -> str:
    """Short digest of bytes, in hexadecimal digits."""
    return blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
