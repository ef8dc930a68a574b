"""Gradio's internals that the page relies on, all in workbench/app/gradio_private.py."""

from pathlib import Path

import gradio as gr
import pytest

from workbench.app.gradio_private import NO_SELF_REQUEST, QUEUE_PAUSE_S, find_event, plotly_module, slow_queue

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
