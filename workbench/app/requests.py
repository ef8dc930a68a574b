"""What a request to the page may hold: the kind of each value that an event is called with.

Gradio hands on whatever JSON it gets, and a callback that expects text fails on a list. `request_fault` says in a sentence
what is wrong with a request, before Gradio sees it.
"""

import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components import Component

CALLS = ("/gradio_api/run/", "/gradio_api/api/", "/gradio_api/call/", "/gradio_api/queue/join")


def request_fault(blocks: gr.Blocks, path: str, body: bytes) -> str | None:
    """What is wrong with a request for an event of the page; None if nothing is, or if it is for something else."""
    if not path.startswith(CALLS):
        return None
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        return f"The request is not JSON ({str(error)[:100]}). Load the page again."
    if not isinstance(values, dict):
        return f"The request is {_shown(values)}; it must be an object with data. Load the page again."
    session, number, data = values.get("session_hash"), values.get("fn_index"), values.get("data")
    if session is not None and not (isinstance(session, str) and len(session) <= 64):
        return f"session_hash is {_shown(session)}; it must be text of at most 64 characters."
    event = _event(blocks, path, number)
    if event is None:
        return f"There is no such event (fn_index {_shown(number)}, {path[:100]}). Load the page again."
    if event.fn is None:
        return "This event happens in the browser alone; the server has nothing to call. Load the page again."
    if not isinstance(data, list):
        return f"data is {_shown(data)}; it must be a list. Load the page again."
    inputs = [component for component in event.inputs if isinstance(component, Component)]
    if len(data) != len(inputs):
        return f"data has {len(data)} values; this event takes {len(inputs)}. Load the page again."
    wrong = next((pair for pair in zip(inputs, data, strict=True) if not _fits(*pair)), None)
    if wrong is not None:
        name = wrong[0].label or wrong[0].elem_id or "a value"
        return f'"{name}" is {_shown(wrong[1])}; it must be {_kind(wrong[0])[1]}. Enter it again.'
    return _click_fault(values.get("event_data")) if takes_click(event.fn) else None


def _event(blocks: gr.Blocks, path: str, number: object) -> Any:
    """The event that a request is for, as Gradio finds it: by number, or else by name."""
    if number is not None:
        return blocks.fns.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    name = path.removesuffix("/").rpartition("/")[2]
    return next((event for event in blocks.fns.values() if event.api_name == name), None)


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
    """A check of a component's value, and what it allows, in words. Whatever is not listed holds text."""
    if getattr(component, "multiselect", False):
        return _is_texts, "a list of texts"
    return next(((fits, words) for kind, fits, words in _KINDS if isinstance(component, kind)), (_is_text, "text"))


def _fits(component: Component, value: object) -> bool:
    """Nothing entered is null; a slider always stands somewhere."""
    return (value is None and not isinstance(component, gr.Slider)) or _kind(component)[0](value)


def takes_click(callback: Callable) -> bool:
    handler = inspect.unwrap(getattr(callback, "func", callback))
    return any(parameter.annotation is gr.EventData for parameter in inspect.signature(handler).parameters.values())


def _click_fault(event_data: object) -> str | None:
    """What is wrong with the data of a click: {key: {...}}, {corners: {...}} or {direction: number}."""
    if isinstance(event_data, dict):
        key = event_data.get("key", event_data.get("corners"))
        if (key is not None and _is_record(key)) or _is_number(event_data.get("direction")):
            return None
    return f"The click carries {_shown(event_data)}; it must name what was clicked. Load the page again."


def _shown(value: object) -> str:
    return json.dumps(value)[:80]
