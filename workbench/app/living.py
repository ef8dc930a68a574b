"""A run that goes on while one of its tabs is read: what there is to see appears, and what is newer is counted.

A tab that shows nothing yet is drawn as soon as there is something. One that shows something stays as it is, so that
nothing moves under a reader, and says up to which step the run has recorded since.
"""

import json
import time
from functools import partial

import gradio as gr

from workbench.app.components import TRACES, fragment_component
from workbench.app.context import AppContext, Shared, note
from workbench.errors import WorkbenchError

POLL_S = 4.0


def watch_run(context: AppContext, shared: Shared, tab: str, table: str) -> None:
    """Puts a line in this place that follows the run while `tab` is open; `table` of the traces is what the tab shows."""
    news = fragment_component("what the run has recorded since", elem_id=f"{tab}-news")
    shown = gr.JSON(None, visible="hidden")
    timer = gr.Timer(POLL_S, active=False)
    quiet = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    wake = shared.refresh_trigger[tab]
    wake.change(partial(look, context, table), shared.run, [news, shown, timer], **quiet)
    timer.tick(partial(poll, context, table, tab), [shared.run, shared.tab, shown], [news, wake, timer], **quiet)


def look(context: AppContext, table: str, run: str | None) -> tuple[str, dict, gr.Timer]:
    """What to say while nothing is recorded; run and newest step, as `poll` takes them; a timer that goes while it lives."""
    newest, doing, is_alive = _state(context, table, run)
    return (doing if newest is None else ""), {"run": run, "step": newest}, gr.Timer(active=is_alive)


def poll(context: AppContext, table: str, tab: str, run: str | None, open_tab: str, shown: dict | None) -> tuple:
    """What is newer than the shown step; another text for the tab's `wake` if the tab is to be drawn; the timer."""
    if open_tab != tab or not shown or shown.get("run") != run:
        return gr.skip(), gr.skip(), gr.skip()
    newest, doing, is_alive = _state(context, table, run)
    timer = gr.skip() if is_alive else gr.Timer(active=False)
    if newest is None:
        return doing, gr.skip(), timer
    if shown.get("step") is None:
        return "", json.dumps([run, time.time()]), timer
    listed = shown["step"]
    since = f"Recorded since: up to step {newest:,}; listed up to step {listed:,}. Look again shows the newer ones."
    return (note(since) if newest != listed else ""), gr.skip(), timer


def _state(context: AppContext, table: str, run: str | None) -> tuple[int | None, str, bool]:
    """The newest recorded step, what the run is doing, and whether it lives."""
    try:
        state = context.job(run)
        traces = TRACES.of(state.run_dir)
        steps = traces.steps(table) if traces is not None else []
    except (WorkbenchError, OSError):  # the tab says it
        return None, "", False
    doing = f": {state.doing}" if state.doing else ""
    text = f"{state.name} is {state.status}{doing}; step {state.step:,} of {state.steps or 0:,}. What it records appears here."
    return (steps[-1] if steps else None), note(text) if state.is_alive else "", state.is_alive
