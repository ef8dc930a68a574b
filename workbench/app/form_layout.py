"""The form of New run: the fields that matter for the chosen method, and under "All settings" every other key.

Gradio draws what is in a closed accordion when it is opened, so the first page has the short form alone.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import gradio as gr
from gradio.components import Component

from workbench.app.components import fragment_component
from workbench.app.form import (
    CHOICE,
    ESSENTIAL,
    NUMBER,
    OFFER,
    OFFERED,
    OFFERS,
    SWITCH,
    TOP,
    Field,
    section_notes,
    slot_field,
)
from workbench.app.method_choices import method_choices, method_sentence, uses_teacher
from workbench.config.schema import RunConfig
from workbench.runs.commands import value_at

Slot = Mapping[str | None, Field]
Form = list[dict[str | None, Field]]  # of form.form_slots
TEACHER = "models.teacher"
TITLES = {"models.lora": "Models: LoRA", "trace": "Traces", "": "Run"}
_SEARCH = """<div class="new-run-search">
<input type="search" placeholder="Search all settings" aria-label="Search all settings">
<label><input type="checkbox"> changed only</label><span role="status"></span></div>"""


@dataclass(frozen=True)
class FormParts:
    """Components of the form.

    widgets  in the order of the form
    about    description of the method
    changed  hidden: the keys whose values are not their defaults, for the search of the settings
    """

    widgets: list[Component]
    about: gr.HTML
    changed: gr.HTML


def lay_out_top(form: Form, method: str, values: Sequence[object]) -> list[Component]:
    """The widgets above the sections: run name and method."""
    return [_widget(slot, method, value) for slot, value in zip(form, values, strict=True) if _key(slot) in TOP]


def lay_out_form(form: Form, top: list[Component], method: str, values: Sequence[object]) -> FormParts:
    """The essential fields, then all other keys by section under "All settings", with a search."""
    pairs = [(slot, value) for slot, value in zip(form, values, strict=True) if _key(slot) not in TOP]
    is_essential = [_key(slot) in ESSENTIAL for slot, _ in pairs]
    about = gr.HTML(about_html(method), elem_id="new-run-about")
    with gr.Row(elem_classes="app-grid", elem_id="new-run-essential"):
        widgets = [*top, *(_widget(*_of(pair, method)) for pair in itertools.compress(pairs, is_essential))]
    with gr.Accordion("All settings", open=False, elem_id="new-run-settings"):
        fragment_component("search of all settings", js="workbenchSettings(element);", value=_SEARCH)
        rest = [pair for pair, chosen in zip(pairs, is_essential, strict=True) if not chosen]
        for section, group in itertools.groupby(rest, key=lambda pair: any_field(pair[0]).section):
            gr.HTML(_heading(section), elem_classes="new-run-section")
            with gr.Row(elem_classes="app-grid"):
                widgets += [_widget(*_of(pair, method)) for pair in group]
    changed = fragment_component("changed settings", js=_WATCH, elem_id="new-run-changed")
    return FormParts(widgets, about, changed)


_WATCH = """watch("value", () => document.dispatchEvent(new Event("workbench-settings")));"""


def changed_html(form: Form, config: RunConfig) -> str:
    """The elements of the fields whose values are not their defaults, for assets/new_run.js."""
    plain = config.to_dict()
    fields = (slot_field(slot, str(config.method["name"])) for slot in form)
    changed = [element_id(field.key) for field in fields if field and value_at(plain, field.key) != field.default]
    return f'<template data-changed="{escape(json.dumps(changed), quote=True)}"></template>'


def _of(pair: tuple[Slot, object], method: str) -> tuple[Slot, str, object]:
    return pair[0], method, pair[1]


def _heading(section: str) -> str:
    text = section_notes().get(section, "Output folder and seed" if not section else "Options of the method")
    title = TITLES.get(section) or section.capitalize()
    return f"<h4>{escape(title)} <small>{escape(text)}</small></h4>"


def element_id(key: str) -> str:
    """The id of a key's element on the page."""
    return "-".join(["new-run", *key.split(".")])


def any_field(slot: Mapping[str | None, Field]) -> Field:
    return next(iter(slot.values()))


def widget_of(key: str, form: Form, widgets: list[Component]) -> Component:
    return widgets[[any_field(slot).key for slot in form].index(key)]


def about_html(method: str) -> str:
    """The first line of a method's docstring as HTML; empty for an unknown name."""
    return f'<p class="app-about">{escape(method_sentence(method))}</p>'


def _widget(slot: Mapping[str | None, Field], method: str, value: object) -> Component:
    """The widget of a key."""
    field = slot_field(slot, method) or any_field(slot)
    common = {
        **_labels(field),
        "elem_id": element_id(field.key),
        "min_width": 200,
        "visible": is_shown(slot, method),
    }
    if field.key == "method.name":
        return gr.Dropdown(list(method_choices()), value=value, allow_custom_value=True, **common)
    if field.key == "output_dir":
        return gr.Textbox(value, interactive=False, **common)
    kind = field.kind
    if kind == SWITCH:
        return gr.Checkbox(bool(value), **common)
    if kind == CHOICE:
        return gr.Dropdown(value=value or "", **common)
    if kind in (OFFER, OFFERS):
        offered = list(OFFERED[field.key])
        return gr.Dropdown(offered, value=value, allow_custom_value=True, multiselect=kind == OFFERS, **common)
    return gr.Number(value, **common) if kind == NUMBER else gr.Textbox(value, **common)


def is_shown(slot: Slot, method: str) -> bool:
    """Whether the chosen method has the key, and reads it."""
    return slot_field(slot, method) is not None and (_key(slot) != TEACHER or uses_teacher(method))


def depends_on_method(slot: Slot) -> bool:
    """Whether another method may hide the widget."""
    return None not in slot or _key(slot) == TEACHER


def _labels(field: Field) -> dict[str, object]:
    """A widget's label, info text and choices."""
    words: dict[str, object] = {
        "label": field.label,
        "info": field.hint,
    }
    if field.kind != CHOICE:
        return words
    empty = [("none", "")] if field.is_nullable else []
    return {**words, "choices": [*empty, *((choice, choice) for choice in field.option.choices)]}


def shown_widget(slot: Slot, method: str, values: Mapping[str, object], *, keep: bool = False) -> object:
    """The update of a widget: the value in `values`, or the default, and whether the method has the key.

    keep  a widget of every method keeps its value
    """
    field = slot_field(slot, method)
    if not is_shown(slot, method):
        return gr.update(visible=False)
    if None in slot and keep:
        return gr.update(visible=True)
    value = field.to_widget(values.get(field.key, field.default))
    if not depends_on_method(slot):
        return value
    return gr.update(value=value or "" if field.kind == CHOICE else value, visible=True, **_labels(field))


def _key(slot: Slot) -> str:
    return any_field(slot).key
