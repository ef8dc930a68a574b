"""Components that tabs share: tables with rows to choose, HTML fragments, figures, empty states.

Text of a run is untrusted data. Every function here escapes it, and no tab puts text into the page in another way.
"""

import atexit
import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.analysis.table import Table, traces_of
from workbench.errors import TraceError
from workbench.render.text import NONE, plain, signed, visible_text
from workbench.traces.reader import Traces

MAX_LISTED_STEPS = 60  # choices of a step list; the page sends the list with every event
MAX_OPEN_TRACES = 2  # runs whose traces stay open; each may take the memory of its queries


@dataclass(frozen=True)
class Column:
    """A column of a table on the page.

    title   heading; default: the name with spaces for underscores
    kind    text | short | mono | number | signed | share | points | right-text | right | token
    """

    name: str
    title: str = ""
    kind: str = "text"

    @property
    def heading(self) -> str:
        return self.title or self.name.replace("_", " ")


_SHOWN: dict[str, Callable[[Any], str]] = {
    "number": lambda value: f"{value:,}" if isinstance(value, int) else plain(float(value), 3),
    "signed": lambda value: signed(float(value)),
    "share": lambda value: f"{100 * float(value):.1f}%",
    "points": lambda value: signed(100 * float(value), 1),
    "right": lambda value: "✓ correct" if value else "✗ incorrect",
    "token": lambda value: visible_text(str(value)),
}
_CLASSES = {
    "text": "wbu-long",
    "short": "wbu-short",
    "mono": "wbu-long wbu-mono",
    "number": "wbu-number",
    "signed": "wbu-number",
    "share": "wbu-number",
    "points": "wbu-number",
    "right-text": "wbu-number",
    "right": "wbu-short",
    "token": "wbu-short wbu-mono",
}


def rows_html(
    table: Table,
    columns: Sequence[Column],
    *,
    label: str,
    key: Sequence[str] = (),
    chosen: Mapping[str, object] | None = None,
    title: str = "",
    tall: int | None = None,
    follow: bool = False,
    sortable: Collection[str] = (),
    order: str = "",
) -> str:
    """A table as HTML; if it is empty, its message.

    label   name for screen readers
    key     columns whose values a chosen row sends to Python; without them rows cannot be chosen
    chosen  key of the selected row
    tall    height in pixels above which the rows scroll
    follow  whether the arrow keys select a row instead of only moving the focus
    sortable, order  columns whose headings send a `sort` event to Python; the present order, -NAME for descending
    """
    caption = ""
    if title:
        save = '<button type="button" data-csv title="Save the rows that are listed">CSV</button>'
        # beside the table: of a grid's content only rows may hold a button
        caption = f'<div class="wbu-caption">{escape(title)}<span>{escape(table.run)}</span>{save}</div>'
    if table.empty:
        return empty_html(table.empty, title=title)
    heads = "".join(_heading(column, table, order if column.name in sortable else None) for column in columns)
    rows = _whole_numbers(table)
    keys: list[Mapping[str, object]] = [{name: row[name] for name in key} for row in rows]
    stop = keys.index(chosen) if chosen in keys else 0  # the Tab key reaches this row only
    body = []
    for row_idx, row in enumerate(rows):
        attributes = ""
        if key:
            text = escape(json.dumps(keys[row_idx], default=int), quote=True)
            selected = "true" if chosen is not None and keys[row_idx] == chosen else "false"
            attributes = f' data-key="{text}" aria-selected="{selected}" tabindex="{0 if row_idx == stop else -1}"'
        body.append(f"<tr{attributes}>{''.join(_cell(column, row[column.name]) for column in columns)}</tr>")
    style = f' style="--tall:{tall}px"' if tall else ""
    style += "" if key else ' tabindex="0"'  # keys scroll a table without rows to choose
    role = ' role="grid"' if key else ""
    return (
        f'<div class="wbu-scroll"{style}>{caption}'
        f'<table{role} aria-label="{escape(label, quote=True)}"{" data-follow" if follow else ""}>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _whole_numbers(table: Table) -> list[dict]:
    """The rows, with counts as integers again: pandas stores them as floats if a value of the column is missing."""
    rows = table.rows
    for name in table.frame.columns:
        values = [row[name] for row in rows]
        present = [value for value in values if isinstance(value, float) and math.isfinite(value)]
        if len(present) < len(values) and present and all(value.is_integer() for value in present):
            rows = [{**row, name: int(row[name])} if row[name] in present else row for row in rows]
    return rows


def empty_html(message: str, *, title: str = "") -> str:
    """An empty state: why data is missing, and what to do."""
    heading = f"<b>{escape(title)}</b><br>" if title else ""
    return f'<p class="wbu-empty">{heading}{escape(message)}</p>'


def aside_html(text: str) -> str:
    """A note on how to read the table or figure above it."""
    return f'<p class="wbu-aside">{escape(text)}</p>'


def _heading(column: Column, table: Table, order: str | None) -> str:
    """A heading; with an order, a button that sorts by it."""
    unit = table.units.get(column.name, "")
    small = f"<small>{escape(unit)}</small>" if unit and unit != column.heading else ""
    text, attributes = escape(column.heading), ""
    if order is not None:
        direction = {f"-{column.name}": "descending", column.name: "ascending"}.get(order, "none")
        attributes = f' aria-sort="{direction}"'
        text = f'<button type="button" data-sort="{escape(column.name, quote=True)}">{text}</button>'
    return f'<th scope="col" class="{_CLASSES[column.kind]}"{attributes}>{text}{small}</th>'


def _cell(column: Column, value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return f'<td class="{_CLASSES[column.kind]} wbu-none">{NONE}</td>'
    classes = _CLASSES[column.kind]
    if column.kind == "right":
        classes += " wbu-good" if value else " wbu-bad"
    text = escape(_SHOWN.get(column.kind, str)(value))
    if column.kind in ("text", "mono"):  # CSS clips a long text to a few lines; assets/rows.js expands it
        text = f'<div class="wbu-clip">{text}</div>'
    exact = f' data-value="{value!r}"' if isinstance(value, (int, float)) else ""  # for CSV
    return f'<td class="{classes}" dir="auto"{exact}>{text}</td>'


def remount(html: str) -> str:
    """Wrap a fragment in an element with a unique name, so that the browser replaces it as a whole.

    Gradio patches the page node by node and keeps nodes that look alike. A token view keeps state in the browser and
    its numbers in a <template>, which such a patch does not update.
    """
    name = f"wb-{hashlib.sha1(html.encode(), usedforsecurity=False).hexdigest()[:12]}"
    return f'<{name} style="display:block">{html}</{name}>'


def int_param(address: Mapping[str, object] | None, name: str) -> int | None:
    """An integer parameter of the address, or None. Raises TraceError if it is not a whole number."""
    text = str((address or {}).get(name) or "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise TraceError(f'{name} "{text}" in the address is not a whole number. Remove it, or choose from the list.')
    return int(text)


def answer_address(
    step: int, rollout: int, *, process: int = 0, probe: bool = False, token: int | None = None
) -> dict[str, str]:
    """Parameters of the address of one answer or one of its tokens; defaults are left out."""
    parts = {
        "step": step,
        "rollout": rollout,
        "process": process or None,
        "probe": 1 if probe else None,
        "token": token,
    }
    return {name: str(value) for name, value in parts.items() if value is not None}


def evenly_spaced(steps: Sequence) -> list:
    """At most MAX_LISTED_STEPS of the steps, evenly spaced, with the first and the last; users can type the others."""
    stride = max(1, -(-len(steps) // MAX_LISTED_STEPS))
    return [step for step_idx, step in enumerate(steps) if step_idx % stride == 0 or step_idx == len(steps) - 1]


def rows_component(label: str, **values: object) -> gr.HTML:
    """Component for a table of `rows_html`; its events are `select`, with a row's key, and `sort`, with a field."""
    return gr.HTML(
        label=label,
        elem_classes="wbu",
        js_on_load='workbenchRows(element, trigger, watch, "sort");',  # Gradio looks for the names of further events
        apply_default_css=False,
        **values,
    )


def fragment_component(label: str, *, js: str | None = None, **values: object) -> gr.HTML:
    """Component for an HTML fragment with its own style."""
    return gr.HTML(label=label, js_on_load=js, elem_classes="wbu", apply_default_css=False, **values)


def plot_component(label: str, **values: object) -> gr.Plot:
    """Component for a figure that contains its title."""
    return gr.Plot(label=label, show_label=False, container=False, elem_classes="app-plot", **values)


def read_asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


class OpenTraces:
    """Cache of the traces of the runs viewed last, so that their files are not read again."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[Path, int], Traces] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run_dir: Path) -> Traces | None:
        """Traces of a run, or None where none are recorded yet."""
        try:
            key = (run_dir, (run_dir / "traces").stat().st_ino)  # the inode changes if a run is deleted and made again
        except OSError:
            return None
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        traces = traces_of(run_dir)
        if traces is not None:
            with self._lock:
                self._open[key] = traces
                while len(self._open) > MAX_OPEN_TRACES:
                    self._open.popitem(last=False)
        return traces

    def close(self) -> None:
        """Close all traces."""
        with self._lock:
            self._open.clear()


TRACES = OpenTraces()
atexit.register(TRACES.close)  # before the interpreter unloads DuckDB
