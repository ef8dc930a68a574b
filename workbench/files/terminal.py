"""Remove escapes from terminal output: text of data, models and run files may control a terminal or reverse text.

`clean_output` wraps stdout and stderr of a command, so that all of its output is cleaned, including progress bars and
logs.
"""

import contextlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from io import TextIOBase

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, format, surrogate, private, line and paragraph separators
_JOINERS = "\u200c\u200d"  # parts of words and emoji
_BAR = re.compile(r"(?:\r|\n|\x1b\[A)*")  # moves a progress bar to its line
_COLOR = re.compile(r"\x1b\[(?:0|[34]8;2;\d+;\d+;\d+)m")


def visible_sign(sign: str) -> str:
    """Escape a character that could hide text, reverse its direction or control a terminal."""
    if unicodedata.category(sign) in _HIDDEN and sign not in _JOINERS:
        return f"\\u{ord(sign):04x}"
    return sign


def clean(text: str) -> str:
    """Escape all non-printing characters of a text except line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(sign if sign in "\n\t" else visible_sign(sign) for sign in text.replace("\r\n", "\n"))


def clean_but_colors(text: str) -> str:
    """Clean a text but keep our own colors. Quoted parts must be cleaned before they are colored."""
    kept = _COLOR.findall(text)
    parts = [clean(part) for part in _COLOR.split(text)]
    return "".join(part + color for part, color in zip(parts, [*kept, ""], strict=True))


class CleanStream:
    """Text stream that cleans its input and otherwise behaves like the wrapped stream.

    bars  whether a write may start with the codes that move a progress bar to its line
    """

    def __init__(self, stream: TextIOBase, *, bars: bool = False) -> None:
        self.stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        start = _BAR.match(text)[0] if self._bars else ""
        self.write_raw(start + clean(text[len(start) :]))
        return len(text)

    def write_raw(self, text: str) -> None:
        """Write a clean text. Escapes characters that the stream's encoding lacks."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextlib.contextmanager
def clean_output() -> Iterator[None]:
    """Clean stdout and stderr within the context."""
    before = sys.stdout, sys.stderr
    sys.stdout = CleanStream(sys.stdout)  # type: ignore[arg-type, assignment]
    sys.stderr = CleanStream(sys.stderr, bars=True)  # type: ignore[arg-type, assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_colored(text: str) -> None:
    """Print a text with our own colors."""
    text = clean_but_colors(text)
    if isinstance(sys.stdout, CleanStream):
        sys.stdout.write_raw(text + "\n")
    else:
        sys.stdout.write(text + "\n")
