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
from collections.abc import Collection, Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

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


class Look(NamedTuple):
    """How a token looks: its CSS classes, the heights of its bars as a style, and its regime's name if it begins."""

    classes: str
    bars: str
    tag: str


def _looks(view: TokenView, marked: Collection[int]) -> list[Look]:
    gaps = [*colors.values_of(view, "capability"), *colors.values_of(view, "information")]
    up, down = colors.bar_range(gaps)
    values = view.columns
    bounds = {name: colors.scale_bound(column) for name, column in values.items()}
    bounds |= dict.fromkeys(("capability", "information"), colors.scale_bound(gaps))
    slots = colors.regime_slots(view.all_regimes)
    looks, before = [], None
    for token_idx, token in enumerate(view.tokens):
        visibility = token.visibility if token.visibility in colors.VISIBILITY else "unknown"
        classes = f"wb-t wb-r-{slots[token.regime]} wb-t-{visibility}"
        for name, column in values.items():
            step_of = colors.diverging_step if name in colors.SIGNED else colors.growing_step
            step = step_of(column[token_idx], bounds[name])
            classes += "" if step is None else f" wb-{name[0]}-{step}"
        classes += " wb-match" if token_idx in marked else ""
        classes += " wb-control" if token.special or is_control_token(token.text) else ""
        looks.append(Look(classes, _bars(token, up, down), token.regime if token.regime != before else ""))
        before = token.regime
    return looks


def _answer(view: TokenView, looks: list[Look], pinned: int) -> str:
    if not view.tokens:
        return '<p class="wb-hint">The answer is empty: no token was sampled.</p>'
    up, down = colors.bar_range([*colors.values_of(view, "capability"), *colors.values_of(view, "information")])
    if len(view.tokens) > LONG:
        starts = _chunk_starts(view)
        chunks = zip(starts, [*starts[1:], len(view.tokens)], strict=True)
        parts = [f'<div class="wb-chunk" data-from="{start}" data-to="{end}"></div>' for start, end in chunks]
    else:
        parts = [
            _token(token, token_idx, looks[token_idx], token_idx == pinned)
            + ("<br>" if _breaks_line(view, token_idx) else "")
            for token_idx, token in enumerate(view.tokens)
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


def _token(token: TokenCell, token_idx: int, look: Look, is_pinned: bool) -> str:
    text = escape(visible_text(token.text, special=token.special))
    for sign in "·↵→":
        text = text.replace(sign, f"<s>{sign}</s>") if sign in text and sign not in token.text else text
    tag = f"<i aria-hidden=true>{escape(look.tag)}</i>" if look.tag else ""
    label = escape(f"{visible_text(token.text.strip() or token.text)}, {token.regime}", quote=True)
    style = f' style="{look.bars}"' if look.bars else ""
    return (
        f'<button type="button" class="{look.classes}" data-i="{token_idx}" tabindex="{0 if is_pinned else -1}" '
        f'aria-label="{label}"{" aria-pressed=true" if is_pinned else ""}{style}>{tag}{text}</button>'
    )


def _bars(token: TokenCell, up: float, down: float) -> str:
    """Heights of the two gap bars in pixels as CSS variables; all bars share one scale."""
    sizes = []
    for name, gap in (("c", token.capability_gap), ("i", token.information_gap)):
        gap = finite(gap)
        if gap is not None:
            height = max(-down, min(up, gap)) * BAR_PIXELS / (up + down)
            if abs(height) >= 0.5:
                sizes.append(f"--{name}:{height:.1f}")
    return ";".join(sizes)


def _long_columns(view: TokenView, looks: list[Look]) -> dict[str, object]:
    """What assets/long.js draws the tokens of a long answer from, and its plain text."""
    classes = list(dict.fromkeys(look.classes for look in looks))
    index = {name: idx for idx, name in enumerate(classes)}
    return {
        "classes": classes,
        "look": [index[look.classes] for look in looks],
        "bars": [look.bars for look in looks],
        "breaks": [token_idx for token_idx in range(len(looks)) if _breaks_line(view, token_idx)],
        "literal": [idx for idx, token in enumerate(view.tokens) if any(sign in token.text for sign in "·↵→")],
        "marked": [idx for idx, look in enumerate(looks) if " wb-match" in look.classes],
        "mismatch": _rounded(colors.values_of(view, "mismatch")),
        "answer": view.answer,
    }


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]


def _columns(view: TokenView) -> dict[str, object]:
    """Data of hovered and pinned tokens by columns; numbers have four decimals."""
    tokens, names, regimes = view.tokens, view.views, view.all_regimes
    slots = colors.regime_slots(regimes)

    def column(read) -> list[float | None]:
        return _rounded(finite(read(token)) for token in tokens)

    def by_view(field: str) -> list[list[float | None]]:
        return [column(lambda token, name=name: getattr(token, field).get(name)) for name in names]

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
        "weight": column(lambda token: token.weight),
        "effective": column(lambda token: token.effective),
        "loss": column(lambda token: token.loss),
        "denoising": [token.denoising_step for token in tokens],
        "capability": column(lambda token: token.capability_gap),
        "information": column(lambda token: token.information_gap),
        "total": column(lambda token: token.total_gap),
        "logprob": by_view("logprobs"),
        "entropy": by_view("entropies"),
        "rank": by_view("ranks"),
        "best": [
            [
                [
                    [visible_text(text), round(logprob, 4), int(text == token.text)]
                    for text, logprob in token.top_k.get(name, ())
                ]
                for token in tokens
            ]
            for name in names
        ],
        "unrecorded": "" if any(token.top_k for token in tokens) else NO_TOP_K,
        "why": [explain(token, view.thresholds, regimes) for token in tokens],
        "then": [consequence(token) for token in tokens],
    }
