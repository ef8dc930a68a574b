"""Heatmap of a probe's regimes over training: a row per probed step, a column per token."""

from collections.abc import Mapping, Sequence
from html import escape

from workbench.errors import ConfigError, require_one_of
from workbench.render import colors
from workbench.render.html import THEMES, stylesheet
from workbench.render.text import visible_text
from workbench.render.view import RegimeNote

_ROW, _LEFT, _SIGN = 20, 62, 7.3  # pixels: height of a row, width of the step column, width of a character
_MAX_CELLS = 20_000  # above it, neighbors of one regime are drawn as one rectangle
_MAX_LABELED = 200  # tokens; a longer answer has narrow columns and no token labels
_OVERVIEW = 1200  # width in pixels of a longer answer, with at least 2 pixels per token


def render_movement(
    steps: Sequence[int],
    tokens: Sequence[str],
    regimes: Sequence[Sequence[str | None]],
    notes: Mapping[str, RegimeNote],
    *,
    title: str = "",
    theme: str = "auto",
    standalone: bool = True,
) -> str:
    """Draw regimes[step][token] as an HTML fragment; None is an empty cell.

    Raises: ConfigError if the shape does not match steps and tokens, or the theme is unknown.
    """
    require_one_of("theme", theme, THEMES)
    if len(regimes) != len(steps) or any(len(row) != len(tokens) for row in regimes):
        lengths = sorted({len(row) for row in regimes})
        raise ConfigError(
            f"movement needs one row per step and one regime per token: {len(steps)} steps, {len(tokens)} tokens, "
            f"{len(regimes)} rows of length {lengths}."
        )
    named = {name: RegimeNote(*note) for name, note in notes.items()}
    for name in (name for row in regimes for name in row if name is not None):
        named.setdefault(name, RegimeNote())
    slots = colors.regime_slots(named)
    words = [visible_text(token) for token in tokens]
    is_turned, is_overview = len(tokens) > 40, len(tokens) > _MAX_LABELED
    narrow = max(2, _OVERVIEW // len(tokens)) if is_overview else 22
    widths = [narrow if is_turned else max(22, round(len(word) * _SIGN) + 8) for word in words]
    head = (
        24
        if not is_turned or is_overview
        else 10 + round(_SIGN * min(12, max((len(word) for word in words), default=1)))
    )
    starts = [_LEFT + sum(widths[:token_idx]) for token_idx in range(len(widths) + 1)]
    body = [f'<text x="{_LEFT - 8}" y="{head - 8}" text-anchor="end">step</text>']
    if is_overview:
        body += [_word(str(k), starts[k], narrow, head, False) for k in range(0, len(words), 50)]
    else:
        body += [_word(word, starts[k], widths[k], head, is_turned) for k, word in enumerate(words)]
    joins = is_overview or len(steps) * len(tokens) > _MAX_CELLS
    for row_idx, (step, row) in enumerate(zip(steps, regimes, strict=True)):
        y = head + row_idx * _ROW
        body.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{step}</text>')
        for first, last in _stretches(row, joins):
            body.append(_cell(row[first], step, (first, last), words, slots, starts, y))
    width, height = starts[-1] + 2, head + len(steps) * _ROW + 4
    label = escape(title or "regimes over training", quote=True)
    heading = f'<div class="wb-heading">{escape(title)}</div>' if title else ""
    empty = "" if steps and tokens else '<p class="wb-hint">No probes have been scored yet.</p>'
    picture = (
        f'<div class="wb-map"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}">{"".join(body)}</svg></div>'
    )
    return (
        f'<div class="wb-root wb-movement" data-theme="{theme}" role="region" aria-label="{label}">'
        + (f"<style>{stylesheet()}</style>" if standalone else "")
        + f'<div class="wb-main">{heading}{empty or picture + _legend(steps, named, slots, regimes)}</div></div>'
    )


def _stretches(row: Sequence[str | None], joins: bool) -> list[tuple[int, int]]:
    """First and last token of each rectangle of a row."""
    stretches: list[tuple[int, int]] = []
    for token_idx, regime in enumerate(row):
        if joins and stretches and row[stretches[-1][1]] == regime:
            stretches[-1] = (stretches[-1][0], token_idx)
        else:
            stretches.append((token_idx, token_idx))
    return stretches


def _word(word: str, x: int, width: int, head: int, is_turned: bool) -> str:
    if is_turned:
        short = word if len(word) <= 12 else word[:11] + "…"
        at = f'transform="translate({x + width / 2 + 4:g},{head - 6}) rotate(-90)"'
        return f'<text class="wb-word" {at}>{escape(short)}</text>'
    return f'<text class="wb-word" x="{x + width / 2:g}" y="{head - 8}" text-anchor="middle">{escape(word)}</text>'


def _cell(
    regime: str | None,
    step: int,
    stretch: tuple[int, int],
    words: Sequence[str],
    slots: Mapping[str, str],
    starts: Sequence[int],
    y: int,
) -> str:
    if regime is None:
        return ""
    first, last = stretch
    x, width = starts[first], starts[last + 1] - starts[first]
    gap = 1 if width > 8 else 0
    letters = escape(regime[:4]) if width >= 22 else ""
    where = f"token {first + 1} “{words[first]}”" if first == last else f"tokens {first + 1} to {last + 1}"
    return (
        f'<g class="wb-s-{slots[regime]}"><title>{escape(f"step {step} · {where} · {regime}")}</title><rect '
        f'class="wb-cell" x="{x + gap}" y="{y + 1}" width="{width - 2 * gap}" height="{_ROW - 2}" '
        f'rx="{2 * gap}"/><text class="wb-letters" x="{x + width / 2:g}" y="{y + 13.5:g}">{letters}</text></g>'
    )


def _legend(
    steps: Sequence[int],
    named: Mapping[str, RegimeNote],
    slots: Mapping[str, str],
    regimes: Sequence[Sequence[str | None]],
) -> str:
    items = []
    for name, note in named.items():
        first, last = (
            f"{100 * sum(regime == name for regime in row) / max(1, len(row)):.0f}" for row in (regimes[0], regimes[-1])
        )
        items.append(
            f'<span class="wb-item"><span class="wb-swatch wb-s-{slots[name]}"></span><b>{escape(name)}</b> '
            f'{escape(note.meaning)} <span class="wb-faint">{first} → {last}%</span></span>'
        )
    steps_note = f'<span class="wb-faint">share of tokens at step {steps[0]} → {steps[-1]}</span>'
    return f'<div class="wb-maplegend">{"".join(items)}{steps_note}</div>'
