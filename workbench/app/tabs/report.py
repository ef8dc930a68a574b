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
from workbench.app.context import AppContext, Shared, note, show_errors

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


def build_tab(context: AppContext, shared: Shared) -> None:
    """Description, options, the Write button, the download link."""
    words = fragment_component("about the report", elem_id="report-about")
    with gr.Row():
        answers = gr.Slider(
            0, 24, value=8, step=1, label="answers, token by token", elem_id="report-answers", min_width=240
        )
        theme = gr.Radio(("light", "dark"), value="light", label="theme", elem_id="report-theme", min_width=160)
    with gr.Row():
        button = gr.Button("Write the report", variant="primary", elem_id="report-write", scale=0, min_width=200)
        link = gr.DownloadButton(_LINK, visible=False, elem_id="report-link", scale=0, min_width=340)
    notice = fragment_component("result of writing", elem_id="report-said")
    shared.on_show("report", show_errors(partial(draw, context), 2), [shared.run], [words, link])
    shared.run.change(lambda: "", None, notice, show_progress="hidden", api_visibility="private")
    button.click(
        show_errors(partial(write, context), 2),
        [shared.run, answers, theme],
        [notice, link],
        concurrency_limit=1,
        api_visibility="private",
    )
