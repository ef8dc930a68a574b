"""Studies: what became of a grid of runs, and how its variants differ, with intervals.

A study is started in a terminal (`workbench study FILE`), since it is a file; here it is followed and read. A row of its
runs opens that run in Watch.
"""

from collections.abc import Mapping
from functools import partial
from html import escape

import gradio as gr

from workbench.analysis.illusion import HOW_SURE
from workbench.app.components import Column, empty_html, fragment_component, plot_component, rows_component, rows_html
from workbench.app.context import AppContext, Shared, show_errors
from workbench.studies.figures import figure
from workbench.studies.report import READING, title_of
from workbench.studies.status import StudyStatus, compared, find_studies, groups_of, measures_of, read_study, runs_of

NO_STUDY = (
    "There is no study in this folder. A study is a file that names variants and seeds; start one in a terminal: "
    "workbench study configs/studies/main.yaml    (docs/studies/README.md says how long each takes)"
)
RUN_COLUMNS = (
    Column("run", kind="short"),
    Column("status", kind="short"),
    Column("step", kind="number"),
    Column("of", kind="number"),
    Column("seconds", "worked", "number"),
    Column("what", "what it says"),
)


def draw(
    context: AppContext, theme: str, address: Mapping | None, group: str | None = "", measure: str | None = ""
) -> tuple:
    """Studies to choose from, state, questions, measures, figure, table, runs, notes.

    group, measure  places in the lists that were offered last, as text
    """
    names = find_studies(context.runs_dir)
    wanted = str((address or {}).get("study") or "")
    hidden = gr.Plot(visible=False)
    if not names:
        return gr.Dropdown(choices=[], value=None, visible=False), empty_html(NO_STUDY), *_nothing(), hidden, "", "", ""
    if wanted and wanted not in names:
        gone = f'There is no study "{wanted}" here. It may have been deleted; choose one above.'
        return gr.Dropdown(choices=names, value=None, visible=True), empty_html(gone), *_nothing(), hidden, "", "", ""
    study = read_study(context.runs_dir, wanted or names[0])
    groups = groups_of(study)
    data, shown = groups[_place(group, groups)] if groups else ("", "")
    measures = measures_of(study, data, shown)
    key = measures[_place(measure, measures)] if measures else ("", "")
    plot = (
        figure(
            study.comparisons,
            baseline=study.baseline,
            title=f"Study {study.name}",
            data=data,
            context=shown,
            theme=theme,
        )
        if groups
        else None
    )
    return (
        gr.Dropdown(choices=names, value=study.name, visible=True),
        head_html(study),
        gr.Dropdown(
            choices=[(f"{one}, shown {what}", str(idx)) for idx, (one, what) in enumerate(groups)],
            value=str(_place(group, groups)) if groups else None,
            visible=bool(groups),
        ),
        gr.Dropdown(
            choices=[(title_of(*one), str(idx)) for idx, one in enumerate(measures)],
            value=str(_place(measure, measures)) if measures else None,
            visible=bool(measures),
        ),
        gr.Plot(value=plot, visible=plot is not None),
        rows_html(
            compared(study, data, shown, *key),
            compared_columns(study),
            label="variants compared",
            title=title_of(*key) if measures else "Comparison",
        ),
        rows_html(
            runs_of(study),
            RUN_COLUMNS,
            label="runs of the study",
            key=("run",),
            title="Its runs: choose one to open it in Watch",
            tall=420,
        ),
        notes_html(study),
    )


def head_html(study: StudyStatus) -> str:
    """Its state in words: how many runs are how far, what goes on with it, what could not be built."""
    counts = ", ".join(f"{count} {status}" for status, count in study.counts.items()) or "no run yet"
    color = {"running": "running", "finished": "finished"}.get(study.state, "stopped")
    parts = [
        f'<h2>{escape(study.name)} <span class="app-badge app-is-{color}">{escape(study.state)}</span></h2>',
        f"<p>{len(study.runs)} runs: {escape(counts)}.</p>",
    ]
    if study.plan:
        seeds = ", ".join(map(str, study.plan.get("seeds") or ()))
        parts.append(f"<p>Compared with <b>{escape(study.baseline)}</b>; seeds {escape(seeds)}.</p>")
    if study.command:
        verb = {"running": "It was started by", "finished": "To report again"}.get(study.state, "To go on")
        command = study.command + (" --report" if study.state == "finished" else "")
        parts.append(f"<p>{verb}: <code>{escape(command)}</code></p>")
    for variant, fault in (study.plan.get("faults") or {}).items():
        parts.append(f'<p class="app-note app-error" role="alert">{escape(f"{variant} cannot be run: {fault}")}</p>')
    return f'<div class="wbu-words wbu-study" role="status">{"".join(parts)}</div>'


def notes_html(study: StudyStatus) -> str:
    """What the study's file says of its variants, and how to read the intervals."""
    notes = "".join(
        f"<li><b>{escape(name)}</b> {escape(note)}</li>" for name, note in (study.plan.get("notes") or {}).items()
    )
    listed = f"<h2>The variants</h2><ul>{notes}</ul>" if notes else ""
    file = f"<p>The whole of it: <code>{escape(str(study.folder / 'table.md'))}</code></p>" if study.report else ""
    return f'<div class="wbu-words">{listed}<h2>How to read it</h2><p>{escape(READING)}</p><p>{escape(HOW_SURE)}</p>{file}</div>'


def compared_columns(study: StudyStatus) -> tuple[Column, ...]:
    """Columns of the table, named after what the variants are compared with."""
    return (
        Column("variant", kind="short"),
        Column("seeds", kind="number"),
        Column("mean", kind="right-text"),
        Column("difference", f"against {study.baseline}", "right-text"),
        Column("difference_interval", "95 %", "right-text"),
        Column("verdict", kind="short"),
        Column("gain", "against the start", "right-text"),
        Column("gain_interval", "95 %", "right-text"),
        Column("gain_verdict", "verdict", "short"),
    )


def opened(address: Mapping | None, study: str, key: Mapping) -> tuple:
    """A run of the study in Watch: its name, the address without the study, the tab."""
    kept = {name: value for name, value in (address or {}).items() if name != "study"}
    return f"{study}/{key['run']}", kept, gr.Tabs(selected="watch")


def _place(text: str | None, among: list) -> int:
    return int(text) if text and text.isdecimal() and int(text) < len(among) else 0


def _nothing() -> tuple:
    return gr.Dropdown(choices=[], value=None, visible=False), gr.Dropdown(choices=[], value=None, visible=False)


def build_tab(context: AppContext, shared: Shared) -> None:
    """A study to choose, its state, its figure, its table, its runs."""
    with gr.Row(elem_classes="wbu-bar"):
        study = gr.Dropdown([], label="study", elem_id="studies-study", min_width=220, allow_custom_value=True)
        group = gr.Dropdown([], label="asked", elem_id="studies-group", min_width=260, allow_custom_value=True)
        measure = gr.Dropdown(
            [], label="measure of the table", elem_id="studies-measure", min_width=260, allow_custom_value=True
        )
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
    study.input(lambda name: {"study": name or ""}, study, shared.address, **quiet)

    def open_run(event: gr.EventData, address: dict, name: str) -> tuple:
        return opened(address, name, event.key)

    runs.select(show_errors(open_run, 3), [shared.address, study], [shared.run, shared.address, shared.tabs], **quiet)
