"""Gradio's internals that the page relies on, all in workbench/app/gradio_private.py."""

from pathlib import Path

import gradio as gr
import pytest

from workbench.app.context import AppContext
from workbench.app.gradio_private import (
    NO_SELF_REQUEST,
    QUEUE_PAUSE_S,
    find_event,
    plotly_module,
    slow_queue,
    track_visible_progress,
)
from workbench.app.layout import build_app

VERSION = "6.31.0"  # in which the internals were checked


def test_gradio_queue_and_events_have_used_attributes() -> None:
    with gr.Blocks() as app:
        button = gr.Button()
        button.click(str.upper, gr.Textbox(), gr.Textbox(), api_name="shout")
    app.queue()
    attributes = {"sleep_when_free", "progress_update_sleep_when_free"}
    assert attributes <= vars(app._queue).keys(), f"Gradio is {gr.__version__}, checked was {VERSION}"
    slow_queue(app)
    assert app._queue.sleep_when_free == QUEUE_PAUSE_S
    (number,) = app.fns
    assert find_event(app, "/gradio_api/run/shout", None) is find_event(app, "", number) is app.fns[number]
    assert find_event(app, "/gradio_api/run/shout", True) is None


def test_gradio_events_without_visible_progress_track_no_component() -> None:
    with gr.Blocks() as app:
        button, text = gr.Button(), gr.Textbox()
        for progress in ("full", "hidden"):
            button.click(str.upper, text, text, show_progress=progress)
    track_visible_progress(app)
    targets = [event["show_progress_on"] for event in app.get_config_file()["dependencies"]]
    assert targets == [None, []], f"Gradio is {gr.__version__}, checked was {VERSION}"  # None: all outputs
    script = (Path(gr.__file__).parent / "templates/frontend/assets").glob("Blocks-*.js")
    # an empty list is true in JavaScript, so that it replaces the outputs
    assert any("this.show_progress_on||this.outputs" in file.read_text() for file in script)


def test_page_events_track_progress_only_where_they_show_it(context: AppContext) -> None:
    events = [event for event in build_app(context).get_config_file()["dependencies"] if event["backend_fn"]]
    hidden = [event["show_progress_on"] for event in events if event["show_progress"] == "hidden"]
    assert len(hidden) > 0.9 * len(events)
    assert hidden == [[]] * len(hidden)


def test_gradio_assets_have_the_script_that_sets_plotly() -> None:
    file = Path(gr.__file__).parent / "templates/frontend/assets" / plotly_module()
    assert "window.Plotly=" in file.read_text()[-20_000:], f"Gradio is {gr.__version__}, checked was {VERSION}"


def test_gradio_launch_own_url_unreachable_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with gr.Blocks() as app:
        gr.Textbox()
    with pytest.raises(ValueError, match="localhost"):
        app.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    app.close()
    app.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, **NO_SELF_REQUEST)
    assert app.is_running
    app.close()
