"""Figures in a real browser: they keep their areas, clips and colour bars through every control, and show what is so."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from conftest import free_port
from page_checks import REFERENCES, SHOWS
from playwright.sync_api import Browser, Page, expect
from starlette.types import ASGIApp, Receive, Scope, Send

from workbench.ui.serve import serve


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.locator(SHOWS[name.lower()]).first.wait_for()


def choose(page: Page, box: str, option: str) -> None:
    page.locator(f"{box} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def whole_figures(page: Page, least: int = 1) -> None:
    """No visible figure has a reference that leads out of the page or nowhere; at least so many lead to their part."""
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot').length > 0")
    page.wait_for_timeout(300)  # the address is written and figures are drawn anew by and by
    found = page.evaluate(REFERENCES)
    assert found["broken"] == [] and found["local"] >= least, (page.url, found)


def test_figures_stay_whole_through_every_choice_of_their_tab(visit) -> None:
    page = visit("run=dopd&other=opd", "movement")
    whole_figures(page)
    page.locator("#movement-value").get_by_text("capability gap").click()
    expect(page).to_have_url(re.compile("colour=capability_gap"))
    whole_figures(page)
    choose(page, "#movement-last", "2")
    expect(page).to_have_url(re.compile("to=2"))
    whole_figures(page)
    choose(page, "#movement-split", "by truth")
    expect(page).to_have_url(re.compile("panels=truth"))
    whole_figures(page)
    page.locator("#movement-probes tr[data-key]").nth(1).click()
    expect(page).to_have_url(re.compile("probe=1"))
    whole_figures(page)
    page.locator("#movement-moved tr[data-key]").first.click()
    page.locator(SHOWS["tokens"]).wait_for()
    open_tab(page, "Movement")
    whole_figures(page)


def test_figures_stay_whole_when_another_answer_was_opened_meanwhile(visit) -> None:
    page = visit("run=dopd&other=opd", "tokens")
    for rollout, tab in enumerate(("Watch", "Illusion", "Compare", "Studies")):
        open_tab(page, tab)
        open_tab(page, "Tokens")
        page.locator("#tokens-list tr[data-key]").nth(rollout).click()
        expect(page.locator("#tokens-answer .wb-meta")).to_contain_text(f"rollout {rollout}")
        page.locator("#tokens-answer .wb-t").nth(1).click()
        expect(page).to_have_url(re.compile("token=1"))
        open_tab(page, tab)
        whole_figures(page)
    open_tab(page, "Compare")
    page.locator("#compare-layout").get_by_text("side by side").click()
    expect(page).to_have_url(re.compile("layout=beside"))
    whole_figures(page)
    page.locator("#app-theme").click()
    whole_figures(page)
    page.locator("#app-theme").click()


class Proxy:
    """Hands on what is asked under a path, without the path, as a proxy does; all else is not here."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(f"{self.prefix}/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            path = scope.get("path", "").removeprefix(self.prefix)
            await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


@pytest.fixture
def behind_a_proxy(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the page behind a proxy that serves it under a path."""
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/lab/workbench")
    app = serve(runs, configs=runs, port=free_port())
    port = free_port()
    proxy = uvicorn.Server(
        uvicorn.Config(Proxy(app.app, "/lab/workbench"), port=port, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=proxy.run)
    thread.start()
    while not proxy.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/lab/workbench/"
    proxy.should_exit = True
    app.close()
    thread.join()


def test_figures_stay_whole_behind_a_proxy_that_serves_the_page_under_a_path(
    behind_a_proxy: str, browser: Browser
) -> None:
    page = browser.new_page()
    missing = []
    page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    page.goto(f"{behind_a_proxy}?run=dopd&tab=movement")
    page.locator(SHOWS["movement"]).first.wait_for()
    page.locator("#movement-value").get_by_text("capability gap").click()
    expect(page).to_have_url(re.compile(r"/lab/workbench/\?.*colour=capability_gap"))
    whole_figures(page)
    assert [url for url in missing if "/lab/workbench/" in url] == []
    page.close()
