"""Geometry: size, sparsity, rank and location of a run's weight update, with a random control of the same norm."""

from functools import partial
from html import escape

import gradio as gr

from workbench.analysis.geometry import files as geometry_files
from workbench.analysis.geometry.figures import READING, all_figures, page
from workbench.analysis.geometry.files import FOLDER, NOT_MEASURED, Measured
from workbench.analysis.geometry.measure import UPDATE
from workbench.analysis.table import Table, table
from workbench.app.components import Column, aside_html, fragment_component, plot_component, rows_component, rows_html
from workbench.app.context import AppContext, Shared, note, show_errors

ABOUT = """<h2>Geometry of the weight update</h2><p>The update is the newest checkpoint minus the model that the run
started from, in float32 and rounded to bfloat16. The control is a random update of the same norm. A property that the
control shares is not a result of training. Small models take seconds; measure large ones in a terminal.</p>"""
COLUMNS = (
    Column("group", kind="short"),
    Column("precision", kind="short"),
    Column("delta", "update", "short"),
    Column("tensors", kind="number"),
    Column("coordinates", "weights", "number"),
    Column("relative_delta", "relative size", "share"),
    Column("energy_share", "share of energy", "share"),
    Column("unchanged", kind="share"),
    Column("below_1e-05", "below 1e-5", "share"),
    Column("stable_rank", kind="number"),
    Column("effective_rank", kind="number"),
    Column("energy_top_16", "top 16 directions", "share"),
    Column("projection_10pct", "in top 10% of source", "share"),
    Column("spectral_drift", kind="share"),
    Column("enrichment_principal_10pct_0e+00", "enriched on principal", "number"),
    Column("enrichment_low_10pct_0e+00", "on small weights", "number"),
)


def draw(context: AppContext, run: str | None, theme: str) -> tuple:
    """Description, figures, how to read each, and the table by group; without a measurement, how to make one."""
    run_dir = context.run_dir(run)
    measured = geometry_files.read(run_dir / FOLDER)
    command = f"<p>In a terminal: <code>workbench geometry {escape(str(run_dir))}</code></p>"
    about = f'<div class="wbu-words">{ABOUT}{command}</div>'
    if measured is None:
        return (
            about,
            *[None] * len(READING),
            *[""] * len(READING),
            rows_html(groups_table(None, run_dir.name), COLUMNS, label="geometry by group"),
        )
    rows = rows_html(
        groups_table(measured, run_dir.name), COLUMNS, label="geometry by group", title="By group", tall=520
    )
    return (about, *all_figures(measured, theme), *map(aside_html, READING), rows)


def groups_table(measured: Measured | None, run: str) -> Table:
    """Metrics by group, each update before its control."""
    columns = [column.name for column in COLUMNS]
    if measured is None:
        return table([], columns, run=run, empty=NOT_MEASURED)
    frame = measured.geometry.groups
    order = {name: group_idx for group_idx, name in enumerate(dict.fromkeys(frame["group"]))}
    keys = frame.assign(order=frame["group"].map(order), control=frame["delta"] != UPDATE)
    frame = frame.loc[keys.sort_values(["order", "precision", "control"], ascending=[True, False, True]).index, columns]
    return table(frame.reset_index(drop=True), columns, run=measured.title, empty=NOT_MEASURED)


def measure(context: AppContext, run: str | None, theme: str) -> tuple:
    """Measure the update, save the result in the run's folder, and draw it."""
    context.check_writable()
    run_dir = context.run_dir(run)
    measured = geometry_files.measure_pair(geometry_files.pair_of_run(run_dir))
    geometry_files.save(measured, run_dir / FOLDER, page(measured))
    return (note(f"Measured: {measured.title}.", "good"), *draw(context, run, theme))


def build_tab(context: AppContext, shared: Shared) -> None:
    """Description, the Measure button, figures, table."""
    about = fragment_component("about the geometry", elem_id="geometry-about")
    button = gr.Button(
        "Measure",
        variant="primary",
        elem_id="geometry-measure",
        scale=0,
        min_width=200,
        interactive=not context.read_only,
    )
    notice = fragment_component("result of measuring", elem_id="geometry-said")
    titles = (
        "unchanged coordinates",
        "size by layer",
        "largest directions",
        "principal directions",
        "which weights changed",
    )
    plots, asides = {}, {}
    for row in ((0, 4), (1, 2, 3)):
        with gr.Row():
            for figure_idx in row:
                with gr.Column(min_width=320):
                    plots[figure_idx] = plot_component(titles[figure_idx], elem_id=f"geometry-figure-{figure_idx}")
                    asides[figure_idx] = fragment_component(f"how to read {titles[figure_idx]}")
    rows = rows_component("geometry by group", elem_id="geometry-table")
    figures_and_notes = [component for components in (plots, asides) for _, component in sorted(components.items())]
    inputs, outputs = [shared.run, shared.theme], [about, *figures_and_notes, rows]
    shared.on_show("geometry", show_errors(partial(draw, context), len(outputs)), inputs, outputs)
    shared.run.change(None, None, notice, js="() => ''")
    measuring = show_errors(partial(measure, context), len(outputs) + 1)
    button.click(
        measuring, inputs, [notice, *outputs], concurrency_limit=1, show_progress_on=about, api_visibility="private"
    )
