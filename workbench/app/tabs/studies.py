"""Studies: the state of a grid of runs, and the differences between its variants with confidence intervals.

A study is a file and is started in a terminal (`workbench study FILE`). This tab follows it. A row of its runs opens
that run in Training.
"""

from collections.abc import Mapping
from functools import partial
from html import escape

import gradio as gr

from workbench.analysis.illusion import CONFIDENCE_NOTE
from workbench.app.components import Column, empty_html, fragment_component, plot_component, rows_component, rows_html
from workbench.app.context import AppContext, Shared, persistent_params, show_errors
from workbench.studies.figures import figure
from workbench.studies.report import READING, title_of
from workbench.studies.status import StudyStatus, compared, find_studies, groups_of, measures_of, read_study, runs_of

NO_STUDY = (
    "No study in this folder. A study is a file that names variants and seeds. Start one in a terminal: "
    "workbench study configs/studies/main.yaml    (durations: docs/studies/README.md)"
)
RUN_COLUMNS = (
    Column("run", kind="short"),
    Column("status", kind="short"),
    Column("step", kind="number"),
    Column("of", "steps", "number"),
    Column("seconds", "seconds", "number"),
    Column("what", "message"),
)


def draw(
    context: AppContext, theme: str, address: Mapping | None, group: str | None = "", measure: str | None = ""
) -> tuple:
    """Study list, state, question groups, metrics, figure, table, runs, notes.

    group, measure  indices into the lists that the page showed last, as text
    """
    names = find_studies(context.runs_dir)
    wanted = str((address or {}).get("study") or "")
    if not names:
        return _draw_message(NO_STUDY, names)
    if wanted and wanted not in names:
        return _draw_message(f'Study "{wanted}" does not exist; it may have been deleted. Choose one above.', names)
    study = read_study(context.runs_dir, wanted or names[0])
    groups = groups_of(study)
    group_idx = _index(group, groups)
    data, context_name = groups[group_idx] if groups else ("", "")
    measures = measures_of(study, data, context_name)
    measure_idx = _index(measure, measures)
    key = measures[measure_idx] if measures else ("", "")
    return (
        gr.Dropdown(choices=names, value=study.name, visible=True),
        head_html(study),
        _picker([f"{data}, context {context_name}" for data, context_name in groups], group_idx),
        _picker([title_of(*key) for key in measures], measure_idx),
        _draw_figure(study, data, context_name, theme) if groups else gr.Plot(value=None, visible=False),
        rows_html(
            compared(study, data, context_name, *key),
            compared_columns(study),
            label="variants compared",
            title=title_of(*key) if measures else "Comparison",
        ),
        rows_html(
            runs_of(study),
            RUN_COLUMNS,
            label="runs of the study",
            key=("run",),
            title="Runs of the study: choose one to open it in Training",
            tall=420,
        ),
        notes_html(study),
    )


def _draw_message(message: str, names: list[str]) -> tuple:
    """The tab with a message and the list of studies alone."""
    hidden = gr.Dropdown(choices=[], value=None, visible=False)
    chooser = gr.Dropdown(choices=names, value=None, visible=bool(names))
    return chooser, empty_html(message), hidden, hidden, gr.Plot(visible=False), "", "", ""


def _picker(labels: list[str], chosen: int) -> gr.Dropdown:
    """A list whose values are indices, as text; hidden if it is empty."""
    choices = [(label, str(idx)) for idx, label in enumerate(labels)]
    return gr.Dropdown(choices=choices, value=str(chosen) if choices else None, visible=bool(choices))


def _draw_figure(study: StudyStatus, data: str, context_name: str, theme: str) -> gr.Plot:
    plot = figure(
        study.comparisons,
        baseline=study.baseline,
        title=f"Study {study.name}",
        data=data,
        context=context_name,
        theme=theme,
    )
    return gr.Plot(value=plot, visible=plot is not None)


def head_html(study: StudyStatus) -> str:
    """State of the study: runs by status, seeds, the command to continue, and variants that cannot be built."""
    counts = ", ".join(f"{count} {status}" for status, count in study.counts.items()) or "none started"
    color = {"running": "running", "finished": "finished"}.get(study.state, "stopped")
    parts = [
        f'<h2>{escape(study.name)} <span class="app-badge app-is-{color}">{escape(study.state)}</span></h2>',
        f"<p>{len(study.runs)} runs: {escape(counts)}.</p>",
    ]
    if study.plan:
        seeds = ", ".join(map(str, study.plan.get("seeds") or ()))
        parts.append(f"<p>Baseline: <b>{escape(study.baseline)}</b>; seeds: {escape(seeds)}.</p>")
    if study.command:
        verb = {"running": "Started with", "finished": "To write the report again"}.get(study.state, "To continue")
        command = study.command + (" --report" if study.state == "finished" else "")
        parts.append(f"<p>{verb}: <code>{escape(command)}</code></p>")
    for variant, fault in (study.plan.get("faults") or {}).items():
        parts.append(f'<p class="app-note app-error" role="alert">{escape(f"{variant} cannot be run: {fault}")}</p>')
    return f'<div class="wbu-words wbu-study" role="status">{"".join(parts)}</div>'


def notes_html(study: StudyStatus) -> str:
    """Notes of the study's file on its variants, and how to read the intervals."""
    notes = "".join(
        f"<li><b>{escape(name)}</b> {escape(note)}</li>" for name, note in (study.plan.get("notes") or {}).items()
    )
    listed = f"<h2>The variants</h2><ul>{notes}</ul>" if notes else ""
    file = f"<p>Full tables: <code>{escape(str(study.folder / 'table.md'))}</code></p>" if study.report else ""
    reading = f"<h2>How to read the table</h2><p>{escape(READING)}</p><p>{escape(CONFIDENCE_NOTE)}</p>"
    return f'<div class="wbu-words">{listed}{reading}{file}</div>'


def compared_columns(study: StudyStatus) -> tuple[Column, ...]:
    """Columns of the comparison, named after the baseline."""
    return (
        Column("variant", kind="short"),
        Column("seeds", kind="number"),
        Column("mean", kind="right-text"),
        Column("difference", f"minus {study.baseline}", "right-text"),
        Column("difference_interval", "95% interval", "right-text"),
        Column("verdict", kind="short"),
        Column("gain", "gain over untrained", "right-text"),
        Column("gain_interval", "95% interval", "right-text"),
        Column("gain_verdict", "verdict", "short"),
    )


def run_address(address: Mapping | None, study: str, key: Mapping) -> tuple:
    """A run of the study in Training: its name, the address without the study, the tab."""
    without_study = {name: value for name, value in (address or {}).items() if name != "study"}
    return f"{study}/{key['run']}", without_study, "training"


def _index(text: str | None, options: list) -> int:
    return int(text) if text and text.isdecimal() and int(text) < len(options) else 0


def build_tab(context: AppContext, shared: Shared) -> None:
    """Study list, state, figure, table, runs and notes."""
    with gr.Row(elem_classes="wbu-bar"):
        study = gr.Dropdown([], label="study", elem_id="studies-study", min_width=220, allow_custom_value=True)
        group = gr.Dropdown([], label="evaluation set", elem_id="studies-group", min_width=260, allow_custom_value=True)
        measure = gr.Dropdown([], label="metric", elem_id="studies-measure", min_width=260, allow_custom_value=True)
    head = fragment_component("state of the study", elem_id="studies-head")
    plot = plot_component("differences with intervals", elem_id="studies-figure")
    table = fragment_component("variants compared", elem_id="studies-table")
    runs = rows_component("runs of the study", elem_id="studies-runs")
    notes = fragment_component("notes", elem_id="studies-notes")

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    inputs = [shared.theme, shared.address, group, measure]
    outputs = [study, head, group, measure, plot, table, runs, notes]
    drawing = show_errors(partial(draw, context), len(outputs))
    shared.on_show("studies", drawing, inputs, outputs)
    gr.on([group.input, measure.input], drawing, inputs, outputs, **quiet)
    study.input(
        lambda name, address: persistent_params(address) | {"study": name or ""},
        [study, shared.address],
        shared.address,
        **quiet,
    )

    def open_run(event: gr.EventData, address: dict, name: str) -> tuple:
        return run_address(address, name, event.key)

    runs.select(show_errors(open_run, 3), [shared.address, study], [shared.run, shared.address, shared.tab], **quiet)
