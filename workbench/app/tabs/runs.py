"""All runs: a table to sort, search, label, rename, clone and delete; where there are none, cards to start with.

The browser (assets/runs.js) sorts, searches and draws the rows, which Python sends as JSON with their texts. Everything
that changes a run is an action here: the key of an event, `{action, name, ...}`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from html import escape

import gradio as gr

from workbench.analysis.run_columns import csv_lines, search_text, shown_columns
from workbench.analysis.run_table import RunRow, list_run_rows
from workbench.app.context import AppContext, Shared, note, persistent_params, sentence
from workbench.errors import RunError, WorkbenchError
from workbench.runs.example_run import add_example_run
from workbench.runs.job_state import ALIVE
from workbench.runs.labels import label_run
from workbench.runs.manage import delete_run, rename_run, runs_that_use

POLL_S = 5.0  # seconds between looks for changes while the tab is open
TABLE = """<div class="runs-table runs-empty">
<div class="runs-tools">
<input type="search" data-part="search" aria-label="Search runs" placeholder="Search name, method, state, tags, note">
<label><input type="checkbox" data-part="archived"> archived (<span data-part="archived-count">0</span>)</label>
<span data-part="count" role="status"></span>
<button type="button" data-part="csv">Download CSV</button>
</div>
<div class="runs-scroll" tabindex="-1"><table aria-label="All runs"><thead data-part="head"></thead>
<tbody data-part="body"></tbody></table></div></div>"""
CARDS = (
    (
        "demo",
        "Try the demo in a minute",
        "Two small models come with the workbench. A student learns from a teacher that sees an enlarged part of the "
        "picture, on rendered scenes where it is known which token needs that part. Less than a minute on two cores.",
        "Fill in the demo",
    ),
    (
        "guide",
        "My data and models",
        "One JSON line per question, with its image and any evidence; any image-text-to-text model as the student and "
        "a larger one with the same tokens as its teacher. A guide leads through the four fields.",
        "Open the guide",
    ),
    (
        "example",
        "Look at an example run",
        "A smaller demo as it was recorded, with a self that follows the student: curves, every token of some answers "
        "under each view, and what of the gain is leakage. It is copied into the runs folder (1 MB).",
        "Open the example",
    ),
)
READ_ONLY = "This page is read-only, so it cannot start runs. Open the app without --read-only."


def build_tab(context: AppContext, shared: Shared) -> None:
    """The cards and the table; the browser shows the cards while there are no runs."""
    message = gr.HTML("", elem_id="runs-message", padding=False)
    cards = _component("", "runs-start", "workbenchCards(element, trigger);")
    table = _component(TABLE, "runs-all", "workbenchRuns.start(element, trigger);")
    update = "watch('value', () => requestAnimationFrame(() => workbenchRuns.update()));"
    data = _component("", "runs-data", update)
    mark = gr.Textbox("", visible="hidden")

    def choose(event: gr.EventData, run: str | None, address: Mapping | None) -> tuple:
        return act(context, run, address, event.key)

    for component in (cards, table):
        component.select(
            choose,
            [shared.run, shared.address],
            [message, cards, data, mark, shared.run, shared.address, shared.tab],
            trigger_mode="multiple",
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
    shared.on_show("runs", partial(draw, context), [], [cards, data, mark])
    gr.Timer(POLL_S).tick(
        partial(redraw, context),
        [shared.tab, mark],
        [cards, data, mark],
        show_progress="hidden",
        api_visibility="private",
        queue=False,
    )


def _component(html: str, elem_id: str, js: str) -> gr.HTML:
    return gr.HTML(html, elem_id=elem_id, js_on_load=js, apply_default_css=False, padding=False)


def draw(context: AppContext, question: Mapping | None = None) -> tuple[str, str, str]:
    """The cards ("" if there are runs), the rows as JSON in HTML, and the mark of both.

    question  {name, text}: what the panel of a run asks before it is deleted
    """
    rows = list_run_rows(context.runs_dir)
    cards = "" if rows else cards_html(read_only=context.read_only)
    values = json.dumps(table_values(rows, read_only=context.read_only, question=question), ensure_ascii=False)
    mark = hashlib.sha1((cards + values).encode(), usedforsecurity=False).hexdigest()
    return cards, f'<i hidden data-json="{escape(values, quote=True)}"></i>', mark


def redraw(context: AppContext, tab: str, mark: str) -> tuple:
    """As `draw`, if the tab is open and a run has changed."""
    if tab == "runs":
        drawn = draw(context)
        if drawn[-1] != mark:
            return drawn
    return gr.skip(), gr.skip(), gr.skip()


def table_values(rows: list[RunRow], *, read_only: bool = False, question: Mapping | None = None) -> dict[str, object]:
    """What the browser draws: columns, and rows with texts, values for sorting, labels and a line of CSV."""
    columns = shown_columns(rows)
    header, *lines = csv_lines(rows)
    return {
        "columns": [
            {"key": column.key, "title": column.title, "help": column.help, "number": column.is_number}
            for column in columns
        ],
        "rows": [
            {
                "name": row.name,
                "leaf": row.run_dir.name,
                "cells": [column.text(row) for column in columns],
                "sort": [column.value(row) for column in columns],
                "search": search_text(row),
                "reason": row.reason,
                "tags": list(row.labels.tags),
                "note": row.labels.note,
                "archived": row.labels.archived,
                "alive": row.status in ALIVE,
                "csv": line,
            }
            for row, line in zip(rows, lines, strict=True)
        ],
        "csv": header,
        "read_only": read_only,
        "question": question,
    }


def cards_html(*, read_only: bool = False) -> str:
    """The start page: three ways to begin."""
    disabled = " disabled" if read_only else ""
    sections = "".join(
        f"<section><h3>{escape(title)}</h3><p>{escape(text)}</p>"
        f'<button type="button" data-card="{action}"{disabled}>{escape(button)}</button></section>'
        for action, title, text, button in CARDS
    )
    words = READ_ONLY if read_only else "No runs yet. Three ways to begin:"
    head = f"<h2>Start here</h2><p>{escape(words)}</p>"
    return f'<div class="runs-start">{head}<div class="runs-cards">{sections}</div></div>'


def act(context: AppContext, run: str | None, address: Mapping | None, key: Mapping) -> tuple:
    """Do the action of a row or a card: message, cards, data, mark, run, address, tab.

    key  {action, name, ...} as assets/runs.js sends it
    """
    try:
        return _act(context, run, address, key)
    except (WorkbenchError, OSError) as error:
        return note(sentence(error), "error"), *draw(context), gr.skip(), gr.skip(), gr.skip()


def _act(context: AppContext, run: str | None, address: Mapping | None, key: Mapping) -> tuple:
    action, name = str(key.get("action")), str(key.get("name") or "")
    stay = ("", gr.skip(), gr.skip(), gr.skip())
    if action == "open":
        context.job(name)
        return *stay, name, persistent_params(address), "training"
    if action in ("clone", "demo"):
        choice = f"run:{name}" if action == "clone" else "recipe:demo.yaml"
        return *stay, gr.skip(), {"start_from": choice}, "new-run"
    if action == "guide":
        real = "vlm-lora.yaml"  # the recipe for real models, of the built-in ones
        starts = {"start_from": f"recipe:{real}"} if (context.configs_dir / real).is_file() else {}
        return *stay, gr.skip(), {"guide": "1", **starts}, "new-run"
    context.check_writable()
    if action == "example":
        return *stay, add_example_run(context.runs_dir), {}, "training"
    message, chosen, question = _change(context, run, action, name, key)
    return note(message, "good"), *draw(context, question), chosen, gr.skip(), gr.skip()


def _change(
    context: AppContext, run: str | None, action: str, name: str, key: Mapping
) -> tuple[str, object, Mapping | None]:
    """Change a run. Returns a message, the run that the page shows, and a question before a deletion."""
    runs_dir, stays = context.runs_dir, gr.skip()
    if action == "rename":
        renamed = rename_run(runs_dir, name, str(key.get("value") or "").strip())
        return f"{name} is now {renamed}.", renamed if run == name else stays, None
    if action == "label":
        label_run(runs_dir, name, tags=str(key.get("tags") or "").split(","), note=str(key.get("note") or ""))
        return f"Tags and note of {name} are saved.", stays, None
    if action in ("archive", "unarchive"):
        label_run(runs_dir, name, archived=action == "archive")
        return f"{name} is archived." if action == "archive" else f"{name} is listed again.", stays, None
    if action == "ask":
        users = runs_that_use(runs_dir, name)
        uses = f" {', '.join(users)} uses its files." if users else ""
        text = f"Delete {name} with everything that it recorded? This cannot be undone.{uses}"
        return "", stays, {"name": name, "text": text}
    if action == "delete":
        delete_run(runs_dir, name)
        rest = [row.name for row in list_run_rows(runs_dir)]
        return f"{name} is deleted.", (next(iter(rest), None) if run == name else stays), None
    if action == "keep":
        return "", stays, None
    raise RunError(f'"{action}" is not an action on a run.')
