"""The table of all runs and the start page: what the browser gets, and what its actions do."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import raises
from playwright.sync_api import Page, expect
from run_files import write_job, write_run

from workbench.app.context import AppContext
from workbench.app.tabs.new_run import refresh_recipes
from workbench.app.tabs.runs import act, draw, redraw
from workbench.errors import RunError
from workbench.runs.example_run import add_example_run
from workbench.runs.jobs import find_jobs
from workbench.runs.labels import read_labels

MESSAGE, CARDS, DATA, MARK, RUN, ADDRESS, TAB = range(7)


@pytest.fixture
def three(tmp_path: Path) -> AppContext:
    """A finished run whose note looks like HTML, another, and one that failed before its folder."""
    runs = tmp_path / "runs"
    write_run(runs, "a")
    write_run(runs, "b", method="opd")
    write_job(runs, "c", "ValueError: broken\n")
    (tmp_path / "demo.yaml").write_text("method: {name: dopd}\n")
    return AppContext(runs, tmp_path)


def values_of(data: str) -> dict:
    return json.loads(html.unescape(re.search('data-json="([^"]*)"', data)[1]))


def do(context: AppContext, action: str, name: str = "a", **more: object) -> tuple:
    return act(context, "a", {"with": "b"}, {"action": action, "name": name, **more})


def test_draw_sends_every_run_with_texts_and_values(three: AppContext) -> None:
    cards, data, _ = draw(three)
    values = values_of(data)
    keys = [column["key"] for column in values["columns"]]
    rows = {row["name"]: row for row in values["rows"]}
    assert cards == "" and set(rows) == {"a", "b", "c"} and values["read_only"] is False
    assert rows["a"]["cells"][keys.index("duration")] == "2 min" and rows["a"]["sort"][keys.index("duration")] == 123.0
    assert "ValueError: broken" in rows["c"]["reason"] and "broken" in rows["c"]["search"]
    assert len(rows["a"]["csv"].split(",")) == len(values["csv"].split(","))


def test_redraw_sends_nothing_while_no_run_changes(three: AppContext) -> None:
    *_, mark = draw(three)
    assert isinstance(redraw(three, "runs", mark)[1], dict)  # gr.skip()
    do(three, "archive")
    assert values_of(redraw(three, "runs", mark)[1])["rows"] and isinstance(redraw(three, "training", mark)[1], dict)


def test_open_shows_the_run_in_training(three: AppContext) -> None:
    outcome = do(three, "open", "b")
    assert (outcome[RUN], outcome[TAB], outcome[ADDRESS]) == ("b", "training", {"with": "b"})


@pytest.mark.parametrize(("action", "start"), [("clone", "run:c"), ("demo", "recipe:demo.yaml")])
def test_clone_and_demo_fill_the_form(three: AppContext, action: str, start: str) -> None:
    outcome = do(three, action, "c")
    assert outcome[TAB] == "new-run" and outcome[ADDRESS] == {"start_from": start}
    picker, _, guide = refresh_recipes(three, "recipe:other.yaml", "x", outcome[ADDRESS])
    assert picker.value == start and guide == ""


def test_guide_opens_the_form_with_the_guide(three: AppContext) -> None:
    outcome = do(three, "guide")
    assert outcome[TAB] == "new-run"
    assert "workbench import" in refresh_recipes(three, "recipe:demo.yaml", "x", outcome[ADDRESS])[2]


def test_labels_and_names_are_changed(three: AppContext) -> None:
    data = do(three, "label", tags="x, y,", note="<b>why</b>")[DATA]
    assert "<b>" not in data and read_labels(three.runs_dir / "a").tags == ("x", "y")
    assert do(three, "rename", value="d")[RUN] == "d"
    assert {state.name for state in find_jobs(three.runs_dir)} == {"b", "c", "d"}


def test_delete_is_asked_for_and_shows_another_run(three: AppContext) -> None:
    question = values_of(do(three, "ask")[DATA])["question"]
    assert question["name"] == "a" and (three.runs_dir / "a").is_dir()
    assert do(three, "delete")[RUN] == "b"
    assert not (three.runs_dir / "a").exists()


def test_error_of_an_action_is_a_message_and_the_table_stays(three: AppContext) -> None:
    outcome = do(three, "rename", value="b")
    assert 'role="alert"' in outcome[MESSAGE] and len(values_of(outcome[DATA])["rows"]) == 3
    assert "nothing" in do(three, "nothing")[MESSAGE]


def test_read_only_page_changes_nothing(three: AppContext) -> None:
    context = AppContext(three.runs_dir, three.configs_dir, read_only=True)
    for action in ("rename", "label", "archive", "ask", "delete", "example"):
        assert 'role="alert"' in do(context, action, value="d")[MESSAGE]
    assert {state.name for state in find_jobs(three.runs_dir)} == {"a", "b", "c"}
    assert read_labels(three.runs_dir / "a").archived is False


def test_folder_without_runs_shows_three_cards(tmp_path: Path) -> None:
    cards, data, _ = draw(AppContext(tmp_path, tmp_path))
    assert re.findall('data-card="([a-z]+)"', cards) == ["demo", "guide", "example"] and values_of(data)["rows"] == []
    locked, *_ = draw(AppContext(tmp_path, tmp_path, read_only=True))
    assert locked.count("disabled") == 3


def test_example_is_copied_once_and_is_a_finished_run(tmp_path: Path) -> None:
    context = AppContext(tmp_path, tmp_path)
    for _ in range(2):
        outcome = act(context, None, {}, {"action": "example"})
        assert (outcome[RUN], outcome[TAB]) == ("example", "training")
    (row,) = values_of(draw(context)[1])["rows"]
    assert row["name"] == "example" and row["reason"] == ""
    (state,) = find_jobs(tmp_path)
    assert (state.status, state.step, state.can_resume) == ("finished", 50, False)


def test_example_does_not_replace_another_folder(tmp_path: Path) -> None:
    (tmp_path / "example").mkdir()
    with raises(RunError, "example"):
        add_example_run(tmp_path)


def test_table_sorts_searches_and_opens_by_keyboard(visit: Callable[[str, str], Page]) -> None:
    page = visit("run=dopd", "runs")
    table = page.locator("#runs-all")
    rows = table.locator("tr[data-run]")
    expect(rows.first).to_be_visible()
    number = rows.count()
    heading = table.get_by_role("columnheader", name="run", exact=False).first
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    names = rows.evaluate_all("rows => rows.map((row) => row.dataset.run)")
    assert names == sorted(names)
    table.get_by_role("searchbox").fill("photos")
    expect(rows).to_have_count(1)
    expect(table.get_by_role("status")).to_have_text(f"1 of {number} runs")
    table.get_by_role("searchbox").fill("")
    rows.locator("a").first.focus()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1).locator("a")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**run={names[1]}&tab=training**")


def test_ticks_of_table_and_sidebar_are_the_same(visit: Callable[[str, str], Page]) -> None:
    page = visit("run=dopd", "runs")
    table, sidebar = page.locator("#runs-all"), page.locator("#app-runs")
    table.locator("tr[data-run='opd'] input").check()
    expect(sidebar.locator("li[data-run='opd'] input")).to_be_checked()
    page.wait_for_url("**with=opd**")
    sidebar.locator("li[data-run='dopd'] input").uncheck()
    expect(table.locator("tr[data-run='dopd'] input")).not_to_be_checked()
    expect(table.locator("tr[data-run='opd'] input")).to_be_checked()
