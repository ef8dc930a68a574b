"""Parse numbers in texts: 1,234.5, 1e5, 3/4, 1 1/2, ½, 10^5, 2 × 10³, 1 000 with a narrow space, \\frac{3}{4}.

spell_numbers normalizes their spelling, numbers_in finds them, same_number compares two words.
"""

import re
import unicodedata
from fractions import Fraction

_FRACTIONS = "¼½¾⅐-⅞↉"
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_EXPONENT = re.compile(r"(?<=[\d)])[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_WIDE_GROUPS = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")  # 1 000, not with a plain space
_DASH_AS_MINUS = re.compile(r"(?<![\w)\]%])[\u2010-\u2013\u2212\ufe63\uff0d](?=[\d.])")
_LATEX = (
    (re.compile(r"\\[dtc]?frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"\\([%$#&_])"), r"\1"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree"), "°"),
    (re.compile(r"\\times"), "×"),
    (re.compile(r"\\[,;:!]|\\ "), " "),
)
_SCIENTIFIC = re.compile(r"(\d) ?[×x*·] ?10\^\{?([-+]?\d{1,4})\}?", re.I)
_POWER_OF_TEN = re.compile(r"(?<![\w.,^/])10\^\{?([-+]?\d{1,4})\}?")
_NUMBER = re.compile(
    r"(?<![\w.,/^])[-+]?(?:(?:\d+ (?=\d+/\d))?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?:/\d+)?"
    r"(?!\d|[.,/]\d|\^)"
)
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d*)(?:\.\d+)?(?:e[-+]?\d+)?")  # 007 is a name


def spell_numbers(text: str) -> str:
    """Normalize the numbers of a text: - for dashes, a/b for fractions, a^b for raised digits, ae5 for a × 10^5."""
    if "\\" in text or "{,}" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    if not text.isascii():
        text = _WIDE_GROUPS.sub("", _DASH_AS_MINUS.sub("-", text))
        text = _EXPONENT.sub(lambda match: "^" + "".join(map(_RAISED.get, match.group())), text)
        text = re.sub(f"(?<=\\d)(?=[{_FRACTIONS}])", " ", text)
        text = re.sub(f"[{_FRACTIONS}]", lambda match: unicodedata.normalize("NFKC", match.group()), text)
        text = text.replace("\u2044", "/")
    if "10^" in text:
        text = _POWER_OF_TEN.sub(r"1e\1", _SCIENTIFIC.sub(r"\1e\2", text))
    return text


def numbers_in(text: str) -> list[tuple[int, Fraction]]:
    """List the (start, value) of each number in a lower-case text. Skips expressions such as 1/0 and 2^3."""
    numbers = ((match.start(), to_number(match.group())) for match in _NUMBER.finditer(text))
    return [(start, number) for start, number in numbers if number is not None]


def to_number(digits: str) -> Fraction | None:
    """Return the exact value, or None for 1/0, 1.5/2 and texts that are too long for a number."""
    _, _, exponent = digits.partition("e")
    if len(digits) > 100 or len(exponent) > 4:
        return None
    sign = -1 if digits.startswith("-") else 1
    whole, blank, part = digits.lstrip("+-").replace(",", "").rpartition(" ")
    try:
        return sign * (Fraction(whole) + Fraction(part) if blank else Fraction(part))
    except (ValueError, ZeroDivisionError):
        return None


def same_number(first: str, second: str) -> bool:
    """Whether two words are the same decimal number: 27.0 and 27, 1,000 and 1000, 1e5 and 100000."""
    if not (_DECIMAL.fullmatch(first) and _DECIMAL.fullmatch(second)):
        return False
    value = to_number(first)
    return value is not None and value == to_number(second)
