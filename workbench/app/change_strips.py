"""Two scorings of an answer as HTML: the tokens before above those after, with the differences marked."""

from html import escape

from workbench.analysis import changes
from workbench.analysis.changes import TokenPair
from workbench.app.components import Column, rows_html
from workbench.render import colors
from workbench.render.text import NONE, signed, visible_text
from workbench.render.view import TokenCell, TokenView

MAX_PAIRS = 600  # tokens of a strip
SUMMARY_COLUMNS = (
    Column("quantity"),
    Column("before", kind="signed"),
    Column("after", kind="signed"),
    Column("change", kind="signed"),
)
_READING = (
    "Upper line: the answer as it was scored. Lower line: after the change. Outlined: another regime; struck through: "
    "edited. Below each token: change of the information gap in nats."
)


def change_html(before: TokenView, after: TokenView, *, title: str) -> str:
    """Sentence, strips, regimes in words, and numbers of the whole answer. title: what was changed."""
    pairs = changes.pair_tokens(before, after)
    slots = colors.regime_slots(before.all_regimes | after.all_regimes)
    columns = "".join(_pair(pair, slots) for pair in pairs[:MAX_PAIRS])
    left_out = len(pairs) - MAX_PAIRS
    more = f'<p class="wbu-aside">{left_out:,} further tokens are not drawn.</p>' if left_out > 0 else ""
    legend = "".join(
        f'<span><span class="wb-swatch wb-s-{slots[name]}"></span><b>{escape(name)}</b> {escape(note.meaning)}</span>'
        for name, note in (before.all_regimes | after.all_regimes).items()
    )
    table = rows_html(changes.summary(before, after), SUMMARY_COLUMNS, label="the whole answer before and after")
    return (
        f'<section class="wb-root wbu-change" aria-label="{escape(title, quote=True)}"><div class="wb-body">'
        f"<h3>{escape(title)}</h3><p><b>{escape(changes.sentence(before, after))}</b></p>"
        f'<p class="wbu-aside">{_READING}</p><div class="wbu-pairs" dir="auto">{columns}</div>{more}'
        f'<p class="wbu-key">{legend}</p>{table}</div></section>'
    )


def _pair(pair: TokenPair, slots: dict[str, str]) -> str:
    marks = ""
    if pair.changed_regime and not pair.is_edited:
        marks = " wbu-moved"
    elif pair.is_edited:
        marks = " wbu-edited"
    below = NONE
    if pair.before and pair.after and not pair.is_edited:
        first, second = pair.before.information_gap, pair.after.information_gap
        below = NONE if first is None or second is None else signed(second - first)
    return (
        f'<span class="wbu-pair{marks}">{_token(pair.before, "before", slots)}{_token(pair.after, "after", slots)}'
        f"<small>{below}</small></span>"
    )


def _token(cell: TokenCell | None, line: str, slots: dict[str, str]) -> str:
    if cell is None:
        return f'<span class="wbu-token wbu-gone" title="no token {line}"></span>'
    gaps = [
        f"{name.replace('_', ' ')} {NONE if value is None else signed(value)}"
        for name in changes.GAPS
        for value in (getattr(cell, name),)
    ]
    hover = escape(f"{line}: {cell.regime}, {', '.join(gaps)}", quote=True)
    text = escape(visible_text(cell.text, special=cell.special))
    return (
        f'<span class="wbu-token wb-s-{slots[cell.regime]}" title="{hover}">{text}<i>{escape(cell.regime)}</i></span>'
    )
