"""Score rollouts: the answers that another trainer logged become a run of this page, without training.

The scoring is a process, as the check of a new run is, so that the app never loads a model.
"""

import json
import re
from functools import partial
from pathlib import Path

import gradio as gr

from workbench.app.context import AppContext, Shared, note, show_errors
from workbench.app.form import OFFERED, free_name
from workbench.app.messages import with_message
from workbench.app.method_choices import method_choices, uses_teacher
from workbench.app.programs import error_of, run_program
from workbench.config.schema import read_yaml
from workbench.errors import ConfigError
from workbench.runs.commands import copyable, value_at

SECONDS = 1800.0  # of one scoring; longer ones belong in a terminal
_ABOUT = (
    "Every token of the answers is scored under the views of a method and routed, and no weight changes. Files of TRL, "
    "verl, ms-swift, slime, prime-rl, NeMo-RL and verifiers are recognized."
)
_WAITING = "Scoring: the models are loaded, then every answer is scored under every view …"
_READ_ONLY = "This page is read-only, so it starts nothing. Copy the command and run it in a terminal."
_NEEDED = {
    "rollouts": "a .jsonl, .json or .parquet file, or a folder of them",
    "student": "the model that sampled them",
}
_FIELDS = {
    "--data": "Data",
    "--student": "Student",
    "--teacher": "Teacher",
    "--method": "Method",
    "--privilege": "Privileged context",
    "--max-skipped": "Rows left out",
}
_OPTION = re.compile(rf"({'|'.join(_FIELDS)})\b(?: (FILE|N|plain)\b)?")


def build_tab(context: AppContext, shared: Shared) -> None:
    """The form at the left; the command and Score at the right."""
    is_open = not context.read_only
    with gr.Row(elem_id="score"):
        with gr.Column(scale=5, min_width=420):
            gr.HTML(f'<p class="app-about">{_ABOUT}</p>', padding=False)
            with gr.Row(elem_classes="app-grid"):
                fields = _fields()
        with gr.Column(scale=3, min_width=300):
            command = gr.Textbox(
                label="Equivalent command",
                lines=4,
                max_lines=14,
                interactive=False,
                buttons=["copy"],
                elem_id="score-command",
            )
            button = gr.Button("Score", variant="primary", elem_id="score-start", interactive=is_open)
            message = gr.HTML("", elem_id="score-message", padding=False)
            outcome = gr.HTML("" if is_open else note(_READ_ONLY), elem_id="score-outcome", padding=False)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    shows = with_message(partial(preview, context), 1, str)
    gr.on([field.change for field in fields], shows, fields, [message, command], trigger_mode="always_last", **quiet)
    method, teacher, name = fields[4], fields[3], fields[6]
    method.input(lambda chosen: gr.update(visible=uses_teacher(chosen)), method, teacher, queue=False, **quiet)
    models = [fields[2], teacher]
    shared.on_show("score", show_errors(partial(fill, context), 3), [shared.run, *models, name], [*models, name])
    button.click(None, None, outcome, js=f"() => {json.dumps(note(_WAITING))}")
    scoring = button.click(
        with_message(partial(score, context), 4),
        fields,
        [message, outcome, shared.run, shared.address, shared.tab],
        concurrency_limit=1,
        concurrency_id="scorer",
        **quiet,
    )
    scoring.then(None, None, outcome, js="() => ''")


def _fields() -> list[gr.components.Component]:
    """Widgets in the order of `preview`."""

    def text(key: str, label: str, info: str, value: str = "") -> gr.Textbox:
        return gr.Textbox(value, label=label, info=info, min_width=200, elem_id=f"score-{key}", max_lines=1)

    contexts = ["", *OFFERED["method.privilege"]]
    return [
        text("rollouts", "Rollouts", f"What another trainer logged: {_NEEDED['rollouts']}"),
        text("data", "Data", "Examples with images and evidence; empty: the rows of the file hold them"),
        text("student", "Student", "The model that sampled the answers: a folder, or a name on the hub"),
        text("teacher", "Teacher", "A model with the student's tokens"),
        gr.Dropdown(
            list(method_choices()),
            value="dopd",
            label="Method",
            info="Routes the tokens",
            elem_id="score-method",
            min_width=200,
        ),
        gr.Dropdown(
            contexts,
            value="",
            label="Privileged context",
            info="What privileged views see; empty: the method's choice",
            allow_custom_value=True,
            elem_id="score-privilege",
            min_width=200,
        ),
        text("name", "Run name", "Name of the run and its folder", "scored"),
        gr.Number(
            0,
            label="Rows left out",
            info="Up to so many rows that cannot be scored are counted and left out",
            precision=0,
            minimum=0,
            elem_id="score-skipped",
            min_width=200,
        ),
    ]


def command_of(
    context: AppContext,
    rollouts: str,
    data: str,
    student: str,
    teacher: str,
    method: str,
    privilege: str,
    name: str,
    skipped: float | None,
) -> list[str]:
    """The command that scores. Raises ConfigError for an empty field, or a name that cannot be a folder."""
    for key, value in (("rollouts", rollouts), ("student", student)):
        if not (value or "").strip():
            raise ConfigError(f"{key}: empty. Enter {_NEEDED[key]}.")
    if Path(name or "").name != (name or "") or not (name or "").strip(". "):
        raise ConfigError(f'the run name "{name}" must be a plain folder name. Correct it.')
    options = {
        "--data": data,
        "--student": student,
        "--teacher": teacher if uses_teacher(method) else "",
        "--method": method,
        "--privilege": privilege,
        "--to": str(context.runs_dir / name),
        "--max-skipped": str(int(skipped or 0)) if skipped else "",
    }
    parts = [part for option, value in options.items() if (value or "").strip() for part in (option, value.strip())]
    return ["workbench", "score", rollouts.strip(), *parts]


def preview(context: AppContext, *entered: object) -> tuple[str]:
    """The command of the form; empty while the required fields are."""
    if not any(str(value or "").strip() for value in entered[:2]):
        return ("",)
    return (copyable(command_of(context, *entered)),)  # type: ignore[arg-type]


def score(context: AppContext, *entered: object) -> tuple:
    """Score, and open the answers of the run: outcome, run, address, tab. Raises ConfigError with what went wrong."""
    context.check_writable()
    command = command_of(context, *entered)  # type: ignore[arg-type]
    done = run_program(context, command, SECONDS)
    if done.returncode:
        raise _by_field(error_of(done))
    return "", str(entered[6]), {}, "answers"


def fill(context: AppContext, run: str | None, student: str, teacher: str, name: str | None) -> tuple:
    """Fill empty fields: student and teacher of the shown run, and a name that is free."""
    config = read_yaml(context.run_dir(run) / "config.yaml") if run else {}
    recorded = [value_at(config, key) for key in ("models.student", "models.teacher")]
    models = [
        value if isinstance(value, str) and not entered else gr.skip()
        for value, entered in zip(recorded, (student, teacher), strict=True)
    ]
    free = free_name(context, name or "scored")
    return *models, gr.skip() if free == name else free


def _by_field(error: ConfigError) -> ConfigError:
    """The command's error with the form's fields in place of options."""

    def field(option: re.Match) -> str:
        name, value = option.groups()
        return f'{f"{value} in " if value in ("N", "plain") else ""}the field "{_FIELDS[name]}"'

    return ConfigError(_OPTION.sub(field, str(error)))
