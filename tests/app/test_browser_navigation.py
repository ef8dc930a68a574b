"""Moving through the page in a real browser: back and forward, arrow keys, the run picker."""

import json
import re
import shutil
from pathlib import Path

from page_checks import SHOWS
from playwright.sync_api import Page, expect


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.locator(SHOWS[name.lower()]).first.wait_for()


def expect_answer(page: Page, tab: str, step: int, rollout: int) -> None:
    """The address, the open tab, and the open answer."""
    expect(page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
    expect(page).to_have_url(re.compile(f"tab={tab.lower()}&step={step}&rollout={rollout}"))
    if tab == "Tokens":
        expect(page.locator("#tokens-answer .wb-meta")).to_contain_text(f"step {step}")
        expect(page.locator("#tokens-answer .wb-meta")).to_contain_text(f"rollout {rollout}")


def test_history_back_and_forward_restore_tabs_and_answers(visit) -> None:
    page = visit("run=dopd", "tokens")
    before = page.evaluate("history.length")
    page.locator("#tokens-list tr[data-key]").nth(1).click()
    expect_answer(page, "Tokens", 4, 1)
    page.locator("#tokens-answer .wb-t").nth(1).click()
    expect(page).to_have_url(re.compile("rollout=1&token=1"))
    page.locator("#tokens-list tr[data-key]").nth(2).click()
    expect_answer(page, "Tokens", 4, 2)
    open_tab(page, "Movement")
    row = page.locator("#movement-moved tr[data-key]").first
    key = json.loads(row.get_attribute("data-key"))
    row.click()
    expect_answer(page, "Tokens", 4, key["rollout"])
    expect(page.locator("#tokens-probe input")).to_be_checked()
    assert page.evaluate("history.length") - before == 4, "two answers, a tab, and a row that opens an answer in a tab"
    page.go_back()
    expect_answer(page, "Movement", 4, 2)
    page.go_back()
    expect_answer(page, "Tokens", 4, 2)
    page.go_back()
    expect_answer(page, "Tokens", 4, 1)
    expect(page.locator("#tokens-answer .wb-detail")).to_contain_text("token 2 of")
    page.go_forward()
    expect_answer(page, "Tokens", 4, 2)
    page.go_forward()
    page.go_forward()
    expect_answer(page, "Tokens", 4, key["rollout"])
    expect(page.locator("#tokens-answer .wb-detail")).to_contain_text(f"token {key['position'] + 1} of")


def test_rows_arrow_keys_pressed_quickly_open_the_last(visit) -> None:
    page = visit("run=dopd", "tokens")
    page.locator("#tokens-list tr[data-key]").first.click()
    expect(page).to_have_url(re.compile("rollout=0"))
    before = page.evaluate("history.length")
    for pause in (0, 170):  # milliseconds: shorter and longer than the pause that the table waits for
        for _ in range(4):
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(pause)
    key = json.loads(page.evaluate("document.activeElement.dataset.key"))
    assert key == json.loads(page.locator("#tokens-list tr[data-key]").nth(8).get_attribute("data-key"))
    expect_answer(page, "Tokens", key["step"], key["rollout"])
    expect(page.locator("#tokens-list tr[aria-selected='true']")).to_be_focused()
    assert page.evaluate("history.length") == before, "moving through a list adds no entries"


def test_run_picker_typing_filters_and_takes_listed_runs_only(visit, runs: Path) -> None:
    page = visit("run=dopd", "report")
    picker = page.locator("#app-run input")
    picker.click()
    page.keyboard.type("pho")  # replaces the name
    expect(picker).to_have_value("pho")
    expect(page.get_by_role("option")).to_have_text([re.compile("photos")])
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("run=photos"))
    expect(picker).to_have_value(re.compile("^photos"))
    picker.click()
    page.keyboard.type("no such run")
    expect(page.get_by_role("option")).to_have_count(0)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # away from the list
    expect(picker).to_have_value(re.compile("^photos"))
    expect(page).to_have_url(re.compile("run=photos"))
    picker.click()
    page.keyboard.type("opd")
    page.get_by_role("option").filter(has_text=re.compile("dopd")).click()
    expect(page).to_have_url(re.compile("run=dopd"))
    picker.click()
    page.keyboard.press("Escape")
    expect(picker).to_have_attribute("aria-expanded", "false")
    picker.click()  # opens the list again, as a box without focus does
    expect(picker).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    late = runs / "a-run-that-was-started-elsewhere-with-seed-7"
    shutil.copytree(runs / "opd", late)
    open_tab(page, "Studies")  # looks for new runs, as it does every few seconds
    picker.click()
    expect(page.get_by_role("option").filter(has_text=late.name)).to_be_visible()
    shutil.rmtree(late)
