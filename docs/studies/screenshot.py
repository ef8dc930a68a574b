"""Saves a Plotly figure as a PNG, as Chromium draws it. Needs Chromium and the extra "dev"."""

import shutil
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright


def screenshot(figure: go.Figure, file: Path, width: int = 1200) -> None:
    """Draw `figure` at its layout's height and `width` pixels, at one and a half times that resolution."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium-headless-shell") or shutil.which("chromium"), args=["--no-sandbox"]
        )
        viewport = {"width": width, "height": figure.layout.height + 20}
        page = browser.new_page(viewport=viewport, device_scale_factor=1.5)
        page.set_default_timeout(180_000)
        page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.wait_for_selector(".main-svg")
        page.locator(".js-plotly-plot").screenshot(path=file)
        browser.close()
