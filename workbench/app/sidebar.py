"""The list of runs beside the places: a click on a name shows that run, ticks show several runs together.

The server draws the list; the browser (assets/sidebar.js) marks the run and the ticks of the address, so that a change
of run draws no list. Runs of a study are under the study's name.
"""

from html import escape
from itertools import groupby

import gradio as gr

from workbench.app.context import AppContext, Shared
from workbench.runs.jobs import JobState, find_jobs

NO_RUNS = "No runs yet."


def sidebar_html(context: AppContext) -> str:
    """All runs as HTML, newest first; runs of a study are one group, at its newest run."""
    jobs = find_jobs(context.runs_dir)
    if not jobs:
        return f'<p class="app-no-runs">{NO_RUNS}</p>'
    studies = list(dict.fromkeys(_study(job) for job in jobs))
    jobs.sort(key=lambda job: studies.index(_study(job)) if _study(job) else -1)  # sort() keeps equal ones in order
    parts = []
    for study, runs in groupby(jobs, key=_study):
        items = "".join(map(_item, runs))
        parts.append(f"<h3>{escape(study)}</h3><ul>{items}</ul>" if study else f"<ul>{items}</ul>")
    return "".join(parts)


def _study(job: JobState) -> str:
    return job.name.rpartition("/")[0]


def _item(job: JobState) -> str:
    name, label = escape(job.name, quote=True), escape(job.name.rpartition("/")[2])
    status, method = escape(job.status), escape(job.method or "")
    return (
        f'<li data-run="{name}"><input type="checkbox" aria-label="Show {name} too">'
        f'<button type="button" title="{name}"><span>{label}</span>'
        f'<small>{method} <i class="app-is-{status}">{status}</i></small></button></li>'
    )


def build_sidebar() -> gr.HTML:
    """The list's component, empty until the page is loaded. Its `select` event carries no data."""
    return gr.HTML(
        "",
        label="runs",
        elem_id="app-runs",
        js_on_load="workbenchSidebar.start(element, trigger, watch);",
        apply_default_css=False,
        padding=False,
    )


def connect_sidebar(shared: Shared) -> None:
    """Choosing runs changes the page's run and address, in the browser: a reply of the server would come too late."""
    chosen = "(address) => workbenchSidebar.chosen(address)"
    shared.sidebar.select(None, shared.address, [shared.run, shared.address], js=chosen)
