"""Report: one HTML file of a run that needs no network, written from here or by `workbench report`."""

import functools
import shutil
import tempfile
import time
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr

from workbench.analysis.report import REPORT_NAME, write_report
from workbench.app.components import fragment_component
from workbench.app.context import AppContext, Shared, note, show_errors

WHAT = """<h2>One file that says what this run did</h2><p>Curves, accuracy and confidence, who supervised, where supervision moved,
what was only imitated, and chosen answers token by token, as they look here. It loads nothing from anywhere: send it, or keep
it beside the paper.</p>"""
_LINK = "Download"


def draw(context: AppContext, run: str | None) -> tuple:
    """What there is already, and how to write it from a terminal."""
    run_dir = context.run_dir(run)
    file = run_dir / REPORT_NAME
    command = f"workbench report {escape(str(run_dir))}"
    text = f"{WHAT}<p>From a terminal: <code>{command}</code></p>"
    if not file.is_file():
        return f'<div class="wbu-words">{text}</div>', gr.DownloadButton(visible=False)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    text += f"<p>There is a report of {when}, {file.stat().st_size / 2**20:.1f} MB: <code>{escape(str(file.resolve()))}</code></p>"
    return f'<div class="wbu-words">{text}</div>', _download(file, run_dir.name)


def write(context: AppContext, run: str | None, answers: float, theme: str) -> tuple:
    """Write the report into the run's folder; a read-only page writes a copy to hand out and leaves the run alone."""
    run_dir = context.run_dir(run)
    if context.read_only:
        file = write_report(run_dir, handout(run_dir.name), answers=int(answers), theme=theme)
    else:
        file = write_report(run_dir, run_dir / REPORT_NAME, answers=int(answers), theme=theme)
    link = _download(file, run_dir.name)
    opened = "" if context.read_only else f"Open {file.resolve()} in a browser. "
    message = (
        f"Written, {file.stat().st_size / 2**20:.1f} MB. {opened}“{link.label}”, above, brings it to your own machine."
    )
    return note(message, "good"), link


def handout(run: str) -> Path:
    """Where a report lies that the page hands out."""
    return Path(_folder().name) / f"{run}-report.html"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Emptied when the app ends."""
    return tempfile.TemporaryDirectory(prefix="workbench-reports-")


def _download(file: Path, run: str) -> gr.DownloadButton:
    """The link. The page hands out files of the temporary folder only, so a copy is put there."""
    copy = handout(run)
    if copy != file:
        shutil.copyfile(file, copy)
    return gr.DownloadButton(f"{_LINK} {copy.name}", value=str(copy), visible=True)


def build_tab(context: AppContext, shared: Shared) -> None:
    """What it is, a button, a link."""
    words = fragment_component("about the report", elem_id="report-about")
    with gr.Row():
        answers = gr.Slider(
            0, 24, value=8, step=1, label="answers, token by token", elem_id="report-answers", min_width=240
        )
        theme = gr.Radio(("light", "dark"), value="light", label="look", elem_id="report-theme", min_width=160)
    with gr.Row():
        button = gr.Button("Write the report", variant="primary", elem_id="report-write", scale=0, min_width=200)
        link = gr.DownloadButton(_LINK, visible=False, elem_id="report-link", scale=0, min_width=340)
    notice = fragment_component("what was written", elem_id="report-said")
    shared.on_show("report", show_errors(partial(draw, context), 2), [shared.run], [words, link])
    shared.run.change(lambda: "", None, notice, show_progress="hidden", api_visibility="private")
    button.click(
        show_errors(partial(write, context), 2),
        [shared.run, answers, theme],
        [notice, link],
        concurrency_limit=1,
        api_visibility="private",
    )
