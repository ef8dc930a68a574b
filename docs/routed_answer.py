"""Draws docs/routed-answer.png: python docs/routed_answer.py RUN STEP ROLLOUT TOKEN (needs Chromium and the extra "dev")."""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

import workbench as wb


def main(run: str, step: str, rollout: str, token: str) -> None:
    view = wb.token_view(wb.open_traces(run).rollout(int(step), int(rollout)), run=Path(run).name)
    page = wb.render_page([wb.render_tokens(view, theme="light")], "A routed answer", theme="light")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "page.html")
        file.write_text(page, encoding="utf-8")
        options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=1.5)
        tab.goto(file.as_uri())
        tab.locator(f'.wb-tokens button[data-i="{int(token)}"]').click()
        tab.mouse.move(5, 5)
        tab.screenshot(path=str(Path(__file__).with_name("routed-answer.png")), full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
