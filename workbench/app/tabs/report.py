"""Report: a self-contained HTML file of a run, written here or with `workbench report`."""

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
from workbench.app.context import AppContext, Shared, note, render_error_in_place, show_errors

ABOUT = """<h2>HTML report of this run</h2><p>Curves, accuracy and confidence, regime shares, movement of probes,
imitation, and selected answers token by token. The file is self-contained and loads nothing from a network.</p>"""
_LINK = "Download"


def draw(context: AppContext, run: str | None) -> tuple:
    """Description, the existing report with its download link, and the command that writes one."""
    run_dir = context.run_dir(run)
    file = run_dir / REPORT_NAME
    command = f"workbench report {escape(str(run_dir))}"
    text = f"{ABOUT}<p>In a terminal: <code>{command}</code></p>"
    if not file.is_file():
        return f'<div class="wbu-words">{text}</div>', gr.DownloadButton(visible=False)
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    size = f"{file.stat().st_size / 2**20:.1f} MB"
    text += f"<p>Report of {written}, {size}: <code>{escape(str(file.resolve()))}</code></p>"
    return f'<div class="wbu-words">{text}</div>', _download(file, run_dir.name)


def write(context: AppContext, run: str | None, answers: float, theme: str) -> tuple:
    """Write the report into the run's folder; a read-only page writes a copy outside it for download."""
    run_dir = context.run_dir(run)
    if context.read_only:
        file = write_report(run_dir, handout(run_dir.name), answers=int(answers), theme=theme)
    else:
        file = write_report(run_dir, run_dir / REPORT_NAME, answers=int(answers), theme=theme)
    link = _download(file, run_dir.name)
    opened = "" if context.read_only else f"Open {file.resolve()} in a browser. "
    message = (
        f"Report written, {file.stat().st_size / 2**20:.1f} MB. {opened}"
        f"To copy it to your own machine, press “{link.label}” above."
    )
    return note(message, "good"), link


def handout(run: str) -> Path:
    """Path of the copy of a report that the page serves."""
    return Path(_folder().name) / f"{run}-report.html"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when the app exits."""
    return tempfile.TemporaryDirectory(prefix="workbench-reports-")


def _download(file: Path, run: str) -> gr.DownloadButton:
    """The download link of a copy in the temporary folder, the only folder that the page serves."""
    copy = handout(run)
    if copy != file:
        shutil.copyfile(file, copy)
    return gr.DownloadButton(f"{_LINK} {copy.name}", value=str(copy), visible=True)


def build_panel(context: AppContext, shared: Shared, opener: gr.Button) -> None:
    """A panel that `opener` opens and closes: description, options, the Write button, the download link."""
    is_open = gr.State(False)
    with gr.Column(visible=False, elem_id="report") as panel:
        words = fragment_component("about the report", elem_id="report-about")
        with gr.Row():
            answers = gr.Slider(
                0, 24, value=8, step=1, label="answers, token by token", elem_id="report-answers", min_width=240
            )
            theme = gr.Radio(("light", "dark"), value="light", label="theme", elem_id="report-theme", min_width=160)
        with gr.Row():
            button = gr.Button("Write the report", variant="primary", elem_id="report-write", scale=0, min_width=200)
            link = gr.DownloadButton(_LINK, visible=False, elem_id="report-link", scale=0, min_width=340)
            close = gr.Button("Close", elem_id="report-close", scale=0, min_width=96)
        notice = fragment_component("result of writing", elem_id="report-result")
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    drawing = render_error_in_place(partial(draw, context), [words, link])
    opened = opener.click(
        lambda was_open: (not was_open, gr.Column(visible=not was_open)), is_open, [is_open, panel], **quiet
    )
    opened.then(drawing, shared.run, [words, link], **quiet)
    close.click(lambda: (False, gr.Column(visible=False)), None, [is_open, panel], **quiet)
    changed = shared.run.change(drawing, shared.run, [words, link], trigger_mode="multiple", **quiet)
    changed.then(None, None, notice, js="() => ''")
    button.click(
        show_errors(partial(write, context), 2),
        [shared.run, answers, theme],
        [notice, link],
        concurrency_limit=1,
        api_visibility="private",
    )
