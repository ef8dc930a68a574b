"""Validate requests to the page: the type of each value that an event is called with.

Gradio passes on any JSON, and a callback that expects text fails on a list. `request_fault` checks a request before
Gradio handles it.
"""

import inspect
import json
import math
from collections.abc import Callable

import gradio as gr
from gradio.components import Component

from workbench.app.gradio_private import find_event

CALLS = ("/gradio_api/run/", "/gradio_api/api/", "/gradio_api/call/", "/gradio_api/queue/join")


def request_fault(blocks: gr.Blocks, path: str, body: bytes) -> str | None:
    """The error in a request for an event of the page; None if it is valid, or not for an event."""
    if not path.startswith(CALLS):
        return None
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        return f"The request is not JSON ({str(error)[:100]}). Reload the page."
    if not isinstance(values, dict):
        return f"The request is {_excerpt(values)}. Expected an object with data. Reload the page."
    session, number, data = values.get("session_hash"), values.get("fn_index"), values.get("data")
    if session is not None and not (isinstance(session, str) and len(session) <= 64):
        return f"session_hash is {_excerpt(session)}. Expected text of at most 64 characters. Reload the page."
    event = find_event(blocks, path, number)
    if event is None:
        return f"Unknown event: fn_index {_excerpt(number)} at {path[:100]}. Reload the page."
    if event.fn is None:
        return "This event runs in the browser only. Reload the page."
    if not isinstance(data, list):
        return f"data is {_excerpt(data)}. Expected a list. Reload the page."
    inputs = [component for component in event.inputs if isinstance(component, Component)]
    if len(data) != len(inputs):
        return f"data has {len(data)} values. Expected {len(inputs)} for this event. Reload the page."
    wrong = next((pair for pair in zip(inputs, data, strict=True) if not _fits(*pair)), None)
    if wrong is not None:
        name = wrong[0].label or wrong[0].elem_id or "a value"
        return f'"{name}" is {_excerpt(wrong[1])}. Expected {_kind(wrong[0])[1]}. Enter it again.'
    return _click_fault(values.get("event_data")) if takes_click(event.fn) else None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str | int | float | bool | None) for item in value.values())


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_KINDS: tuple[tuple[type, Callable[[object], bool], str], ...] = (
    (gr.Checkbox, lambda value: isinstance(value, bool), "true or false"),
    (gr.Number, _is_number, "a number"),
    (gr.Slider, _is_number, "a number"),
    (gr.JSON, _is_record, "an object of texts"),
    (gr.File, lambda value: isinstance(value, dict), "an uploaded file"),
)


def _kind(component: Component) -> tuple[Callable[[object], bool], str]:
    """A check of a component's value, and the allowed values in words. Components not listed in _KINDS hold text."""
    if getattr(component, "multiselect", False):
        return _is_texts, "a list of texts"
    return next(((fits, words) for kind, fits, words in _KINDS if isinstance(component, kind)), (_is_text, "text"))


def _fits(component: Component, value: object) -> bool:
    """Whether a component can hold the value. Empty components send null; a slider is never empty."""
    return (value is None and not isinstance(component, gr.Slider)) or _kind(component)[0](value)


def takes_click(callback: Callable) -> bool:
    handler = inspect.unwrap(getattr(callback, "func", callback))
    return any(parameter.annotation is gr.EventData for parameter in inspect.signature(handler).parameters.values())


def _click_fault(event_data: object) -> str | None:
    """The error in a click's data, {key: {...}}, {corners: {...}} or {direction: number}; None if it is valid."""
    if isinstance(event_data, dict):
        key = event_data.get("key", event_data.get("corners"))
        if (key is not None and _is_record(key)) or _is_number(event_data.get("direction")):
            return None
    return f"The click has data {_excerpt(event_data)}. Expected key, corners or direction. Reload the page."


def _excerpt(value: object) -> str:
    return json.dumps(value)[:80]
