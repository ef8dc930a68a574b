"""New run: a recipe or an earlier run as a form, the equivalent command, Check and Start.

A run is a separate process (workbench.runs.jobs), so it outlives the page and the app. The check is one too, so that
the app never loads a model.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape

import gradio as gr
from gradio.components import Component

from workbench.app.context import AppContext, Shared, note, sentence, show_errors
from workbench.app.form import (
    check_table,
    entered_config,
    fields,
    form_slots,
    form_values,
    free_name,
    recipe_file,
    recipes,
    slot_field,
)
from workbench.app.form_layout import (
    Form,
    FormParts,
    about_html,
    any_field,
    changed_html,
    depends_on_method,
    lay_out_form,
    lay_out_top,
    shown_widget,
    widget_of,
)
from workbench.app.messages import with_message
from workbench.app.programs import error_of, run_program
from workbench.config.models import check_models, refuse_remote_code
from workbench.errors import ConfigError, WorkbenchError
from workbench.runs.commands import copyable, overrides_between, train_command
from workbench.runs.jobs import start_run

GUIDE = (
    '<div class="runs-guide"><h3>Your data and models</h3><ol>'
    "<li><b>Data.</b> One JSON line per question: <code>question</code>, <code>images</code>, <code>answer</code>, and "
    "any evidence (<code>crop</code>, <code>boxes</code>, <code>caption</code>, <code>hint</code>). Convert a dataset "
    "of TRL or ms-swift, and see its first rows: <code>workbench import DATASET my-data --preview</code>. Enter the "
    "files under <i>train</i> and <i>eval</i>.</li>"
    "<li><b>Models.</b> Under <i>student</i> and <i>teacher</i>: folders, or names on the hub. The teacher needs the "
    "student's tokens. Without one, choose a method of self-distillation.</li>"
    "<li><b>Evidence.</b> Under <i>privilege</i>: what the teacher sees beside the question. Rows without it are "
    "counted and named.</li>"
    "<li><b>Check</b> loads the models, samples a few answers and verifies that all views score the same tokens. Then "
    "<b>Start</b>.</li></ol></div>"
)
CHECK_SECONDS = 600.0
READ_ONLY = "This page is read-only, so it cannot start runs. Copy the command and run it in a terminal."


def build_tab(context: AppContext, shared: Shared) -> None:
    """The form at the left; the command, Check and Start at the right."""
    form = form_slots(fields())
    choices = recipes(context)
    first = choices[0][1] if choices else None
    method, values = _first_values(context, form, first)
    guide = gr.HTML("", elem_id="new-run-guide", padding=False)
    with gr.Row(elem_id="new-run"):
        with gr.Column(scale=5, min_width=420):
            with gr.Row(elem_classes="app-top"):
                recipe = gr.Dropdown(
                    choices,
                    value=first,
                    label="Start from",
                    info="a recipe, or the configuration of an earlier run",
                    allow_custom_value=True,
                    elem_id="new-run-recipe",
                )
                top = lay_out_top(form, method, values)
            parts = lay_out_form(form, top, method, values)
            with gr.Accordion("More overrides", open=False):
                overrides = gr.Textbox(
                    label="Overrides",
                    lines=3,
                    placeholder="training.steps=20\nmodels.teachers={math: path/to/model}",
                    info="one key=value per line, as on the command line; they take precedence over the form",
                    elem_id="new-run-more",
                )
        side = _lay_out_side(context)
    _connect_form(context, shared, form, parts, recipe, overrides, guide, side)
    _connect_buttons(context, shared, form, parts, [recipe, overrides, *parts.widgets], side)


@dataclass(frozen=True)
class _Side:
    """The column beside the form.

    form_error  what is wrong with the form as it is
    outcome     result of Check or Start, until the form is edited
    checked     hidden: the command whose result is shown; empty during a check and after an edit
    """

    command: gr.Textbox
    check: gr.Button
    start: gr.Button
    form_error: gr.HTML
    outcome: gr.HTML
    report: gr.HTML
    checked: gr.Textbox
    about_check: str


def _lay_out_side(context: AppContext) -> _Side:
    about_check = note(READ_ONLY if context.read_only else _about_check(context))
    is_open = not context.read_only
    with gr.Column(scale=3, min_width=300, elem_id="new-run-side"):
        command = gr.Textbox(
            label="Equivalent command",
            lines=3,
            max_lines=14,
            interactive=False,
            buttons=["copy"],
            elem_id="new-run-command",
        )
        with gr.Row():
            check = gr.Button("Check", elem_id="new-run-check", interactive=is_open)
            start = gr.Button("Start", variant="primary", elem_id="new-run-start", interactive=is_open)
        form_error = gr.HTML("", elem_id="new-run-message")
        outcome = gr.HTML("", elem_id="new-run-said")
        report = gr.HTML(about_check, elem_id="new-run-report")
        checked = gr.Textbox("", visible="hidden")
    return _Side(command, check, start, form_error, outcome, report, checked, about_check)


_SILENT = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}


def _show_command(context: AppContext, form: Form, parts: FormParts, inputs: list[Component], side: _Side) -> tuple:
    """Callback, inputs and outputs that show the form's command and changes; a form with an error has none."""
    callback = with_message(partial(preview_changes, context, form), 2, str)
    return callback, inputs, [side.form_error, side.command, parts.changed]


def _connect_form(
    context: AppContext,
    shared: Shared,
    form: Form,
    parts: FormParts,
    recipe: gr.Dropdown,
    overrides: gr.Textbox,
    guide: gr.HTML,
    side: _Side,
) -> None:
    """An edit shows the new command and clears the outcome; another recipe or method fills the form."""
    widgets, about = parts.widgets, parts.about
    shows = _show_command(context, form, parts, [recipe, overrides, *widgets], side)
    chooser, name = (widget_of(key, form, widgets) for key in ("method.name", "name"))
    options = [widget for slot, widget in zip(form, widgets, strict=True) if depends_on_method(slot)]
    typed = gr.Textbox("", visible="hidden", elem_id="new-run-typed")
    # assets/app.js has one listener for text, numbers and switches: an event per widget would slow the first page
    lists = [widget.input for widget in widgets if isinstance(widget, gr.Dropdown) and widget is not chooser]
    gr.on(lists, None, None, typed, js="() => workbenchApp.typed()")
    edited = [typed.change, chooser.input, recipe.change]
    cleared = [side.outcome, side.report, side.checked]
    gr.on(edited, None, None, cleared, js=f"() => ['', {json.dumps(side.about_check)}, '']")
    typed.change(*shows, **_SILENT)
    loaded = recipe.change(
        with_message(partial(load_recipe, context, form), 1 + len(widgets)),
        recipe,
        [side.form_error, about, *widgets],
        **_SILENT,
    )
    loaded.then(*shows, **_SILENT)
    changed = chooser.input(partial(show_method, context, form), [recipe, chooser], [about, *options], **_SILENT)
    changed.then(*shows, **_SILENT)
    recipe.input(None, shared.address, shared.address, js="({ start_from, ...rest }) => rest")
    refreshing = show_errors(partial(refresh_recipes, context), 3)
    inputs, outputs = [recipe, name, shared.address], [recipe, name, guide]
    shared.on_show("new-run", refreshing, inputs, outputs).then(*shows, **_SILENT)


def _connect_buttons(
    context: AppContext,
    shared: Shared,
    form: Form,
    parts: FormParts,
    inputs: list[Component],
    side: _Side,
) -> None:
    """Check shows a report on the form; Start starts the run and opens Training."""
    checking = side.check.click(
        partial(checked_form, context, form),
        inputs,
        [side.outcome, side.report, side.checked],
        trigger_mode="always_last",
        show_progress="minimal",
        show_progress_on=side.report,
        api_visibility="private",
    )
    check_edited = partial(outdated, context, form)
    checking.then(check_edited, [side.checked, *inputs], [side.outcome, side.report], **_SILENT)
    started = side.start.click(
        with_message(partial(start_from, context, form), 4),
        inputs,
        [side.outcome, shared.run, shared.address, shared.tab, widget_of("name", form, parts.widgets)],
        **_SILENT | {"trigger_mode": "once"},
    )
    started.then(*_show_command(context, form, parts, inputs, side), **_SILENT)


_WHAT_CHECK_DOES = (
    "Check loads the models, samples a few answers and verifies that every view scores the same tokens. "
    "It takes a few seconds and changes nothing."
)


def _about_check(context: AppContext) -> str:
    """Description of Check and of the limit on concurrent runs."""
    if context.max_runs is None:
        return _WHAT_CHECK_DOES
    runs = "1 run trains" if context.max_runs == 1 else f"{context.max_runs} runs train"
    return f"{_WHAT_CHECK_DOES} At most {runs} at a time (workbench app --max-runs); further runs are queued."


def preview(context: AppContext, form: Form, recipe: str, more: str | None, *entered: object) -> tuple[str]:
    """The command that trains the form's configuration."""
    file = recipe_file(context, recipe)
    config = entered_config(context, form, entered, more or "")
    return (copyable(train_command(file, overrides_between(file, config))),)


def preview_changes(
    context: AppContext, form: Form, recipe: str, more: str | None, *entered: object
) -> tuple[str, str]:
    """The command that trains the form's configuration, and the keys whose values are not their defaults."""
    file = recipe_file(context, recipe)
    config = entered_config(context, form, entered, more or "")
    command = copyable(train_command(file, overrides_between(file, config)))
    return command, changed_html(form, config)


def recipe_values(context: AppContext, form: Form, recipe: str) -> list[object]:
    """The value of each widget for a recipe; a widget for another method's option gets that option's default."""
    values = form_values(context, recipe)
    method = str(values["method.name"])
    fields_now = [slot_field(slot, method) for slot in form]
    return [
        field.to_widget(values[field.key]) if field else any_field(slot).to_widget(any_field(slot).default)
        for field, slot in zip(fields_now, form, strict=True)
    ]


def load_recipe(context: AppContext, form: Form, recipe: str) -> list[object]:
    """The description of a recipe's method, and the recipe's values; options of other methods are hidden."""
    values = form_values(context, recipe)
    method = str(values["method.name"])
    return [about_html(method), *(shown_widget(slot, method, values) for slot in form)]


def show_method(context: AppContext, form: Form, recipe: str | None, method: str) -> list[object]:
    """The description and options of the chosen method; options of other methods are hidden.

    The options have the recipe's values if the recipe is of this method, otherwise their defaults.
    """
    try:
        values = form_values(context, recipe)
    except WorkbenchError:  # the error is shown beside the command
        values = {}
    values_of_method = values if values.get("method.name") == method else {}
    varying = filter(depends_on_method, form)
    return [about_html(method), *(shown_widget(slot, method, values_of_method, keep=True) for slot in varying)]


def refresh_recipes(
    context: AppContext, recipe: str | None, name: str, address: Mapping | None = None
) -> tuple[object, object, str]:
    """The current recipes and runs, a free name if this one is taken, and the guide; everything else stays.

    The user may already be typing when the response arrives, so only values that must change are returned.

    address  its "start_from" names what the form starts from, and its "guide" opens the guide
    """
    choices = recipes(context)
    if not choices:
        raise ConfigError(f"no recipe in {context.configs_dir}. Open the app with --configs FOLDER.")
    wanted = str((address or {}).get("start_from") or recipe or choices[0][1])
    if (address or {}).get("start_from"):
        recipe_file(context, wanted)
    picker = gr.Dropdown(choices=choices) if recipe == wanted else gr.Dropdown(choices=choices, value=wanted)
    free = free_name(context, name or "")
    return picker, gr.skip() if free == name else free, GUIDE if (address or {}).get("guide") else ""


def checked_form(context: AppContext, form: Form, recipe: str, more: str | None, *entered: object) -> Iterator[tuple]:
    """The form's error, the check's report, and, with the result, the command that was checked.

    The command is "" if the form has an error.
    """
    command = ""
    try:
        (command,) = preview(context, form, recipe, more, *entered)
        reports = run_check(context, form, recipe, more, *entered)
        yield "", *next(reports), ""
        yield "", *next(reports), command
    except (WorkbenchError, OSError) as error:
        yield note(sentence(error), "error"), "", command


def outdated(context: AppContext, form: Form, checked: str, recipe: str, more: str | None, *entered: object) -> tuple:
    """A warning in place of the report if the form was edited during the check.

    It compares with the form's values, since the command beside the form may be older. If `checked` is empty, an edit
    has already cleared the report.
    """
    try:
        (command,) = preview(context, form, recipe, more, *entered)
    except (WorkbenchError, OSError):  # the message beside the form names the error
        command = ""
    if checked in ("", command):
        return gr.skip(), gr.skip()
    return "", note("The form was edited during the check, so the report is out of date. Check again.", "warning")


def run_check(context: AppContext, form: Form, recipe: str, more: str | None, *entered: object) -> Iterator[tuple[str]]:
    """The report of `workbench check` as HTML; first a note that the check is running."""
    context.check_writable()
    file = recipe_file(context, recipe)
    config = entered_config(context, form, entered, more or "")
    check_models(config)
    overrides = overrides_between(file, config)
    refuse_remote_code(config, copyable(["workbench", "check", str(file), *overrides]))
    yield (note("Checking: loading the models, sampling a few answers …"),)
    done = run_program(context, ["workbench", "check", str(file), *overrides], CHECK_SECONDS)
    report = check_html(done.stdout)
    if not report:
        raise error_of(done)
    yield (report,)


def check_html(printed: str) -> str:
    """What `workbench check` printed, as HTML: its verdict, then its table. Empty without a table."""
    rows = check_table(printed)
    if not rows:
        return ""
    is_wrong = any(status == "WRONG" for _, status, _ in rows)
    verdict = note(printed.strip().rpartition("\n")[2], "error" if is_wrong else "good")
    body = "".join(
        f'<tr class="app-{status.lower()}-row"><th scope="row">{escape(name)}</th>'
        f"<td>{escape(status)}</td><td>{escape(finding)}</td></tr>"
        for name, status, finding in rows
    )
    head = "<thead><tr><th>check</th><th></th><th>result</th></tr></thead>"
    return f'{verdict}<table class="app-table">{head}<tbody>{body}</tbody></table>'


def start_from(context: AppContext, form: Form, recipe: str, more: str | None, *entered: object) -> tuple:
    """Start the run and open it: run, address, tab, and the next free name for the form."""
    context.check_writable()
    config = entered_config(context, form, entered, more or "")
    state = start_run(config, context.runs_dir, folders=context.folders, queue=context.queue)
    return state.name, {}, "training", free_name(context, config.name)


def _first_values(context: AppContext, form: Form, recipe: str | None) -> tuple[str, list[object]]:
    """The first recipe's method and values; defaults if it is invalid, with its error beside the command."""
    try:
        values = recipe_values(context, form, recipe or "")
    except WorkbenchError:
        values = [any_field(slot).to_widget(any_field(slot).default) for slot in form]
    return str(values[[any_field(slot).key for slot in form].index("method.name")]), values
