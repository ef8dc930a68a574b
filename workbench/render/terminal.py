"""Render an answer for a terminal: colored tokens, a legend, a table. Without color, regimes are labels."""

import unicodedata

from workbench.errors import require_one_of
from workbench.render import colors
from workbench.render.legends import regime_shares
from workbench.render.text import NONE, plain, share, signed, visible_text
from workbench.render.view import TokenView, finite

_RESET = "\x1b[0m"


def render_terminal(view: TokenView, *, color_by: str = "regime", width: int = 100, color: bool = True) -> str:
    """Render an answer as lines of at most `width` cells, with ANSI colors or as plain text.

    Raises: ConfigError for an unknown quantity.
    """
    require_one_of("color_by", color_by, colors.QUANTITIES)
    meta = " · ".join(f"{key} {value}" for key, value in view.meta.items())
    verdict = "" if view.right is None else "correct" if view.right else "incorrect"
    expected = "" if view.expected is None else f"expected {_safe(view.expected)}"
    lines = [" · ".join(part for part in (_safe(view.title), _safe(meta)) if part)]
    lines += [" · ".join(part for part in (_safe(view.question), expected, verdict) if part), ""]
    if not view.tokens:
        return "\n".join([*lines, "The answer is empty: no token was sampled."])
    fills = _fills(view, color_by)
    lines += _answer(view, fills, color_by, max(20, width), color)
    lines += ["", *_legend(view, color_by, color), "", *_table(view, fills, max(20, width), color)]
    return "\n".join(line.rstrip() if not color else line for line in lines)


def _safe(text: str) -> str:
    return "".join(sign if sign.isprintable() else visible_text(sign) for sign in text)


def _cells(text: str) -> int:
    """Width of a text in terminal cells: wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def _pad(text: str, cells: int, *, right: bool = False) -> str:
    text = _safe(text)
    while _cells(text) > cells:
        text = text[:-2] + "…" if len(text) > 1 else ""
    space = " " * (cells - _cells(text))
    return space + text if right else text + space


def _paint(text: str, fill: colors.Fill | None, color: bool) -> str:
    if not color or fill is None:
        return text
    back, front = (
        tuple(int(code[start : start + 2], 16) for start in (1, 3, 5)) for code in (fill.light, colors.ink(fill.light))
    )
    return f"\x1b[38;2;{front[0]};{front[1]};{front[2]}m\x1b[48;2;{back[0]};{back[1]};{back[2]}m{text}{_RESET}"


def _fills(view: TokenView, color_by: str) -> list[colors.Fill | None]:
    if color_by == "regime":
        slots = colors.regime_slots(view.all_regimes)
        return [colors.SLOTS[slots[token.regime]] for token in view.tokens]
    if color_by == "visibility":
        return [
            colors.VISIBILITY.get(token.visibility or "unknown", colors.VISIBILITY["unknown"]) for token in view.tokens
        ]
    values = colors.values_of(view, color_by)
    bound = colors.scale_bound(_scaled(view, color_by))
    is_signed = color_by in colors.SIGNED
    scale = colors.DIVERGING if is_signed else colors.GROWING
    return [None if step is None else scale[step] for step in colors.steps(values, bound, is_signed=is_signed)]


def _scaled(view: TokenView, quantity: str) -> list[float | None]:
    """Values that give the scale of a quantity; both gaps share theirs."""
    names = ("capability", "information") if quantity in ("capability", "information") else (quantity,)
    return [value for name in names for value in colors.values_of(view, name)]


def _answer(view: TokenView, fills: list, color_by: str, width: int, color: bool) -> list[str]:
    """The tokens, broken into lines. In plain text, a label precedes each run of tokens with that label."""
    lines, line, used, before = [], [], 0, None
    for token, fill in zip(view.tokens, fills, strict=True):
        text = visible_text(token.text, special=token.special)
        label = (token.visibility or "unknown") if color_by == "visibility" else token.regime
        tag = f"[{label}]" if not color and label != before else ""
        before = label
        text = _pad(text, min(_cells(text), width - _cells(tag) - bool(tag)))
        size = _cells(tag + text) + bool(tag)
        if line and used + size > width:
            lines.append("".join(line))
            line, used = [], 0
        tag = f" {tag}" if tag and line else tag
        line.append(tag + _paint(text, fill, color))
        used += size
        if "\n" in token.text:
            lines.append("".join(line))
            line, used = [], 0
    return [*lines, "".join(line)] if line else lines


def _legend(view: TokenView, color_by: str, color: bool) -> list[str]:
    lines = []
    if color_by == "regime" or not color:
        slots = colors.regime_slots(view.all_regimes)
        names = view.all_regimes
        wide = max(_cells(name) for name in names)
        for name, (count, of_tokens, of_loss) in regime_shares(view).items():
            swatch = _paint(f" {_pad(name, wide)} ", colors.SLOTS[slots[name]], color)
            loss = NONE if of_loss is None else share(of_loss)
            numbers = f"{count:>5} {share(of_tokens):>6} of tokens {loss:>6} of loss"
            lines.append(f"{swatch} {numbers}  {_safe(names[name].meaning or names[name].target or '')}")
    elif color_by == "visibility":
        lines.append("  ".join(_paint(f" {name} ", fill, color) for name, fill in colors.VISIBILITY.items()))
    else:
        label, unit, _ = colors.QUANTITIES[color_by]
        is_signed = color_by in colors.SIGNED
        bound = colors.scale_bound(_scaled(view, color_by))
        colorscale = "".join(_paint("  ", fill, color) for fill in (colors.DIVERGING if is_signed else colors.GROWING))
        lines.append(f"{label}: {f'≤ −{bound:g}' if is_signed else '0'} {colorscale} ≥ {bound:g} {unit}")
    return lines


def _table(view: TokenView, fills: list, width: int, color: bool) -> list[str]:
    """A row per token; columns that do not fit are dropped from the right, and named below."""
    columns: list[tuple[str, list[str]]] = []
    columns += [(name, [plain(token.logprobs.get(name)) for token in view.tokens]) for name in view.views]
    for name, quantity in (("info", "information"), ("cap", "capability")):
        columns.append((name, [signed(value) for value in colors.values_of(view, quantity)]))
    columns.append(("total", [signed(finite(token.total_gap)) for token in view.tokens]))
    columns.append(("weight", [plain(token.effective) for token in view.tokens]))
    columns.append(("loss", [plain(token.loss, 3) for token in view.tokens]))
    columns.append(
        ("step", [str(NONE if token.denoising_step is None else token.denoising_step) for token in view.tokens])
    )
    columns.append(("target", [token.target or "none" for token in view.tokens]))
    columns.append(("visibility", [token.visibility or "" for token in view.tokens]))
    columns = [(name, cells) for name, cells in columns if any(cell not in (NONE, "") for cell in cells)]
    words = [visible_text(token.text, special=token.special) for token in view.tokens]
    wide = min(16, max(5, *(_cells(word) for word in words)))
    regime_wide = max(6, *(_cells(token.regime) for token in view.tokens))
    digits = len(str(len(words)))
    used, num_shown = digits + 1 + wide + 1 + regime_wide, 0
    for name, cells in columns:
        used += 2 + max(_cells(name), *(_cells(cell) for cell in cells))
        num_shown += used <= width
    sizes = [max(_cells(name), *(_cells(cell) for cell in cells)) for name, cells in columns[:num_shown]]
    head = f"{_pad('#', digits, right=True)} {_pad('token', wide)} {_pad('regime', regime_wide)}"
    lines = [
        head + "".join("  " + _pad(name, size, right=True) for (name, _), size in zip(columns, sizes, strict=False))
    ]
    for token_idx, (token, word) in enumerate(zip(view.tokens, words, strict=True)):
        painted = _paint(_pad(word, wide), fills[token_idx], color)
        start = f"{token_idx + 1:>{digits}} {painted} {_pad(token.regime, regime_wide)}"
        rest = "".join(
            "  " + _pad(cells[token_idx], size, right=True) for (_, cells), size in zip(columns, sizes, strict=False)
        )
        lines.append(start + rest)
    if num_shown < len(columns):
        lines.append(f"Columns dropped at this width: {', '.join(name for name, _ in columns[num_shown:])}.")
    lines.append("Log-probs of the sampled token and gaps, in nats.")
    return lines
