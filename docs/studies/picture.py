"""Draws the figures of finished studies: python docs/studies/picture.py main privilege ...

Reads runs/NAME/figure.html, writes NAME.png beside this file. Needs Chromium and the extra "dev".
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path=shutil.which("chromium-headless-shell") or shutil.which("chromium"), args=["--no-sandbox"]
    )
    for name in sys.argv[1:]:
        page = browser.new_page(viewport={"width": 1100, "height": 700}, device_scale_factor=1.5)
        page.goto(Path("runs", name, "figure.html").resolve().as_uri())
        page.wait_for_selector(".main-svg")
        page.locator(".js-plotly-plot").screenshot(path=Path(__file__).parent / f"{name}.png")
    browser.close()
