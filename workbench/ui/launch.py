"""Launch: a recipe or an earlier run as a form, the command that does the same, the check, and the start.

A run is a process of its own (workbench.jobs): it outlives the page and the app. The check is one too, so that models
are never loaded into the app.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from html import escape

import gradio as gr
from gradio.components import Component

from workbench.commands import copyable, overrides_between, train_command
from workbench.config import RunConfig
from workbench.errors import ConfigError, WorkbenchError
from workbench.jobs import start_run
from workbench.methods import list_methods, method_module
from workbench.ui.context import AppContext, Shared, note, run_choices, sentence, told
from workbench.ui.form import (
    CHOICE,
    NUMBER,
    OFFER,
    OFFERED,
    OFFERS,
    SWITCH,
    TOP,
    Field,
    check_table,
    entered_config,
    fields,
    form_values,
    free_name,
    recipe_file,
    recipes,
    section_notes,
)

CHECK_SECONDS = 600.0
OPEN = ("method", "models", "data", "training")
TITLES = {"models.lora": "Models: LoRA", "trace": "Traces"}
READ_ONLY = "This page is read-only: runs cannot be started from here. The command can be copied."


def build_tab(context: AppContext, shared: Shared) -> None:
    """The tab."""
    every_field = fields()
    choices = recipes(context)
    first = choices[0][1] if choices else None
    values = _first_values(context, every_field, first)
    with gr.Row(elem_id="launch"):
        with gr.Column(scale=5, min_width=560):
            with gr.Row(elem_classes="app-top"):
                recipe = gr.Dropdown(
                    choices, value=first, label="Start from", info="a recipe, or the configuration of an earlier run",
                    allow_custom_value=True, elem_id="launch-recipe",
                )  # fmt: skip
                made = {field: _component(field, values[field]) for field in every_field if field.key in TOP}
            groups = _sections(every_field, made, values)
            with gr.Accordion("More overrides", open=False):
                more = gr.Textbox(
                    label="Overrides", lines=3, placeholder="training.steps=20\nmodels.teachers={maths: path/to/model}",
                    info="lines of key=value, as on the command line; they win over the form", elem_id="launch-more",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=380, elem_id="launch-side"):
            command = gr.Textbox(
                label="The same on the command line", lines=3, max_lines=14, interactive=False, buttons=["copy"],
                elem_id="launch-command",
            )  # fmt: skip
            with gr.Row():
                check = gr.Button("Check", elem_id="launch-check", interactive=not context.read_only)
                start = gr.Button("Start", variant="primary", elem_id="launch-start", interactive=not context.read_only)
            message = gr.HTML(note(READ_ONLY) if context.read_only else "", elem_id="launch-message")
            report = gr.HTML(note(_WHAT_CHECK_DOES), elem_id="launch-report")

    inputs: list[Component] = [recipe, more, *made.values()]
    method = made[next(field for field in made if field.key == "method.name")]
    name = made[next(field for field in made if field.key == "name")]
    silent = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}

    shows = (beside(partial(preview, context, every_field), 1), inputs, [message, command])
    typed = gr.Textbox("", visible="hidden")
    gr.on(
        [one.input for one in (more, *made.values()) if one is not method],
        None,
        None,
        typed,
        js="() => workbenchApp.typed()",
    )
    typed.change(*shows, **silent)
    loaded = recipe.change(
        beside(partial(fill, context, every_field), len(made)), recipe, [message, *made.values()], **silent
    )
    loaded.then(*shows, **silent)
    changed = method.change(partial(show_method, list(groups)), method, list(groups.values()), **silent)
    changed.then(*shows, **silent)
    shared.on_show("launch", told(partial(offer, context), 2), [recipe, name], [recipe, name]).then(*shows, **silent)

    running = {"show_progress": "minimal", "show_progress_on": report, "api_visibility": "private"}
    check.click(beside(partial(run_check, context, every_field), 1), inputs, [message, report], **running)
    started = start.click(
        beside(partial(start_from, context, every_field), 4), inputs,
        [message, shared.run, shared.address, shared.tabs, name], **silent | {"trigger_mode": "once"},
    )  # fmt: skip
    started.then(*shows, **silent)


_WHAT_CHECK_DOES = (
    "Check loads the models, writes a few answers and proves that every view reads the same tokens. "
    "It takes a moment and changes nothing."
)


def beside(callback: Callable, num_outputs: int) -> Callable:
    """The callback, with a message before its outputs: nothing, or what is wrong with the form. Also for generators."""

    def failed(error: Exception) -> tuple:
        return (note(sentence(error), "error"), *[gr.skip()] * num_outputs)

    @wraps(callback, updated=())
    def safe(*values: object) -> Iterator[tuple]:
        try:
            result = callback(*values)
            for outputs in result if isinstance(result, Iterator) else [result]:
                yield ("", *outputs)
        except (WorkbenchError, OSError) as error:
            yield failed(error)

    return safe


def preview(context: AppContext, every_field: list[Field], recipe: str, more: str, *entered: object) -> tuple[str]:
    """The command that starts what the form holds."""
    file = recipe_file(context, recipe)
    config = _entered(context, every_field, more, entered)
    return (copyable(train_command(file, overrides_between(file, config))),)


def fill(context: AppContext, every_field: list[Field], recipe: str) -> list[object]:
    """The values of a recipe, in the order of the fields' components; other methods' options at their defaults."""
    values = form_values(context, recipe)
    return [
        field.shown(values[field.key] if field.method in (None, values["method.name"]) else field.default)
        for field in _in_order(every_field)
    ]


def show_method(names: list[str], method: str) -> list[dict]:
    """Shows the options of the chosen method and hides the others'."""
    return [gr.update(visible=name == method) for name in names]


def offer(context: AppContext, recipe: str | None, name: str) -> tuple[object, object]:
    """The list of recipes and runs as it is now, and a free name in place of one that is taken; the rest stays.

    A reader may be typing already when the answer arrives, so nothing is sent back that need not change.
    """
    choices = recipes(context)
    if not choices:
        raise ConfigError(f"there is no recipe in {context.configs_dir}. Open the app with --configs FOLDER.")
    picker = gr.Dropdown(choices=choices) if recipe else gr.Dropdown(choices=choices, value=choices[0][1])
    free = free_name(context, name)
    return picker, gr.skip() if free == name else free


def run_check(
    context: AppContext, every_field: list[Field], recipe: str, more: str, *entered: object
) -> Iterator[tuple[str]]:
    """What `workbench check` finds, as a table. First says that it is at work."""
    context.check_writable()
    file = recipe_file(context, recipe)
    config = _entered(context, every_field, more, entered)
    if config.models.trust_remote_code:
        raise ConfigError("models.trust_remote_code=true runs code that comes with a model; check it in a terminal.")
    overrides = overrides_between(file, config)
    yield (note("Checking: loading the models, writing a few answers …"),)
    command = [sys.executable, "-m", "workbench", "check", str(file), *overrides]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"the check took longer than {CHECK_SECONDS:g} s and was ended. Run it in a terminal: "
            f"{copyable(['workbench', *command[3:]])}"
        ) from None
    rows = check_table(done.stdout)
    if not rows:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(said[-1].partition(": ")[2] or said[-1] if said else "the check ended without a word.")
    yield (check_html(rows),)


def check_html(rows: list[tuple[str, ...]]) -> str:
    """The table of a check, its verdict first."""
    wrong = sum(status == "WRONG" for _, status, _ in rows)
    verdict = (
        note(f"{wrong} of {len(rows)} checks are wrong: training would learn something else than you mean.", "error")
        if wrong
        else note(f"All {len(rows)} checks hold.", "good")
    )
    body = "".join(
        f'<tr class="app-{status.lower()}-row"><th scope="row">{escape(name)}</th><td>{escape(status)}</td><td>{escape(found)}</td></tr>'
        for name, status, found in rows
    )
    return f'{verdict}<table class="app-table"><thead><tr><th>check</th><th></th><th>found</th></tr></thead><tbody>{body}</tbody></table>'


def start_from(context: AppContext, every_field: list[Field], recipe: str, more: str, *entered: object) -> tuple:
    """Starts the run and turns the page to it: run picker, address, tabs, and the next free name for the form."""
    context.check_writable()
    config = _entered(context, every_field, more, entered)
    state = start_run(config, context.runs_dir)
    picker = gr.Dropdown(choices=run_choices(context), value=state.name)
    return picker, {}, gr.Tabs(selected="watch"), free_name(context, config.name)


def _entered(context: AppContext, every_field: list[Field], more: str, entered: tuple) -> RunConfig:
    return entered_config(context, dict(zip(_in_order(every_field), entered, strict=True)), more or "")


def _in_order(every_field: list[Field]) -> list[Field]:
    """The order of the components on the page."""
    top = [field for field in every_field if field.key in TOP]
    rest = [field for field in every_field if field.key not in TOP]
    places = {section: place for place, section in enumerate(_section_names(every_field))}
    return top + sorted(
        rest, key=lambda field: (places[field.section], list_methods().index(field.method or list_methods()[0]))
    )


def _section_names(every_field: list[Field]) -> list[str]:
    named = dict.fromkeys(field.section for field in every_field if field.key not in TOP)
    return ["method", *[name for name in named if name not in ("", "method")], ""]


def _first_values(context: AppContext, every_field: list[Field], recipe: str | None) -> dict[Field, object]:
    """What the form holds at first: the first recipe, or defaults if that is none; its command then says what is wrong."""
    try:
        shown = fill(context, every_field, recipe)
    except WorkbenchError:
        shown = [field.shown(field.default) for field in _in_order(every_field)]
    return dict(zip(_in_order(every_field), shown, strict=True))


def _sections(
    every_field: list[Field], made: dict[Field, Component], values: dict[Field, object]
) -> dict[str, gr.Column]:
    """An accordion per section, added to `made` in order; returns the column of each method's options."""
    groups: dict[str, gr.Column] = {}
    notes = section_notes()
    chosen = next(value for field, value in values.items() if field.key == "method.name")
    ordered = [field for field in _in_order(every_field) if field.key not in TOP]
    for section in _section_names(every_field):
        title = TITLES.get(section) or ("Run" if not section else section.capitalize())
        with gr.Accordion(title, open=section in OPEN, elem_id=f"launch-section-{section.replace('.', '-') or 'run'}"):
            if section != "method":
                gr.HTML(f'<p class="app-about">{escape(notes.get(section, "Where it goes, and its dice."))}</p>')
                with gr.Row(elem_classes="app-grid"):
                    made |= {field: _component(field, values[field]) for field in ordered if field.section == section}
                continue
            for name in list_methods():
                with gr.Column(visible=name == chosen, elem_id=f"launch-method-{name}") as groups[name]:
                    about = (method_module(name).__doc__ or "").splitlines()[0]
                    gr.HTML(f'<p class="app-about">{escape(about)}</p>')
                    with gr.Row(elem_classes="app-grid"):
                        made |= {field: _component(field, values[field]) for field in ordered if field.method == name}
    return groups


def _component(field: Field, value: object) -> Component:
    """What a key is entered with."""
    common = {
        "label": {"name": "Run name", "method.name": "Method"}.get(field.key, field.label),
        "info": field.hint,
        "elem_id": "-".join(["launch", *([field.method] if field.method else []), *field.key.split(".")]),
        "min_width": 200,
    }
    if field.key == "method.name":
        return gr.Dropdown(list(list_methods()), value=value, allow_custom_value=True, **common)
    if field.key == "output_dir":
        return gr.Textbox(value, interactive=False, **common)
    kind = field.kind
    if kind == SWITCH:
        return gr.Checkbox(bool(value), **common)
    if kind == CHOICE:
        empty = [("none", "")] if field.is_nullable else []
        return gr.Dropdown([*empty, *((one, one) for one in field.option.choices)], value=value or "", **common)
    if kind in (OFFER, OFFERS):
        offered = list(OFFERED[field.key])
        return gr.Dropdown(offered, value=value, allow_custom_value=True, multiselect=kind == OFFERS, **common)
    return gr.Number(value, **common) if kind == NUMBER else gr.Textbox(value, **common)
