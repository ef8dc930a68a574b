"""Launch: a recipe or an earlier run as a form, the command that does the same, the check, and the start.

A run is a process of its own (workbench.runs.jobs): it outlives the page and the app. The check is one too, so that models
are never loaded into the app.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from html import escape

import gradio as gr
from gradio.components import Component

from workbench.app.context import AppContext, Shared, note, run_choices, sentence, show_errors
from workbench.app.form import (
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
    field_at,
    fields,
    form_values,
    free_name,
    places,
    recipe_file,
    recipes,
    section_notes,
)
from workbench.config.models import check_models, refuse_remote_code
from workbench.data.picture_bounds import as_variable
from workbench.errors import ConfigError, WorkbenchError
from workbench.methods import list_methods, method_module
from workbench.runs.commands import copyable, overrides_between, train_command
from workbench.runs.jobs import start_run
from workbench.runs.processes import child_environment

Form = list[dict[str | None, Field]]  # form.places
CHECK_SECONDS = 600.0
OPEN = ("method", "models", "data", "training")
TITLES = {"models.lora": "Models: LoRA", "trace": "Traces"}
READ_ONLY = "This page is read-only: runs cannot be started from here. The command can be copied."


def build_tab(context: AppContext, shared: Shared) -> None:
    """The tab."""
    form = places(fields())
    choices = recipes(context)
    first = choices[0][1] if choices else None
    method, values = _first_values(context, form, first)
    with gr.Row(elem_id="launch"):
        with gr.Column(scale=5, min_width=560):
            with gr.Row(elem_classes="app-top"):
                recipe = gr.Dropdown(
                    choices,
                    value=first,
                    label="Start from",
                    info="a recipe, or the configuration of an earlier run",
                    allow_custom_value=True,
                    elem_id="launch-recipe",
                )
                made = [
                    _component(place, method, value)
                    for place, value in zip(form, values, strict=True)
                    if _is_top(place)
                ]
            about = _sections(form, made, method, values)
            with gr.Accordion("More overrides", open=False):
                more = gr.Textbox(
                    label="Overrides",
                    lines=3,
                    placeholder="training.steps=20\nmodels.teachers={maths: path/to/model}",
                    info="lines of key=value, as on the command line; they win over the form",
                    elem_id="launch-more",
                )
        about_check = note(READ_ONLY if context.read_only else _what_happens(context))
        command, check, start, message, said, report, checked = _side(context, about_check)

    inputs: list[Component] = [recipe, more, *made]
    chooser, name = (made[[_first(place).key for place in form].index(key)] for key in ("method.name", "name"))
    options = [one for place, one in zip(form, made, strict=True) if None not in place]
    silent = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}

    shows = (beside(partial(preview, context, form), 1, str), inputs, [message, command])  # a wrong form has no command
    typed = gr.Textbox("", visible="hidden", elem_id="launch-typed")
    # text, numbers and switches are listened to by assets/app.js, all at once: each event of each box would cost the first page
    lists = [one.input for one in made if isinstance(one, gr.Dropdown) and one is not chooser]
    gr.on(lists, None, None, typed, js="() => workbenchApp.typed()")
    edited = [typed.change, chooser.input, recipe.change]
    gr.on(edited, None, None, [said, report], js=f"() => ['', {json.dumps(about_check)}]")
    typed.change(*shows, **silent)
    loaded = recipe.change(
        beside(partial(fill, context, form), 1 + len(made)), recipe, [message, about, *made], **silent
    )
    loaded.then(*shows, **silent)
    changed = chooser.input(partial(show_method, context, form), [recipe, chooser], [about, *options], **silent)
    changed.then(*shows, **silent)
    shared.on_show("launch", show_errors(partial(offer, context), 2), [recipe, name], [recipe, name]).then(
        *shows, **silent
    )

    running = {"show_progress": "minimal", "show_progress_on": report, "api_visibility": "private"}
    checking = check.click(
        partial(checked_form, context, form), inputs, [said, report, checked], trigger_mode="always_last", **running
    )
    checking.then(outdated, [checked, command], [said, report], **silent)
    started = start.click(
        beside(partial(start_from, context, form), 4),
        inputs,
        [said, shared.run, shared.address, shared.tabs, name],
        **silent | {"trigger_mode": "once"},
    )
    started.then(*shows, **silent)


def _side(context: AppContext, about_check: str) -> tuple[Component, ...]:
    """Beside the form: the command, Check and Start, what the form lacks, what the two did, the report, and, hidden, the
    command that was checked."""
    is_open = not context.read_only
    with gr.Column(scale=3, min_width=380, elem_id="launch-side"):
        command = gr.Textbox(
            label="The same on the command line",
            lines=3,
            max_lines=14,
            interactive=False,
            buttons=["copy"],
            elem_id="launch-command",
        )
        with gr.Row():
            check = gr.Button("Check", elem_id="launch-check", interactive=is_open)
            start = gr.Button("Start", variant="primary", elem_id="launch-start", interactive=is_open)
        message = gr.HTML("", elem_id="launch-message")  # of the form as it is
        outcome = gr.HTML("", elem_id="launch-said")  # of Check or Start, until the form is edited
        report = gr.HTML(about_check, elem_id="launch-report")
        checked = gr.Textbox("", visible="hidden")
    return command, check, start, message, outcome, report, checked


_WHAT_CHECK_DOES = (
    "Check loads the models, writes a few answers and proves that every view reads the same tokens. "
    "It takes a moment and changes nothing."
)


def _what_happens(context: AppContext) -> str:
    """What Check and Start do."""
    if context.max_runs is None:
        return _WHAT_CHECK_DOES
    runs = "1 run is" if context.max_runs == 1 else f"{context.max_runs} runs are"
    return f"{_WHAT_CHECK_DOES} At most {runs} at work at once (workbench app --max-runs); further ones wait for their turn."


def beside(callback: Callable, num_outputs: int, otherwise: Callable[[], object] = gr.skip) -> Callable:
    """The callback, with a message before its outputs: nothing, or what is wrong with the form. Also for generators.

    otherwise  makes what the outputs become if something is wrong; they stay as they are
    """

    def failed(error: Exception) -> tuple:
        return (note(sentence(error), "error"), *[otherwise()] * num_outputs)

    @wraps(callback, updated=())
    def safe(*values: object) -> Iterator[tuple]:
        try:
            result = callback(*values)
            for outputs in result if isinstance(result, Iterator) else [result]:
                yield ("", *outputs)
        except (WorkbenchError, OSError) as error:
            yield failed(error)

    return safe


def preview(context: AppContext, form: Form, recipe: str, more: str, *entered: object) -> tuple[str]:
    """The command that starts what the form holds."""
    file = recipe_file(context, recipe)
    config = entered_config(context, form, entered, more or "")
    return (copyable(train_command(file, overrides_between(file, config))),)


def recipe_values(context: AppContext, form: Form, recipe: str) -> list[object]:
    """What each component holds for a recipe; one that is for other methods' options holds a default of theirs."""
    values = form_values(context, recipe)
    method = str(values["method.name"])
    fields_now = [field_at(place, method) for place in form]
    return [
        field.shown(values[field.key]) if field else _first(place).shown(_first(place).default)
        for field, place in zip(fields_now, form, strict=True)
    ]


def fill(context: AppContext, form: Form, recipe: str) -> list[object]:
    """What is said about a recipe's method, and its values; options of other methods are hidden."""
    values = form_values(context, recipe)
    method = str(values["method.name"])
    return [
        _about(method),
        *(
            place[None].shown(values[place[None].key]) if None in place else _shown_option(place, method, values)
            for place in form
        ),
    ]


def show_method(context: AppContext, form: Form, recipe: str | None, method: str) -> list[object]:
    """What is said about the chosen method, and its options as the recipe has them, if it is the recipe's, else at their
    defaults; other methods' are hidden."""
    try:
        values = form_values(context, recipe)
    except WorkbenchError:  # what is wrong with the recipe is said beside the command
        values = {}
    own = values if values.get("method.name") == method else {}
    return [_about(method), *(_shown_option(place, method, own) for place in form if None not in place)]


def offer(context: AppContext, recipe: str | None, name: str) -> tuple[object, object]:
    """The list of recipes and runs as it is now, and a free name in place of one that is taken; the rest stays.

    A reader may be typing already when the answer arrives, so nothing is sent back that need not change.
    """
    choices = recipes(context)
    if not choices:
        raise ConfigError(f"there is no recipe in {context.configs_dir}. Open the app with --configs FOLDER.")
    picker = gr.Dropdown(choices=choices) if recipe else gr.Dropdown(choices=choices, value=choices[0][1])
    free = free_name(context, name or "")
    return picker, gr.skip() if free == name else free


def checked_form(context: AppContext, form: Form, recipe: str, more: str, *entered: object) -> Iterator[tuple]:
    """What is wrong with the form, what its check found, and the command that was checked ("": the form holds none)."""
    command = ""
    try:
        (command,) = preview(context, form, recipe, more, *entered)
        for (report,) in run_check(context, form, recipe, more, *entered):
            yield "", report, command
    except (WorkbenchError, OSError) as error:
        yield note(sentence(error), "error"), "", command


def outdated(checked: str, command: str) -> tuple:
    """In place of what was found, if the form holds another command by now."""
    if checked == command:
        return gr.skip(), gr.skip()
    return "", note("The form was changed while it was checked, so what was found is left out. Check again.", "warning")


def run_check(context: AppContext, form: Form, recipe: str, more: str, *entered: object) -> Iterator[tuple[str]]:
    """What `workbench check` finds, as a table. First says that it is at work."""
    context.check_writable()
    file = recipe_file(context, recipe)
    config = entered_config(context, form, entered, more or "")
    check_models(config)
    overrides = overrides_between(file, config)
    refuse_remote_code(config, copyable(["workbench", "check", str(file), *overrides]))
    yield (note("Checking: loading the models, writing a few answers …"),)
    command = [sys.executable, "-m", "workbench", "check", str(file), *overrides]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
            env=child_environment() | as_variable(context.folders),
        )
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


def start_from(context: AppContext, form: Form, recipe: str, more: str, *entered: object) -> tuple:
    """Starts the run and turns the page to it: run picker, address, tabs, and the next free name for the form."""
    context.check_writable()
    config = entered_config(context, form, entered, more or "")
    state = start_run(config, context.runs_dir, folders=context.folders, queue=context.queue)
    picker = gr.Dropdown(choices=run_choices(context), value=state.name)
    return picker, {}, gr.Tabs(selected="watch"), free_name(context, config.name)


def _first(place: Mapping[str | None, Field]) -> Field:
    return next(iter(place.values()))


def _is_top(place: Mapping[str | None, Field]) -> bool:
    return None in place and _first(place).key in TOP


def _about(method: str) -> str:
    """The first line of what a method says of itself; nothing for a name that is none."""
    text = (method_module(method).__doc__ or "").splitlines()[0] if method in list_methods() else ""
    return f'<p class="app-about">{escape(text)}</p>'


def _first_values(context: AppContext, form: Form, recipe: str | None) -> tuple[str, list[object]]:
    """The first recipe's method and values, or defaults if that is none; its command then says what is wrong."""
    try:
        values = recipe_values(context, form, recipe or "")
    except WorkbenchError:
        values = [_first(place).shown(_first(place).default) for place in form]
    return str(values[[_first(place).key for place in form].index("method.name")]), values


def _sections(form: Form, made: list[Component], method: str, values: list[object]) -> gr.HTML:
    """An accordion per section, its components added to `made` in the form's order; returns the line about the method."""
    notes = section_notes()
    rest = [(place, value) for place, value in zip(form, values, strict=True) if not _is_top(place)]
    for section, group in itertools.groupby(rest, key=lambda pair: _first(pair[0]).section):
        title = TITLES.get(section) or ("Run" if not section else section.capitalize())
        with gr.Accordion(title, open=section in OPEN, elem_id=f"launch-section-{section.replace('.', '-') or 'run'}"):
            if section == "method":
                about = gr.HTML(_about(method), elem_id="launch-about")
            else:
                gr.HTML(f'<p class="app-about">{escape(notes.get(section, "Where it goes, and its dice."))}</p>')
            with gr.Row(elem_classes="app-grid"):
                made += [_component(place, method, value) for place, value in group]
    return about


def _component(place: Mapping[str | None, Field], method: str, value: object) -> Component:
    """What a key is entered with."""
    field = field_at(place, method) or _first(place)
    common = {
        **_words(field),
        "elem_id": "-".join(["launch", *field.key.split(".")]),
        "min_width": 200,
        "visible": field_at(place, method) is not None,
    }
    if field.key == "method.name":
        return gr.Dropdown(list(list_methods()), value=value, allow_custom_value=True, **common)
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


def _words(field: Field) -> dict[str, object]:
    """What a component says about its field, and what it lets choose."""
    words = {
        "label": {"name": "Run name", "method.name": "Method"}.get(field.key, field.label),
        "info": field.hint,
    }
    if field.kind != CHOICE:
        return words
    empty = [("none", "")] if field.is_nullable else []
    return {**words, "choices": [*empty, *((one, one) for one in field.option.choices)]}


def _shown_option(place: Mapping[str | None, Field], method: str, values: Mapping[str, object]) -> dict:
    """A component as the method's option, at its default unless `values` has it; hidden if the method has none of it."""
    field = place.get(method)
    if field is None:
        return gr.update(visible=False)
    value = field.shown(values.get(field.key, field.default))
    return gr.update(value=value or "" if field.kind == CHOICE else value, visible=True, **_words(field))
