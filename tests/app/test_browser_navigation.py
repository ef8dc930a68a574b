"""Moving through the page in a real browser: back and forward, arrow keys, the run picker."""

import json
import re
import shutil
from pathlib import Path

from page_checks import SHOWS, click_tab, open_tab, settle
from playwright.sync_api import Page, Route, expect

from workbench.app.layout import place_of


def expect_answer(page: Page, tab: str, step: int, rollout: int) -> None:
    """The address, the open tab, and the open answer."""
    expect(page.locator(f"#tab-{tab}-button")).to_have_attribute("aria-selected", "true")
    expect(page.locator(f"#place-{place_of(tab)}-button")).to_have_attribute("aria-selected", "true")
    expect(page).to_have_url(re.compile(f"tab={tab}&step={step}&rollout={rollout}"))
    if tab == "answers":
        expect(page.locator("#answers-answer .wb-meta")).to_contain_text(f"step {step}")
        expect(page.locator("#answers-answer .wb-meta")).to_contain_text(f"rollout {rollout}")


def test_history_back_and_forward_restore_tabs_and_answers(visit) -> None:
    page = visit("run=dopd", "answers", fresh=True)  # a browser keeps 50 entries
    before = page.evaluate("history.length")
    page.locator("#answers-list tr[data-key]").nth(1).click()
    expect_answer(page, "answers", 4, 1)
    page.locator("#answers-answer .wb-t").nth(1).click()
    expect(page).to_have_url(re.compile("rollout=1&token=1"))
    page.locator("#answers-list tr[data-key]").nth(2).click()
    expect_answer(page, "answers", 4, 2)
    open_tab(page, "movement")
    row = page.locator("#movement-moved tr[data-key]").first
    key = json.loads(row.get_attribute("data-key"))
    row.click()
    expect_answer(page, "answers", 4, key["rollout"])
    expect(page.locator("#answers-source").get_by_label("probes")).to_be_checked()
    assert page.evaluate("history.length") - before == 5, (
        "two answers, a place, its view, and a row that opens an answer"
    )
    page.go_back()
    expect_answer(page, "movement", 4, 2)
    page.go_back()
    expect_answer(page, "training", 4, 2)
    page.go_back()
    expect_answer(page, "answers", 4, 2)
    page.go_back()
    expect_answer(page, "answers", 4, 1)
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token 2 of")
    page.go_forward()
    expect_answer(page, "answers", 4, 2)
    for _ in range(3):
        page.go_forward()
    expect_answer(page, "answers", 4, key["rollout"])
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text(f"token {key['position'] + 1} of")


def test_rows_arrow_keys_pressed_quickly_open_the_last(visit) -> None:
    page = visit("run=dopd", "answers")
    page.locator("#answers-list tr[data-key]").first.click()
    expect(page).to_have_url(re.compile("rollout=0"))
    before = page.evaluate("history.length")
    for count, pause in ((4, 0), (4, 170)):  # within the pause that the table waits for, and longer ones
        for _ in range(count):
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(pause)
        key = json.loads(page.evaluate("document.activeElement.dataset.key"))
        settle(page)
        expect_answer(page, "answers", key["step"], key["rollout"])
        expect(page.locator("#answers-list tr[aria-selected='true']")).to_be_focused()
    assert key == json.loads(page.locator("#answers-list tr[data-key]").nth(8).get_attribute("data-key"))
    assert page.evaluate("history.length") == before, "moving through a list adds no entries"


def test_row_chosen_before_the_reply_of_back_stays_open(visit) -> None:
    page = visit("run=dopd", "answers")
    for row in (1, 2):
        page.locator("#answers-list tr[data-key]").nth(row).click()
        expect_answer(page, "answers", 4, row)
    late: list[Route] = []
    page.route("**/queue/join*", lambda route: late.append(route))
    page.go_back()
    page.wait_for_function("location.search.includes('rollout=1')")
    while not late:  # the request that reads the address
        page.wait_for_timeout(20)
    page.locator("#answers-list tr[data-key]").nth(3).click()
    expect(page).to_have_url(re.compile("rollout=3"))
    page.unroute("**/queue/join*")  # which lets them go on
    settle(page)
    expect_answer(page, "answers", 4, 3)


OPENED = """([kept, fixed, columns, key, address]) => {
    window.workbenchChosenKey = key;
    return workbenchApp.opened(kept, fixed, columns, address);
}"""


def test_opened_row_address_has_kept_parameters_and_those_of_its_key(visit) -> None:
    page = visit("run=dopd", "studies")
    columns = {"step": "last_step", "rollout": "rollout", "process": "process", "example": "id"}
    address = {"with": "opd", "token": "9", "filter": "", "example": "old"}
    for key, result in (
        ({"last_step": 0, "rollout": 3, "process": 0, "id": "7"}, {"step": "0", "rollout": "3", "example": "7"}),
        ({"last_step": 12, "rollout": 0, "process": 1, "id": None}, {"step": "12", "rollout": "0", "process": "1"}),
    ):
        opened = page.evaluate(OPENED, [["with", "filter", "panels"], {"probe": "1"}, columns, key, address])
        assert opened == {"with": "opd", "probe": "1", **result}


def chosen_runs(page: Page) -> list[str]:
    """The run of the list that is open, then all that are ticked, in the list's order."""
    items = page.locator("#app-runs li")
    open_run = page.locator("#app-runs button[aria-current='true']").get_attribute("title")
    ticked = [item.get_attribute("data-run") for item in items.all() if item.locator("input").is_checked()]
    return [open_run, *ticked]


def test_list_of_runs_click_opens_and_ticks_add_runs(visit, runs: Path) -> None:
    page = visit("run=dopd", "studies")
    assert chosen_runs(page) == ["dopd", "dopd"]
    tick = page.locator("#app-runs li[data-run='opd'] input")
    tick.click()
    expect(page).to_have_url(re.compile("run=dopd&tab=studies.*with=opd"))
    assert set(chosen_runs(page)) == {"dopd", "opd"}
    page.locator("#app-runs button[title='opd']").click()  # a ticked run: the ticks stay
    expect(page).to_have_url(re.compile("run=opd&tab=studies.*with=dopd"))
    tick.click()  # of the open run: the next ticked one opens
    expect(page).to_have_url(re.compile("run=dopd&tab=studies((?!with).)*$"))
    page.locator("#app-runs li[data-run='dopd'] input").click()
    assert chosen_runs(page) == ["dopd", "dopd"], "the last tick stays"
    page.locator("#app-runs button[title='photos']").click()
    expect(page).to_have_url(re.compile("run=photos&tab=studies((?!with).)*$"))
    page.go_back()
    expect(page).to_have_url(re.compile("run=dopd"))
    expect(page.locator("#app-runs button[title='dopd']")).to_have_attribute("aria-current", "true")
    late = runs / "a-run-that-was-started-elsewhere-with-seed-7"
    shutil.copytree(runs / "opd", late)
    click_tab(page, "new-run")  # looks for new runs, as the page does every few seconds
    expect(page.locator(f"#app-runs button[title='{late.name}']")).to_be_visible()
    shutil.rmtree(late)


def test_list_of_runs_on_phone_opens_over_page(visit) -> None:
    page = visit("run=dopd", "studies")
    page.set_viewport_size({"width": 390, "height": 800})
    expect(page.locator("#app-runs")).to_be_hidden()
    page.locator("#app-runs-toggle").click()
    page.locator("#app-runs button[title='photos']").click()
    expect(page).to_have_url(re.compile("run=photos"))
    expect(page.locator("#app-runs")).to_be_hidden()


def test_place_opened_again_shows_its_last_view(visit) -> None:
    page = visit("run=dopd", "geometry")
    click_tab(page, "studies")
    page.locator("#place-training-button").click()
    expect(page).to_have_url(re.compile("tab=geometry"))
    expect(page.locator(SHOWS["geometry"])).to_be_visible()
    page.go_back()
    expect(page).to_have_url(re.compile("tab=studies"))
    expect(page.locator(SHOWS["studies"]).first).to_be_visible()


def test_choice_changes_its_own_parameter_of_the_address(visit) -> None:
    page = visit("run=dopd", "studies")
    address = {"x": "time", "metrics": "loss,entropy", "step": "4"}
    for choice, result in (
        (["by", "", [], "domain"], {**address, "by": "domain"}),
        (["log", "", [], True], {**address, "log": "1"}),
        (["x", "step", ["step"], "step"], {"metrics": "loss,entropy"}),
        (["x", "step", ["step"], " time "], address),  # as it was: an open answer stays
        (["metrics", "", [], []], {"x": "time", "step": "4"}),
    ):
        name, usual, forgotten, chosen = choice
        opened = page.evaluate("values => workbenchApp.choose(...values)", [name, usual, forgotten, address, chosen])
        assert opened == result, choice
