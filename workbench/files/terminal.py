"""What reaches a terminal: text of data, models and run files may hold escapes that drive it, or turn its direction.

`clean_output` wraps stdout and stderr of a command, so that everything it prints, progress bars and logs included, is cleaned there.
"""

import contextlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from io import TextIOBase

_HIDDEN = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
)  # control, format, half of a character, private, line and paragraph separators
_JOINERS = "\u200c\u200d"  # part of words and of emoji
_BAR = re.compile(r"(?:\r|\n|\x1b\[A)*")  # how a progress bar finds its line
_COLOR = re.compile(r"\x1b\[(?:0|[34]8;2;\d+;\d+;\d+)m")


def visible_sign(sign: str) -> str:
    """A sign that could hide text, turn its direction or drive a terminal as its escape; every other as it is."""
    if unicodedata.category(sign) in _HIDDEN and sign not in _JOINERS:
        return f"\\u{ord(sign):04x}"
    return sign


def clean(text: str) -> str:
    """The text as a terminal may show it: line ends and tabs stay, other signs that do not print are escapes."""
    if text.isprintable():
        return text
    return "".join(sign if sign in "\n\t" else visible_sign(sign) for sign in text.replace("\r\n", "\n"))


def clean_but_colors(text: str) -> str:
    """As `clean`, for a text that we colored: its colors stay. What it quotes is cleaned before it is colored."""
    kept = _COLOR.findall(text)
    parts = [clean(part) for part in _COLOR.split(text)]
    return "".join(part + color for part, color in zip(parts, [*kept, ""], strict=True))


class CleanStream:
    """A text stream that cleans what is written to it; in all else the stream that it wraps.

    bars  a write may begin with what moves a progress bar to its line
    """

    def __init__(self, stream: TextIOBase, *, bars: bool = False) -> None:
        self.stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        start = _BAR.match(text)[0] if self._bars else ""
        self.write_raw(start + clean(text[len(start) :]))
        return len(text)

    def write_raw(self, text: str) -> None:
        """A text that is clean already. Signs that the stream's encoding lacks are escapes."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextlib.contextmanager
def clean_output() -> Iterator[None]:
    """stdout and stderr are cleaned meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout = CleanStream(sys.stdout)  # type: ignore[assignment]
    sys.stderr = CleanStream(sys.stderr, bars=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_colored(text: str) -> None:
    """Print a text that we colored."""
    text = clean_but_colors(text)
    if isinstance(sys.stdout, CleanStream):
        sys.stdout.write_raw(text + "\n")
    else:
        sys.stdout.write(text + "\n")
