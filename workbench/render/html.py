"""One answer as an HTML fragment: evidence at the left, tokens in the middle, details of the pinned token at the right.

1. Python chooses all colors and writes all texts; a token has one CSS class per quantity.
2. Choosing another quantity changes one attribute of the root, so CSS alone recolors the tokens.
3. Numbers are embedded as JSON by columns; assets/tokens.js reads them when a token is hovered or pinned.
4. An answer of more than LONG tokens is an overview, a chart and empty chunks; assets/long.js fills those near the
   screen.
5. A fragment with standalone=True contains its CSS and JavaScript. Others need `page_head()` once in their page.
"""

import functools
import json
import math
from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workbench.errors import require_one_of
from workbench.render import colors
from workbench.render.evidence import evidence
from workbench.render.legends import legends
from workbench.render.text import NO_TOP_K, consequence, explain, is_control_token, visible_text
from workbench.render.view import LONG, TokenCell, TokenView, finite

THEMES = ("auto", "light", "dark")
ASSETS = Path(__file__).parent / "assets"
CHUNK = (120, 240)  # least and most tokens of a chunk of a long answer
BAR_PIXELS = 24  # height of the gap bars under a token, both directions together


def render_tokens(
    view: TokenView,
    *,
    color_by: str = "regime",
    theme: str = "auto",
    standalone: bool = True,
    pinned: int | None = None,
    marked: Collection[int] = (),
) -> str:
    """Render an answer as a self-contained HTML fragment.

    color_by    initial quantity of the colors, a key of QUANTITIES
    theme       auto (that of the page or the system), light or dark
    standalone  include CSS and JavaScript; False for a page with `page_head()` in its head
    pinned      index of the token that is pinned at first; None = the one with the largest gap or loss
    marked      indices of tokens to outline

    Raises: ConfigError for an unknown quantity or theme; DataError for an image that cannot be read.
    """
    require_one_of("color_by", color_by, colors.QUANTITIES)
    require_one_of("theme", theme, THEMES)
    pinned = _most_telling(view) if pinned is None else max(0, min(len(view.tokens) - 1, pinned))
    label = escape(f"Tokens of {view.title}", quote=True)
    is_long = len(view.tokens) > LONG
    looks = _looks(view, marked)
    has_gaps = any(token.capability_gap is not None or token.information_gap is not None for token in view.tokens)
    has_bars = has_gaps and not is_long  # they double the height of every line; a long answer has a chart
    tools = '<div class="wb-tools"></div>' if is_long else ""
    columns = _columns(view) | (_long_columns(view, looks) if is_long else {})
    return (
        f'<div class="wb-root wb-tokens" data-by="{color_by}" data-bars="{"on" if has_bars else "off"}" '
        f'data-theme="{theme}" data-pin="{pinned}" '
        f"{'data-long ' if is_long else ''}"
        f'role="region" aria-label="{label}">'
        + (f"<style>{stylesheet()}</style>" if standalone else "")
        + '<div class="wb-body">'
        + _head(view)
        + f'<div class="wb-grid{"" if view.pictures or view.prompts else " wb-no-evidence"}">'
        + evidence(view)
        + f'<section class="wb-main" aria-label="answer">{_question(view)}'
        f'<div class="wb-top">{_chips(view, color_by)}{tools}</div>'
        + _answer(view, looks, pinned)
        + legends(view)
        + '</section><section class="wb-detail" aria-label="pinned token">'
        '<p class="wb-hint">Hover over a token for its numbers. Click it, or use the arrow keys, to pin it here.</p>'
        "</section></div></div>"
        '<div class="wb-card" popover="manual" role="tooltip"></div><div class="wb-status" role="status"></div>'
        + f'<template class="wb-data">{embed_json(columns)}</template>'
        + (f"<script>{script()}</script>" if standalone else "")
        + "</div>"
    )


@functools.cache
def stylesheet() -> str:
    """All CSS: the layout of assets/tokens.css and the palette."""
    return (ASSETS / "tokens.css").read_text(encoding="utf-8") + colors.palette_css()


@functools.cache
def script() -> str:
    """The JavaScript that makes all fragments of a page interactive, also those added later."""
    return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in ("tokens.js", "long.js"))


def page_head() -> str:
    """Markup for the head of a page with fragments of standalone=False."""
    return f"<style>{stylesheet()}</style><script>{script()}</script>"


def embed_json(value: object) -> str:
    """JSON that is safe inside any element: markup characters are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _most_telling(view: TokenView) -> int:
    def weight(token_idx: int) -> tuple[float, float]:
        token = view.tokens[token_idx]
        gap = max(abs(finite(gap) or 0.0) for gap in (token.total_gap, token.capability_gap, token.information_gap))
        return gap, finite(token.loss) or 0.0

    return max(range(len(view.tokens)), key=weight, default=-1)


def _head(view: TokenView) -> str:
    meta = "".join(f"<span>{escape(str(key))} {escape(str(value))}</span>" for key, value in view.meta.items())
    title = f'<span class="wb-title">{escape(view.title)}</span>'
    return f'<header class="wb-head">{title}<span class="wb-meta">{meta}</span></header>'


def _question(view: TokenView) -> str:
    verdict = ""
    if view.right is not None:
        name, text = ("right", "✓ correct") if view.right else ("wrong", "✗ incorrect")
        verdict = f'<span class="wb-verdict wb-{name}">{text}</span>'
    expected = (
        "" if view.expected is None else f'<span class="wb-expected">expected <b>{escape(view.expected)}</b></span>'
    )
    return f'<div class="wb-question"><span class="wb-ask">{escape(view.question)}</span>{expected}{verdict}</div>'


def _chips(view: TokenView, color_by: str) -> str:
    chips = []
    for quantity, (label, _, _) in colors.QUANTITIES.items():
        if quantity == "visibility":
            is_recorded = any(token.visibility for token in view.tokens)
        else:
            is_recorded = quantity == "regime" or any(value is not None for value in colors.values_of(view, quantity))
        if quantity in ("denoising", "mismatch") and not is_recorded:
            continue  # not a diffusion model; not sampled by the student
        state = "" if is_recorded else ' disabled title="not recorded for this answer"'
        pressed = "true" if quantity == color_by else "false"
        chips.append(
            f'<button type="button" class="wb-chip" data-by="{quantity}" aria-pressed="{pressed}"{state}>'
            f"{label}</button>"
        )
    return f'<div class="wb-chips" role="group" aria-label="color by">{"".join(chips)}</div>'


class Looks(NamedTuple):
    """How tokens look: CSS classes, heights of the bars as a style, and the regime's name where it begins, of each.

    Columns, since an object for each of many tokens would have the garbage collector search the process.
    """

    classes: list[str]
    bars: list[str]
    tags: list[str]


def _looks(view: TokenView, marked: Collection[int]) -> Looks:
    gaps = [*colors.values_of(view, "capability"), *colors.values_of(view, "information")]
    values = view.columns
    bounds = {name: colors.scale_bound(column) for name, column in values.items()}
    bounds |= dict.fromkeys(("capability", "information"), colors.scale_bound(gaps))
    slots = colors.regime_slots(view.all_regimes)
    classes = [
        f"wb-t wb-r-{slots[token.regime]} "
        f"wb-t-{token.visibility if token.visibility in colors.VISIBILITY else 'unknown'}"
        for token in view.tokens
    ]
    for name, column in values.items():
        steps = colors.steps(column, bounds[name], is_signed=name in colors.SIGNED)
        classes = [
            text if step is None else f"{text} wb-{name[0]}-{step}" for text, step in zip(classes, steps, strict=True)
        ]
    for token_idx, token in enumerate(view.tokens):
        classes[token_idx] += " wb-match" if token_idx in marked else ""
        classes[token_idx] += " wb-control" if token.special or is_control_token(token.text) else ""
    names = [token.regime for token in view.tokens]
    tags = [name if name != before else "" for name, before in zip(names, [None, *names], strict=False)]
    return Looks(classes, _bars(values["capability"], values["information"], colors.bar_range(gaps)), tags)


def _answer(view: TokenView, looks: Looks, pinned: int) -> str:
    if not view.tokens:
        return '<p class="wb-hint">The answer is empty: no token was sampled.</p>'
    up, down = colors.bar_range([*colors.values_of(view, "capability"), *colors.values_of(view, "information")])
    if len(view.tokens) > LONG:
        starts = _chunk_starts(view)
        chunks = zip(starts, [*starts[1:], len(view.tokens)], strict=True)
        parts = [f'<div class="wb-chunk" data-from="{start}" data-to="{end}"></div>' for start, end in chunks]
    else:
        parts = [
            _token(token, token_idx, look, token_idx == pinned) + ("<br>" if _breaks_line(view, token_idx) else "")
            for token_idx, (token, *look) in enumerate(zip(view.tokens, *looks, strict=True))
        ]
    return (
        f'<div class="wb-answer" dir="auto" style="--up:{up * BAR_PIXELS / (up + down):.1f}" role="group" '
        f'aria-label="answer, token by token">{"".join(parts)}</div>'
    )


def _breaks_line(view: TokenView, token_idx: int) -> bool:
    """Whether the line ends behind a token; line breaks that follow each other end it once, to save height."""
    following = view.tokens[token_idx + 1].text if token_idx + 1 < len(view.tokens) else ""
    return "\n" in view.tokens[token_idx].text and not ("\n" in following and not following.strip())


def _chunk_starts(view: TokenView) -> list[int]:
    """Index of the first token of each chunk; a chunk ends where a line ends, or is as long as allowed."""
    starts, least, most = [0], *CHUNK
    for token_idx in range(1, len(view.tokens)):
        length = token_idx - starts[-1]
        if length == most or (length >= least and _breaks_line(view, token_idx - 1)):
            starts.append(token_idx)
    return starts


def _token(token: TokenCell, token_idx: int, look: list[str], is_pinned: bool) -> str:
    """One token as HTML. look: its CSS classes, bars and tag."""
    classes, bars, tag = look
    text = escape(visible_text(token.text, special=token.special))
    for sign in "·↵→":
        text = text.replace(sign, f"<s>{sign}</s>") if sign in text and sign not in token.text else text
    tag = f"<i aria-hidden=true>{escape(tag)}</i>" if tag else ""
    label = escape(f"{visible_text(token.text.strip() or token.text)}, {token.regime}", quote=True)
    style = f' style="{bars}"' if bars else ""
    return (
        f'<button type="button" class="{classes}" data-i="{token_idx}" tabindex="{0 if is_pinned else -1}" '
        f'aria-label="{label}"{" aria-pressed=true" if is_pinned else ""}{style}>{tag}{text}</button>'
    )


def _bars(capability: list[float | None], information: list[float | None], reach: tuple[float, float]) -> list[str]:
    """Heights of the two gap bars of each token in pixels as CSS variables; all bars share one scale."""
    up, down = reach
    pixels = BAR_PIXELS / (up + down)

    def style(name: str, gap: float | None) -> str:
        height = 0.0 if gap is None else max(-down, min(up, gap)) * pixels
        return f"--{name}:{height:.1f}" if abs(height) >= 0.5 else ""

    return [
        ";".join(filter(None, (style("c", first), style("i", second))))
        for first, second in zip(capability, information, strict=True)
    ]


def _long_columns(view: TokenView, looks: Looks) -> dict[str, object]:
    """What assets/long.js draws the tokens of a long answer from, and its plain text."""
    classes = list(dict.fromkeys(looks.classes))
    index = {name: idx for idx, name in enumerate(classes)}
    return {
        "classes": classes,
        "look": [index[name] for name in looks.classes],
        "bars": looks.bars,
        "breaks": [token_idx for token_idx in range(len(view.tokens)) if _breaks_line(view, token_idx)],
        "literal": [idx for idx, token in enumerate(view.tokens) if any(sign in token.text for sign in "·↵→")],
        "marked": [idx for idx, name in enumerate(looks.classes) if " wb-match" in name],
        "mismatch": _rounded(colors.values_of(view, "mismatch")),
        "answer": view.answer,
    }


def _rounded(values: list[float | None]) -> list[float | None]:
    """Four decimals of each value, as by `round`, in a third of its time; None if it is not finite."""
    numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = numbers * 1e4
        is_sure = (np.abs(scaled) < 1e13) & (np.abs(np.abs(scaled % 1.0) - 0.5) > 1e-3)  # no tie, and exact
    result: list[float | None] = (np.rint(scaled) / 1e4).tolist()
    for idx in np.flatnonzero(~is_sure).tolist():
        value = finite(values[idx])
        result[idx] = None if value is None else round(value, 4)
    return result


def _columns(view: TokenView) -> dict[str, object]:
    """Data of hovered and pinned tokens by columns; numbers have four decimals."""
    tokens, names, regimes = view.tokens, view.views, view.all_regimes
    slots = colors.regime_slots(regimes)
    no_top_k: list = []  # one for all tokens: thousands of lists would have the garbage collector search the process

    def by_view(field: str) -> list[list[float | None]]:
        rows = [getattr(token, field) for token in tokens]
        return [_rounded([row.get(name) for row in rows]) for name in names]

    return {
        "views": [{"name": name, "context": view.contexts.get(name, "")} for name in names],
        "regimes": {
            name: {"slot": slots[name], "losses": [list(loss) for loss in note.losses]}
            for name, note in regimes.items()
        },
        "text": [visible_text(token.text, special=token.special) for token in tokens],
        "id": [token.token_id for token in tokens],
        "regime": [token.regime for token in tokens],
        "target": [token.target for token in tokens],
        "divergence": [token.divergence for token in tokens],
        "token_type": [token.token_type for token in tokens],
        "visibility": [token.visibility for token in tokens],
        "weight": _rounded([token.weight for token in tokens]),
        "effective": _rounded(view.columns["weight"]),
        "loss": _rounded(view.columns["loss"]),
        "denoising": [token.denoising_step for token in tokens],
        "capability": _rounded(view.columns["capability"]),
        "information": _rounded(view.columns["information"]),
        "total": _rounded([token.total_gap for token in tokens]),
        "logprob": by_view("logprobs"),
        "entropy": by_view("entropies"),
        "rank": by_view("ranks"),
        "best": [
            [
                [
                    [visible_text(text), round(logprob, 4), int(text == token.text)]
                    for text, logprob in token.top_k[name]
                ]
                if name in token.top_k
                else no_top_k
                for token in tokens
            ]
            for name in names
        ],
        "unrecorded": "" if any(token.top_k for token in tokens) else NO_TOP_K,
        "why": [explain(token, view.thresholds, regimes) for token in tokens],
        "then": [consequence(token) for token in tokens],
    }
