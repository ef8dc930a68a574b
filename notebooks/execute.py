"""Runs notebooks from top to bottom and keeps what they show: python notebooks/execute.py [01 04 ...]

1. Every notebook gets a fresh kernel, started in notebooks/.
2. Figures and token views become pictures, drawn by Chromium: they are seen on a page that runs no code, and a notebook
   stays small. Whoever runs a cell gets the live figure again.
3. Progress bars and paths of this machine are left out.
"""

import base64
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from plotly.offline import get_plotlyjs

FOLDER = Path(__file__).parent
PLOTLY = "application/vnd.plotly.v1+json"
LONGEST_S = 1200  # of one cell, on a machine that is busy with other things
_WIDTH, _COLORS = 1160, 128  # pixels of a picture; colors of its palette


def start_kernel() -> AsyncKernelManager:
    """A kernel that several notebooks run in, one after the other."""
    kernel = AsyncKernelManager()
    run_sync(kernel.start_kernel)(env=_environment())
    return kernel


def stop_kernel(kernel: AsyncKernelManager) -> None:
    run_sync(kernel.shutdown_kernel)(now=True)


def execute(file: Path, folder: Path, kernel: AsyncKernelManager | None = None) -> nbformat.NotebookNode:
    """The notebook with what its cells gave, run in `folder`, in a fresh kernel or in one whose names are forgotten.

    Raises: nbclient.exceptions.CellExecutionError at the first cell that fails.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(notebook, km=kernel, timeout=LONGEST_S, resources={"metadata": {"path": str(folder)}})
    if kernel is not None:
        forget = f"import os; os.chdir({str(folder)!r}); get_ipython().reset()"
        client.on_notebook_start = lambda notebook: client.kc.execute(forget, silent=True)
    client.execute(env=_environment())
    return notebook


def _environment() -> dict[str, str]:
    """Of a kernel that gives figures as data, and not each with all of plotly.js."""
    return {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}


def tidy(notebook: nbformat.NotebookNode, page: Page) -> None:
    """Make the outputs fit to be kept: pictures for what is live, no progress bars, no paths, no times."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "text" in output:
                output.text = without_paths(output.text)
            if "data" in output:
                output.data = _still(output.data, page)
                output.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def without_paths(text: str) -> str:
    """The text with folders of this machine named by what they are."""
    text = text.replace(str(FOLDER.parent.resolve()), ".")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[\w.-]+", "TEMPORARY", text)


def _still(data: dict[str, Any], page: Page) -> dict[str, Any]:
    """One output, a live figure or token view replaced by its picture."""
    if PLOTLY in data:
        draw = f'Plotly.newPlot("figure", {_figure(data[PLOTLY])})'
        html = f'<div id="figure"></div><script>{get_plotlyjs()}</script><script>{draw}</script>'
        return {"image/png": _picture(html, page)}
    if "wb-root" in data.get("text/html", ""):
        return {"image/png": _picture(data["text/html"], page)}
    return {
        kind: without_paths(value) if isinstance(value, str) else value
        for kind, value in data.items()
        if kind != "image/png"
    } | {kind: value for kind, value in data.items() if kind == "image/png"}


def _figure(figure: dict[str, Any]) -> str:
    layout = {**figure["layout"], "width": _WIDTH - 20}
    return json.dumps({"data": figure["data"], "layout": layout}).replace("</", "<\\/")


def _picture(html: str, page: Page) -> str:
    """A PNG with a small palette, as base64."""
    page.goto("about:blank")  # a script that ran on the page before would take this one for done
    page.set_content(
        f'<!doctype html><body style="margin:0;padding:10px;background:#fff;color-scheme:light">{html}</body>'
    )
    page.mouse.move(2, 2)
    page.wait_for_timeout(150)  # plotly draws after it returns
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=page.locator("body").bounding_box()))).convert(
        "RGB"
    )
    stream = io.BytesIO()
    taken.quantize(_COLORS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    return base64.b64encode(stream.getvalue()).decode()


def main(wanted: list[str]) -> None:
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or installed
        browser = playwright.chromium.launch(
            executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": _WIDTH, "height": 1200})
        for file in sorted(FOLDER.glob("*.ipynb")):
            if not wanted or file.name.startswith(tuple(wanted)):
                notebook = execute(file, FOLDER)
                tidy(notebook, page)
                nbformat.write(notebook, file)
                print(f"{file.name}: {file.stat().st_size / 1024:.0f} KB")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
