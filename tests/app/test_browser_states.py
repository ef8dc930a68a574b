"""What the page says of runs that have only begun or were deleted."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_checks import click_tab, free_port, watched_pages
from playwright.sync_api import BrowserContext, Page, expect

from workbench.app import layout, live_updates
from workbench.app.server import serve
from workbench.runs.processes import identify

TABLES = ("aggregates", "tokens", "rollouts")  # of a step's traces, in the order in which they are written


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a runs folder."""
    folder = tmp_path_factory.mktemp("states")
    shutil.copytree(trained / "dopd", folder / "runs/done")
    return folder


@pytest.fixture(scope="module")
def page_of(folder: Path) -> Iterator[str]:
    """The page over the runs; it looks for news twice a second."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((layout, "POLL_S"), (live_updates, "POLL_S")):
            patch.setattr(module, name, 0.5)
        app = serve(folder / "runs", configs=folder, port=port)
    yield f"http://127.0.0.1:{port}"
    app.close()


@pytest.fixture
def opened(visitor: BrowserContext, page_of: str) -> Iterator[Callable[[str], Page]]:
    with watched_pages(visitor, page_of) as open_query:
        yield open_query


def test_tokens_run_just_begun_shows_answers_once_recorded(opened, folder: Path, trained: Path) -> None:
    run_dir = folder / "runs/living"
    shutil.copytree(trained / "dopd", run_dir, ignore=lambda path, _: TABLES if Path(path).name == "traces" else ())
    status = json.loads((run_dir / "run.json").read_text())
    status |= {"status": "running", "pid": os.getpid(), "process": identify(os.getpid()), "steps_done": 0}
    status |= {"updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "doing": "evaluating student: 6 questions"}
    (run_dir / "run.json").write_text(json.dumps(status))
    page = opened("run=living&tab=answers")
    expect(page.locator("#answers-list")).to_contain_text("No training answer is recorded yet")
    expect(page.locator("#answers-list")).not_to_contain_text("filter")
    expect(page.locator("#answers-news")).to_contain_text(
        "living is running: evaluating student: 6 questions; step 0 of 4"
    )
    other = opened("run=living&tab=leakage")
    expect(other.locator("#leakage-news")).to_contain_text("living is running")
    expect(other.locator("#tab-leakage")).not_to_contain_text("nats per token")
    for table in TABLES:  # whole at once, as a run records
        copy = shutil.copytree(trained / "dopd/traces" / table, folder / "copies" / table)
        copy.rename(run_dir / "traces" / table)
    expect(page.locator("#answers-list tr[data-key]").first).to_be_visible()
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token")
    expect(page.locator("#answers-news")).not_to_contain_text("is running")
    expect(other.locator("#leakage-news")).not_to_contain_text("is running")
    expect(other.locator("#tab-leakage")).to_contain_text("nats per token")  # the student's entropy
    shutil.rmtree(run_dir)


def test_monitor_run_deleted_clears_figures(opened, folder: Path) -> None:
    shutil.copytree(folder / "runs/done", folder / "runs/doomed")
    page = opened("run=doomed&tab=training")
    expect(page.locator("#training-status h2")).to_have_text("doomed")
    expect(page.locator("#training-charts .js-plotly-plot").first).to_be_visible()
    shutil.rmtree(folder / "runs/doomed")
    gone = page.locator("#training-status [role=alert]")
    expect(gone).to_contain_text("does not exist")  # by itself
    expect(page.locator("#training-status h2")).to_have_count(0)
    expect(page.locator("#training-charts .js-plotly-plot")).to_have_count(0)
    click_tab(page, "answers")
    expect(page.locator("#answers-list")).to_contain_text("does not exist")
    click_tab(page, "training")
    expect(gone).to_contain_text("does not exist")


def test_answers_run_damaged_or_renamed_while_open_names_it(opened, folder: Path) -> None:
    run_dir = shutil.copytree(folder / "runs/done", folder / "runs/fragile")
    page = opened("run=fragile&tab=answers")
    expect(page.locator("#answers-list tr[data-key]").first).to_be_visible()
    tokens = next((run_dir / "traces/tokens").iterdir())
    tokens.write_bytes(tokens.read_bytes()[:-100])  # as a copy that was cut off
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#tab-answers [role=alert]").first).to_contain_text(tokens.name)
    expect(page.locator("#answers-answer .wb-t")).to_have_count(0)
    run_dir.rename(folder / "runs/renamed")
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_text('The folder of run "fragile" was deleted or renamed.')).to_be_visible()
    expect(page.locator("#app-runs [aria-current='true']")).not_to_have_attribute("title", "fragile")
    shutil.rmtree(folder / "runs/renamed")
