"""Resolve the image in a value of a row: bytes, base64 text, data URIs, file URIs, or a path."""

import base64
import binascii
import re
import zipfile
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

_KEYS = ("path", "url", "image_url", "image", "uri", "file_name", "filename")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{60,}={0,2}\s*")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")  # PNG, JPEG, GIF, WebP, BMP, TIFF
_ZIP_MEMBER = re.compile(r"zip://(.+)::((?!\w+://).+)")  # how `datasets` names images in a zip file
_MOST_DEPTH = 3
_MOST_MEMBER = 256 * 2**20  # bytes of an unpacked image


class NotAPicture(ValueError):
    """A value that is not an image, with a short description, the allowed values and a remedy."""

    def __init__(self, what: str, remedy: str, allowed: str = "must be a picture that can be read") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.allowed = allowed


def resolve_picture(value: Any, depth: int = 0) -> bytes | str:
    """Return the bytes of an embedded image or the path of a file, without decoding or opening it.

    Raises: NotAPicture for web addresses, unreadable archives, and values that are neither bytes nor text.
    """
    if isinstance(value, bytes | bytearray):
        if not value:
            raise NotAPicture("an embedded image has no bytes", "Fill it in, or drop the row")
        return bytes(value)
    if isinstance(value, dict) and depth < _MOST_DEPTH:
        data = value.get("bytes")
        if isinstance(data, str) and data:
            data = _decode_base64(data)
        if data:
            return resolve_picture(data, depth + 1)
        named = next((value[key] for key in _KEYS if value.get(key) not in (None, "")), None)
        return resolve_picture(named, depth + 1)
    if not isinstance(value, str) or not value:
        raise NotAPicture(
            "an image is neither a path nor embedded",
            "Give a PNG or JPEG file, its bytes, or a data URI",
            "must be an image path or an embedded image",
        )
    return _resolve_text(value)


def _resolve_text(text: str) -> bytes | str:
    if text[:5].lower() == "data:":
        return _decode_data_uri(text)
    if text[:5].lower() == "file:":
        return _file_path(text)
    if member := _ZIP_MEMBER.fullmatch(text):
        return _read_member(*member.groups())
    if "://" in text:
        if "::" in text:
            raise NotAPicture("an image lies in an archive; unpack it first", "Give the path of the unpacked file")
        raise NotAPicture(
            "an image is a web address; download it first",
            "Download the image",
            "must be a local file, not a web address",
        )
    if _BASE64.fullmatch(text):
        data = _decode_base64(text, strict=False)
        if data.startswith(_MAGIC):
            return data
    return text


def _decode_data_uri(uri: str) -> bytes:
    head, comma, text = uri.partition(",")
    if not comma:
        raise NotAPicture("a data URI has no comma", "Write data:image/png;base64,...")
    data = _decode_base64(text) if head.lower().endswith(";base64") else unquote_to_bytes(text)
    if not data:
        raise NotAPicture("an embedded image has no bytes", "Fill it in, or drop the row")
    return data


def _decode_base64(text: str, *, strict: bool = True) -> bytes:
    """Decode base64 text, also of the URL alphabet, with or without line breaks and padding."""
    compact = "".join(unquote(text).split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        if strict:
            raise NotAPicture("an embedded image is not valid base64", "Encode it again") from None
        return b""


def _file_path(uri: str) -> str:
    """Return the path of file:///path, file://localhost/path or file:path."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise NotAPicture("a file URI cannot be read", "Give the path itself") from None
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise NotAPicture("a file URI names another machine, or no path", "Write file:///path, or the path itself")
    return unquote(parts.path)


def _read_member(name: str, archive: str) -> bytes:
    """Read an image from a local zip file."""
    try:
        with zipfile.ZipFile(archive) as opened:
            if opened.getinfo(name).file_size > _MOST_MEMBER:
                raise NotAPicture("an image in an archive is larger than 256 MiB", "Unpack the archive first")
            return opened.read(name)
    except (KeyError, OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, NotAPicture):
            raise
        raise NotAPicture("an image lies in an archive that cannot be read", "Unpack it first") from None
