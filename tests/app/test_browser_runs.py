"""Runs in a real browser: launched, watched, browsed, stopped and resumed, while the server is killed and restarted."""

import os
import re
import signal
from collections.abc import Callable

from app_process import Server, wait_for
from page_checks import RUN_MS, click_tab, hover_card, open_tab
from playwright.sync_api import Page, expect

from workbench.runs.jobs import JobState


def launch(page: Page, name: str, *, steps: int, more: str = "") -> None:
    """Fills the form by mouse and keyboard and starts the run."""
    page.locator("#new-run-name input, #new-run-name textarea").fill(name)
    page.locator("#new-run-training-steps input").fill(str(steps))
    if more:
        if not page.locator("#new-run-more textarea").is_visible():
            page.get_by_role("button", name="More overrides").click()
        page.locator("#new-run-more textarea").fill(more)
    expect(page.locator("#new-run-command textarea")).to_have_value(re.compile(f"name={name}.*training.steps={steps}"))
    page.locator("#new-run-start").click()
    expect(page.locator("#training-status h2")).to_have_text(name)


def badge(page: Page, state: str) -> None:
    expect(page.locator("#training-status .app-badge")).to_have_text(state, timeout=RUN_MS)


def check_finished(page: Page, state: JobState) -> None:
    """Assert what Monitor shows of a run of three steps that the page launched and that has ended."""
    assert f"run={state.name}" in page.url and "tab=training" in page.url
    assert page.locator("#app-first").count() == 0, "what was shown while the page was loading"
    badge(page, "finished")
    expect(page.locator("#training-status")).to_contain_text("3 of 3")
    expect(page.locator("#training-status [role=progressbar]")).to_have_attribute("aria-valuenow", "100")
    expect(page.locator("#training-charts .js-plotly-plot .scatterlayer .trace").first).to_be_attached()
    expect(page.locator(f"#app-runs li[data-run='{state.name}']")).to_contain_text("finished")
    assert page.locator("#training-stop").is_disabled() and page.locator("#training-resume").is_disabled()
    page.get_by_role("button", name="Log").click()
    expect(page.locator("#training-log textarea")).to_have_value(re.compile("accuracy"))
    expect(page.locator("#training-answers tbody tr").first).to_be_attached()


def check_answer(page: Page) -> None:
    """From Training to a token of an answer by mouse alone."""
    open_tab(page, "answers")
    token = page.locator("#answers-answer .wb-t").nth(1)
    expect(hover_card(page, token).locator("[data-logprob]").first).to_be_visible()
    token.click()
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token 2 of")
    expect(page.locator("#answers-answer .wb-detail .wb-fall svg")).to_be_visible()


def test_launched_run_shows_its_tokens_and_next_survives_server(server: Server, open_page: Callable) -> None:
    page = open_page("tab=new-run")
    launch(page, "first", steps=3)
    badge(page, "finished")
    assert server.state("first").status == "finished"
    check_finished(page, server.state("first"))
    check_answer(page)

    click_tab(page, "new-run")
    launch(page, "long", steps=5000, more="data.eval=null\ntrace.probes=0\ntraining.save_every=1000")
    badge(page, "running")
    page.reload()
    expect(page.locator("#training-status h2")).to_have_text("long")
    badge(page, "running")

    server.kill()
    before = server.state("long").step
    wait_for(lambda: server.state("long").step > before)
    pid = server.state("long").pid
    os.kill(pid, signal.SIGSTOP)  # leaves the core to the server's start
    server.start()
    os.kill(pid, signal.SIGCONT)
    page.locator("#app-refresh").click()  # the page that was open goes on
    badge(page, "running")
    expect(page.locator("#training-stop")).to_be_enabled()
    page.locator("#training-stop").click()
    badge(page, "stopped")
    state = server.state("long")
    assert state.status == "stopped" and (state.run_dir / f"checkpoint-{state.step:06d}").is_dir()

    page.locator("#training-resume").click()
    badge(page, "running")
    wait_for(lambda: server.state("long").step > state.step)
