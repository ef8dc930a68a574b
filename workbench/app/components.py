"""Pieces that several tabs are made of: tables whose rows can be chosen, fragments that the page replaces, empty states.

Everything that comes from a run is data: it is escaped here, and nowhere is a text put into a page in another way.
"""

import atexit
import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.analysis.table import Table, traces_of
from workbench.errors import TraceError
from workbench.render.text import NONE, plain, signed, visible_text
from workbench.traces.reader import Traces

MOST_STEPS = 60  # of a list to choose from: the page carries it along in every event
_MOST_OPEN = 2  # runs whose traces are kept open; each may take the memory of its queries


@dataclass(frozen=True)
class Column:
    """A column of a table on a page.

    title   default: the name, blanks for underscores
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
    "share": lambda value: f"{100 * float(value):.1f}\u2009%",
    "points": lambda value: signed(100 * float(value), 1),
    "right": lambda value: "✓ right" if value else "✗ wrong",
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
) -> str:
    """A table as HTML, or what to do if it is empty.

    label   what screen readers call it
    key     columns that a chosen row sends to Python; without them rows cannot be chosen
    chosen  the key of the row that is drawn as chosen
    tall    pixels after which the rows scroll
    follow  whether the arrow keys choose, and not only move
    """
    caption = f"<caption>{escape(title)}<span>{escape(table.run)}</span></caption>" if title else ""
    if table.empty:
        return empty_html(table.empty, title=title)
    heads = "".join(_heading(column, table) for column in columns)
    rows = _whole_numbers(table)
    keys = [{name: row[name] for name in key} for row in rows]
    stop = keys.index(chosen) if chosen in keys else 0  # the one row that the Tab key reaches
    body = []
    for row_idx, row in enumerate(rows):
        attributes = ""
        if key:
            text = escape(json.dumps(keys[row_idx], default=int), quote=True)
            selected = "true" if chosen is not None and keys[row_idx] == chosen else "false"
            attributes = f' data-key="{text}" aria-selected="{selected}" tabindex="{0 if row_idx == stop else -1}"'
        body.append(f"<tr{attributes}>{''.join(_cell(column, row[column.name]) for column in columns)}</tr>")
    style = f' style="--tall:{tall}px"' if tall else ""
    role = ' role="grid"' if key else ""
    return (
        f'<div class="wbu-scroll"{style}><table{role} aria-label="{escape(label, quote=True)}"{" data-follow" if follow else ""}>'
        f"{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _whole_numbers(table: Table) -> list[dict]:
    """The rows; counts that became 5.0 because one of their column is missing are whole again."""
    rows = table.rows
    for name in table.frame.columns:
        values = [row[name] for row in rows]
        present = [value for value in values if isinstance(value, float) and math.isfinite(value)]
        if len(present) < len(values) and present and all(value.is_integer() for value in present):
            rows = [{**row, name: int(row[name])} if row[name] in present else row for row in rows]
    return rows


def empty_html(message: str, *, title: str = "") -> str:
    """Says why there is nothing, and what to do."""
    heading = f"<b>{escape(title)}</b><br>" if title else ""
    return f'<p class="wbu-empty">{heading}{escape(message)}</p>'


def aside_html(text: str) -> str:
    """How to read what stands above it."""
    return f'<p class="wbu-aside">{escape(text)}</p>'


def _heading(column: Column, table: Table) -> str:
    unit = table.units.get(column.name, "")
    small = f"<small>{escape(unit)}</small>" if unit and unit != column.heading else ""
    return f'<th scope="col" class="{_CLASSES[column.kind]}">{escape(column.heading)}{small}</th>'


def _cell(column: Column, value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return f'<td class="{_CLASSES[column.kind]} wbu-none">{NONE}</td>'
    classes = _CLASSES[column.kind]
    if column.kind == "right":
        classes += " wbu-good" if value else " wbu-bad"
    text = escape(_SHOWN.get(column.kind, str)(value))
    if column.kind in ("text", "mono"):  # a long one is cut to a few lines by the style; assets/rows.js opens it
        text = f'<div class="wbu-clip">{text}</div>'
    return f'<td class="{classes}" dir="auto">{text}</td>'


def fresh(html: str) -> str:
    """A fragment in an element of its own name, so that the browser replaces it as a whole.

    Gradio mends a page node by node, keeping what looks alike. A live fragment has state in the browser and its numbers in
    a <template>, which such mending does not see.
    """
    name = f"wb-{hashlib.sha1(html.encode(), usedforsecurity=False).hexdigest()[:12]}"
    return f'<{name} style="display:block">{html}</{name}>'


def whole(address: Mapping[str, object] | None, name: str) -> int | None:
    """A number of the address. Raises TraceError if it is something else."""
    text = str((address or {}).get(name) or "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise TraceError(f'{name} "{text}" of the address is no whole number. Remove it, or choose from the list.')
    return int(text)


def answer_address(
    step: int, rollout: int, *, process: int = 0, probe: bool = False, token: int | None = None
) -> dict[str, str]:
    """The address of one answer, or of one of its tokens, without the parts that say nothing."""
    parts = {
        "step": step,
        "rollout": rollout,
        "process": process or None,
        "probe": 1 if probe else None,
        "token": token,
    }
    return {name: str(value) for name, value in parts.items() if value is not None}


def few(steps: Sequence) -> list:
    """At most MOST_STEPS of the steps, evenly and with the first and the last: what a list offers; others are typed."""
    every = max(1, -(-len(steps) // MOST_STEPS))
    return [step for place, step in enumerate(steps) if place % every == 0 or place == len(steps) - 1]


def rows_component(label: str, **values: object) -> gr.HTML:
    """The place of a table of rows; its `select` event carries the key of the chosen row."""
    return gr.HTML(
        label=label,
        elem_classes="wbu",
        js_on_load="workbenchRows(element, trigger, watch);",
        apply_default_css=False,
        **values,
    )


def fragment_component(label: str, *, js: str | None = None, **values: object) -> gr.HTML:
    """The place of a fragment that brings its own look."""
    return gr.HTML(label=label, js_on_load=js, elem_classes="wbu", apply_default_css=False, **values)


def plot_component(label: str, **values: object) -> gr.Plot:
    """The place of a figure, which has its title in itself."""
    return gr.Plot(label=label, show_label=False, container=False, elem_classes="app-plot", **values)


def read_asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


class OpenTraces:
    """The traces of the runs that were looked at last, kept open: what was read of their files is not read again."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[Path, int], Traces] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run_dir: Path) -> Traces | None:
        """Traces of a run, or None where none are recorded yet."""
        try:
            key = (run_dir, (run_dir / "traces").stat().st_ino)  # a run that was deleted and made anew is another one
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
                while len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
        return traces

    def close(self) -> None:
        """Let all of them go."""
        with self._lock:
            self._open.clear()


TRACES = OpenTraces()
atexit.register(TRACES.close)  # before the interpreter takes the database's library apart
