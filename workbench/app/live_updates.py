"""Follow a run that records while one of its tabs is open.

A tab without data is drawn as soon as the run records some. A tab with data stays as it is, so that nothing moves while
the user reads it, and a line above it names the newest recorded step.
"""

import json
import time
from functools import partial

import gradio as gr

from workbench.app.components import TRACES, fragment_component
from workbench.app.context import AppContext, Shared, note
from workbench.errors import WorkbenchError

POLL_S = 4.0


def follow_run(context: AppContext, shared: Shared, tab: str, table: str) -> None:
    """Add a line that follows the run while `tab` is open; `table` is the table of the traces that the tab shows."""
    news = fragment_component("newer steps of the run", elem_id=f"{tab}-news")
    shown_state = gr.JSON(None, visible="hidden")
    timer = gr.Timer(POLL_S, active=False)
    quiet = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    trigger = shared.refresh_trigger[tab]
    in_order = {**quiet, "queue": True, "trigger_mode": "multiple"}  # see Shared.on_show
    trigger.change(partial(start_following, context, table), shared.run, [news, shown_state, timer], **in_order)
    timer.tick(
        partial(poll, context, table, tab),
        [shared.run, shared.tab, shown_state],
        [news, trigger, timer],
        **quiet,
    )


def start_following(context: AppContext, table: str, run: str | None) -> tuple[str, dict, gr.Timer]:
    """A message while nothing is recorded; run and newest step, for `poll`; a timer, active while the run is alive."""
    newest, doing, is_alive = _state(context, table, run)
    return (doing if newest is None else ""), {"run": run, "step": newest}, gr.Timer(active=is_alive)


def poll(context: AppContext, table: str, tab: str, run: str | None, open_tab: str, shown_state: dict | None) -> tuple:
    """A line if newer steps are recorded; a new text for the tab's trigger if the tab must be drawn; the timer."""
    if open_tab != tab or not shown_state or shown_state.get("run") != run:
        return gr.skip(), gr.skip(), gr.skip()
    newest, doing, is_alive = _state(context, table, run)
    timer = gr.skip() if is_alive else gr.Timer(active=False)
    if newest is None:
        return doing, gr.skip(), timer
    if shown_state.get("step") is None:
        return "", json.dumps([run, time.time()]), timer
    listed = shown_state["step"]
    news = f"Step {newest:,} is recorded; this tab shows steps up to {listed:,}. Press Refresh to show newer steps."
    return (note(news) if newest != listed else ""), gr.skip(), timer


def _state(context: AppContext, table: str, run: str | None) -> tuple[int | None, str, bool]:
    """The newest recorded step, a note on what the run is doing, and whether it is alive."""
    try:
        state = context.job(run)
        traces = TRACES.of(state.run_dir)
        steps = traces.steps(table) if traces is not None else []
    except (WorkbenchError, OSError):  # the tab shows the error
        return None, "", False
    doing = f": {state.doing}" if state.doing else ""
    steps_done = f"step {state.step:,} of {state.steps or 0:,}"
    text = f"{state.name} is {state.status}{doing}; {steps_done}. Its records will appear here."
    return (steps[-1] if steps else None), note(text) if state.is_alive else "", state.is_alive
