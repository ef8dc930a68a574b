"""Colors and scales of the page and the terminal. Hues are Okabe and Ito's; text has a contrast of at least 4.5 : 1.

A regime gets a *slot* by its name (DOPD's four) or else by its target: blue is always the teacher, orange the
privileged student, and an empty dashed cell no supervision. Numbers get a *step* of a diverging or a growing scale.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from workbench.render.view import RegimeNote, TokenView

INK_DARK, INK_LIGHT = "#12161b", "#ffffff"


class Fill(NamedTuple):
    """Background on a light and on a dark page, and a CSS pattern, so that color is not the only cue."""

    light: str
    dark: str
    pattern: str = "none"


_HATCH = "repeating-linear-gradient(135deg,rgb(0 0 0/.1) 0 1.5px,transparent 1.5px 6px)"
_DOTS = "radial-gradient(circle at 2px 2px,rgb(128 128 128/.42) .8px,transparent 1.1px) 0 0/6px 6px"
_LINES = "repeating-linear-gradient(0deg,rgb(0 0 0/.14) 0 1px,transparent 1px 5px)"

SLOTS = {
    "teacher-light": Fill("#c9e4f6", "#1d4b6a"),
    "teacher": Fill("#0072b2", "#0072b2"),
    "self-light": Fill("#f9dfa6", "#6a4d0c", _HATCH),
    "self": Fill("#e69f00", "#e69f00", _HATCH),
    "weak": Fill("#e3e3e1", "#44484e", _DOTS),
    "none": Fill("#ffffff", "#1b1f24"),
    "sky": Fill("#56b4e9", "#56b4e9", _LINES),
    "data": Fill("#93d9c3", "#0c5c47", _LINES),
    "reward": Fill("#e58a4e", "#e58a4e", _DOTS),
    "yellow": Fill("#f0e442", "#d9cd2c", _DOTS),
}
_NAMED = {"LH": "teacher-light", "LL": "weak", "HT": "teacher", "HS": "self"}
_BY_TARGET = {
    "none": ("none",),
    "teacher": ("teacher-light", "teacher", "sky"),
    "self": ("self-light", "self"),
    "tokens": ("data",),
    "reward": ("reward",),
}
VISIBILITY = {
    "privileged": Fill("#e3b3ce", "#8d4a70", _HATCH),
    "visible": Fill("#d9ece4", "#1f4f42"),
    "unknown": Fill("#f1f1ef", "#30343a"),
}
DIVERGING = tuple(  # from the most negative to the most positive
    Fill(light, dark)
    for light, dark in [
        ("#c04f00", "#f08f4c"),
        ("#e2843f", "#c06a2c"),
        ("#f3b68c", "#83451b"),
        ("#fae0ce", "#4d301d"),
        ("#f1f1ef", "#30343a"),
        ("#d3e6f4", "#1d3b53"),
        ("#93c4e5", "#1f5b87"),
        ("#4596cc", "#3590d0"),
        ("#005f99", "#86c6f3"),
    ]
)
GROWING = tuple(
    Fill(light, dark)
    for light, dark in [
        ("#f1f1ef", "#30343a"),
        ("#dcece5", "#20463b"),
        ("#b7dccd", "#1c5d4b"),
        ("#86c7ae", "#1b775d"),
        ("#4dab8b", "#2fa181"),
        ("#137f5c", "#63c5a5"),
        ("#07583f", "#a8e6d1"),
    ]
)
QUANTITIES = {  # that color the tokens: label, unit, letter of the CSS class
    "regime": ("regime", "", "r"),
    "capability": ("capability gap", "nats", "c"),
    "information": ("information gap", "nats", "i"),
    "weight": ("effective weight", "", "w"),
    "loss": ("loss", "nats", "l"),
    "entropy": ("entropy", "nats", "e"),
    "denoising": ("denoising step", "", "d"),
    "mismatch": ("trainer − sampler", "nats", "m"),
    "visibility": ("visibility", "", "t"),
}
SIGNED = ("capability", "information", "mismatch")  # quantities with colors of two directions


def regime_slots(regimes: dict[str, RegimeNote]) -> dict[str, str]:
    """The slot of each regime: DOPD's by name, others by target; distinct as long as slots suffice."""
    slots = {name: _NAMED[name] for name in regimes if name in _NAMED}
    for name, note in regimes.items():
        if name in slots:
            continue
        target = (note.target or "none").split("+")[0].split(":")[0].split("@")[0]
        candidates = (*_BY_TARGET.get(target, ()), *SLOTS) if target != "none" else ("none",)
        free = [slot for slot in candidates if slot not in slots.values() and (slot != "none" or target == "none")]
        slots[name] = free[0] if free else candidates[0]
    return slots


def values_of(view: TokenView, quantity: str) -> list[float | None]:
    """A numeric quantity of every token; None for values that are not recorded or not finite."""
    return view.columns[quantity]


def scale_bound(values: Iterable[float | None]) -> float:
    """A round number above the absolute value of 95% of the values; larger ones get the strongest color."""
    sizes = sorted(abs(value) for value in values if value is not None)
    if not sizes or sizes[-1] == 0.0:
        return 1.0
    size = sizes[min(len(sizes) - 1, math.ceil(0.95 * len(sizes)) - 1)] or sizes[-1]
    power = 10.0 ** math.floor(math.log10(size))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if size <= step * power * (1 + 1e-9))


def bar_range(gaps: Iterable[float | None]) -> tuple[float, float]:
    """Range of the gap bars in nats, (up, down): the largest gap of each sign, at least 1 and at most 10.

    Both directions share one scale.
    """
    finite_gaps = [gap for gap in gaps if gap is not None]
    up, down = max(finite_gaps, default=0.0), -min(finite_gaps, default=0.0)
    reach = [float(min(10, max(1, math.ceil(2 * size) / 2))) for size in (up, down)]
    return reach[0], reach[1]


def steps(values: list[float | None], bound: float, *, is_signed: bool) -> list[int | None]:
    """Index of each value into DIVERGING, whose middle are values near zero, or GROWING, 0 for values up to zero."""
    half = len(DIVERGING) // 2
    low, high = (-half, half) if is_signed else (0, len(GROWING) - 1)
    numbers = np.array([0.0 if value is None else value for value in values])
    indices = (np.clip(np.rint(numbers / bound * high), low, high) - low).astype(int).tolist()
    return [None if value is None else idx for value, idx in zip(values, indices, strict=True)]


def ink(background: str) -> str:
    """The text color with the higher contrast on the background."""
    return max((INK_DARK, INK_LIGHT), key=lambda text: contrast(text, background))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colors, 1 to 21. Source: WCAG 2.2."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def palette_css() -> str:
    """CSS rules for a token's fill, by its class and the quantity chosen on the fragment's root."""
    rules = [_rule(f'.wb-s-{slot},.wb-tokens[data-by="regime"] .wb-r-{slot}', fill) for slot, fill in SLOTS.items()]
    for scale, fills in (
        ("diverging", dict(enumerate(DIVERGING))),
        ("growing", dict(enumerate(GROWING))),
        ("visibility", VISIBILITY),
    ):
        rules += [_rule(f".wb-{scale}-{name}", fill) for name, fill in fills.items()]
    for quantity, (_, _, letter) in QUANTITIES.items():
        named: dict
        if quantity == "visibility":
            named = VISIBILITY
        elif quantity != "regime":
            named = dict(enumerate(DIVERGING if quantity in SIGNED else GROWING))
        else:
            continue
        rules += [_rule(f'.wb-tokens[data-by="{quantity}"] .wb-{letter}-{name}', fill) for name, fill in named.items()]
    return "\n".join(rules)


def _rule(selector: str, fill: Fill) -> str:
    pattern = f";--pat:{fill.pattern}" if fill.pattern != "none" else ""
    background = f"light-dark({fill.light},{fill.dark})"
    return f"{selector}{{--bg:{background};--fg:light-dark({ink(fill.light)},{ink(fill.dark)}){pattern}}}"
