"""The page without a mouse and for screen readers: axe-core, and a walk by keys alone."""

import json
import re
from pathlib import Path

import axe_playwright_python
import pytest
from page_checks import SHOWS, open_tab
from playwright.sync_api import Page, expect

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
FAULTS = """() => axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => [id, nodes.map(({ html }) => html.slice(0, 160))]))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_every_tab_has_no_serious_fault(visit, theme: str) -> None:
    page = visit(f"run=dopd&with=opd&__theme={theme}", "answers")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    faults = {}
    for tab in SHOWS:
        open_tab(page, tab)
        if serious := page.evaluate(FAULTS):
            faults[tab] = serious
    assert not faults, json.dumps(faults, indent=1)


def press_until(page: Page, key: str, selector: str, most: int = 60) -> None:
    """Press a key until the focused element matches `selector`."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
            return
    raise AssertionError(f"{most} times {key} do not reach {selector}")


def test_keyboard_alone_reaches_token_of_another_run(visit) -> None:
    page = visit("run=opd", "studies")
    press_until(page, "Tab", "#app-runs button[title='dopd']")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("run=dopd"))
    press_until(page, "Tab", "#place-answers-button")
    page.keyboard.press("Enter")
    page.locator(SHOWS["answers"]).first.wait_for()
    press_until(page, "Tab", "#answers-list tr[data-key]")
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile("rollout=1"))
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 1")
    press_until(page, "Tab", "#answers-answer .wb-t")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("rollout=1&token=\\d+"))
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token")
