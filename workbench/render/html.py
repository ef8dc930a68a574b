"""One answer as an HTML fragment: evidence at the left, tokens in the middle, details of the pinned token at the right.

1. Python chooses all colors and writes all texts; a token has one CSS class per quantity.
2. Choosing another quantity changes one attribute of the root, so CSS alone recolors the tokens.
3. Numbers are embedded as JSON by columns; assets/tokens.js reads them when a token is hovered or pinned.
4. A fragment with standalone=True contains its CSS and JavaScript. Others need `page_head()` once in their page.
"""

import functools
import json
from collections.abc import Collection
from html import escape
from pathlib import Path

from workbench.errors import require_one_of
from workbench.render import colors
from workbench.render.evidence import evidence
from workbench.render.legends import legends
from workbench.render.text import NO_TOP_K, consequence, explain, is_control_token, visible_text
from workbench.render.view import TokenCell, TokenView

THEMES = ("auto", "light", "dark")
ASSETS = Path(__file__).parent / "assets"
LONG = 120  # tokens above which chips and legend stay visible while the answer is scrolled
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
    has_gaps = any(token.capability_gap is not None or token.information_gap is not None for token in view.tokens)
    return (
        f'<div class="wb-root wb-tokens" data-by="{color_by}" data-bars="{"on" if has_gaps else "off"}" '
        f'data-theme="{theme}" data-pin="{pinned}" '
        f"{'data-long ' if len(view.tokens) > LONG else ''}"
        f'role="region" aria-label="{label}">'
        + (f"<style>{stylesheet()}</style>" if standalone else "")
        + '<div class="wb-body">'
        + _head(view)
        + f'<div class="wb-grid{"" if view.pictures or view.prompts else " wb-no-evidence"}">'
        + evidence(view)
        + f'<section class="wb-main" aria-label="answer">{_question(view)}{_chips(view, color_by)}'
        + _answer(view, pinned, marked)
        + legends(view)
        + '</section><section class="wb-detail" aria-label="pinned token">'
        '<p class="wb-hint">Hover over a token for its numbers. Click it, or use the arrow keys, to pin it here.</p>'
        "</section></div></div>"
        '<div class="wb-card" popover="manual" role="tooltip"></div><div class="wb-status" role="status"></div>'
        + f'<template class="wb-data">{embed_json(_columns(view))}</template>'
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
    return (ASSETS / "tokens.js").read_text(encoding="utf-8")


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
        gap = max(
            abs(colors.finite(gap) or 0.0) for gap in (token.total_gap, token.capability_gap, token.information_gap)
        )
        return gap, colors.finite(token.loss) or 0.0

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
        if quantity == "denoising" and not is_recorded:
            continue  # not a diffusion model
        state = "" if is_recorded else ' disabled title="not recorded for this answer"'
        pressed = "true" if quantity == color_by else "false"
        chips.append(
            f'<button type="button" class="wb-chip" data-by="{quantity}" aria-pressed="{pressed}"{state}>'
            f"{label}</button>"
        )
    return f'<div class="wb-chips" role="group" aria-label="color by">{"".join(chips)}</div>'


def _answer(view: TokenView, pinned: int, marked: Collection[int]) -> str:
    if not view.tokens:
        return '<p class="wb-hint">The answer is empty: no token was sampled.</p>'
    gaps = [*colors.values_of(view, "capability"), *colors.values_of(view, "information")]
    bound = colors.scale_bound(gaps)
    up, down = colors.bar_range(gaps)
    pixels_per_nat = BAR_PIXELS / (up + down)
    growing = {name: colors.values_of(view, name) for name in ("weight", "loss", "entropy", "denoising")}
    bounds = {name: colors.scale_bound(values) for name, values in growing.items()}
    slots = colors.regime_slots(view.all_regimes)
    parts, before = [], None
    for token_idx, token in enumerate(view.tokens):
        steps = [
            ("c", colors.diverging_step(colors.finite(token.capability_gap), bound)),
            ("i", colors.diverging_step(colors.finite(token.information_gap), bound)),
            *((name[0], colors.growing_step(values[token_idx], bounds[name])) for name, values in growing.items()),
        ]
        visibility = token.visibility if token.visibility in colors.VISIBILITY else "unknown"
        classes = f"wb-t wb-r-{slots[token.regime]} wb-t-{visibility}"
        classes += "".join(f" wb-{letter}-{step}" for letter, step in steps if step is not None)
        classes += " wb-match" if token_idx in marked else ""
        parts.append(
            _token(token, token_idx, classes, _bars(token, up, down), token_idx == pinned, token.regime != before)
        )
        before = token.regime
    return (
        f'<div class="wb-answer" dir="auto" style="--up:{up * pixels_per_nat:.1f}" role="group" '
        f'aria-label="answer, token by token">{"".join(parts)}</div>'
    )


def _token(token: TokenCell, token_idx: int, classes: str, bars: str, is_pinned: bool, starts_run: bool) -> str:
    visible = visible_text(token.text, special=token.special)
    if token.special or is_control_token(token.text):
        classes += " wb-control"
    text = escape(visible)
    for sign in "·↵→":
        text = text.replace(sign, f"<s>{sign}</s>") if sign in text and sign not in token.text else text
    tag = f"<i aria-hidden=true>{escape(token.regime)}</i>" if starts_run else ""
    label = escape(f"{visible_text(token.text.strip() or token.text)}, {token.regime}", quote=True)
    return (
        f'<button type="button" class="{classes}" data-i="{token_idx}" tabindex="{0 if is_pinned else -1}" '
        f'aria-label="{label}"{" aria-pressed=true" if is_pinned else ""}{bars}>{tag}{text}</button>'
        + ("<br>" if "\n" in token.text else "")
    )


def _bars(token: TokenCell, up: float, down: float) -> str:
    """Heights of the two gap bars in pixels as CSS variables; all bars share one scale."""
    sizes = []
    for name, gap in (("c", token.capability_gap), ("i", token.information_gap)):
        gap = colors.finite(gap)
        if gap is not None:
            height = max(-down, min(up, gap)) * BAR_PIXELS / (up + down)
            if abs(height) >= 0.5:
                sizes.append(f"--{name}:{height:.1f}")
    return f' style="{";".join(sizes)}"' if sizes else ""


def _columns(view: TokenView) -> dict[str, object]:
    """Data of hovered and pinned tokens by columns; numbers have four decimals."""
    tokens, names, regimes = view.tokens, view.views, view.all_regimes
    slots = colors.regime_slots(regimes)

    def column(read) -> list[float | None]:
        values = [colors.finite(read(token)) for token in tokens]
        return [None if value is None else round(value, 4) for value in values]

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
