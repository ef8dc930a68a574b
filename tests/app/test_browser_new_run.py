"""The form of Launch in a real browser: mistakes, methods, checks, and a run that failed at its start."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from page_checks import RUN_MS, click_tab, free_port, settle, watched_pages
from playwright.sync_api import BrowserContext, Page, expect
from small import add_begun

from workbench.app.server import serve
from workbench.runs.jobs import _Record, _write_record


class Served:
    """The app in this process, which has imported already what a check needs."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder, self.runs, self.port = folder, folder / "runs", free_port()
        self.app = serve(self.runs, configs=folder / "configs", port=self.port, **options)
        self.address = f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(launch_folder: Path) -> Iterator[Served]:
    served = Served(launch_folder)
    yield served
    served.app.close()


def test_form_mistakes_show_errors_and_start_nothing(server: Served, open_page: Callable) -> None:
    page = open_page("tab=new-run")
    page.locator("#new-run-training-steps").scroll_into_view_if_needed()
    page.mouse.wheel(0, 3000)
    expect(page.locator("#new-run-start")).to_be_in_viewport()
    page.locator("#new-run-training-steps input").fill("0")
    expect(page.locator("#new-run-message [role=alert]")).to_contain_text("training.steps must be at least 1, got 0")
    for name in ("../o", "../out") * 2:  # two fields within one round trip: the page gets one request for both
        page.locator("#new-run-training-steps input").fill("0")
        page.locator("#new-run-training-steps input").fill("2")
        page.locator("#new-run-name input, #new-run-name textarea").fill(name)
        expect(page.locator("#new-run-message [role=alert]")).to_contain_text(f'"{name}" must be a plain folder name')
    page.locator("#new-run-name input, #new-run-name textarea").press("Backspace")  # deleting and pasting are edits too
    expect(page.locator("#new-run-message [role=alert]")).to_contain_text('"../ou" must be a plain folder name')
    page.locator("#new-run-name input, #new-run-name textarea").evaluate(
        "one => { one.focus(); one.select(); document.execCommand('insertText', false, '../pasted'); }"
    )
    expect(page.locator("#new-run-message [role=alert]")).to_contain_text('"../pasted" must be a plain folder name')
    expect(page.locator("#new-run-command textarea")).to_have_value("")
    page.locator("#new-run-name input, #new-run-name textarea").fill("missing")
    page.locator("#new-run-models-student textarea").fill("no/such/model")
    expect(page.locator("#new-run-command textarea")).to_have_value(re.compile("models.student=no/such/model"))
    page.locator("#new-run-start").click()
    expect(page.locator("#new-run-said [role=alert]")).to_contain_text('"no/such/model" is not a model folder')
    settle(page)  # the new command arrives, and the error stays
    expect(page.locator("#new-run-said [role=alert]")).to_be_visible()
    assert not (server.runs / "missing").exists()
    assert "Traceback" not in page.content()


def search_settings(page: Page) -> None:
    """Find a field among all settings by words, and those that are not at their defaults."""
    expect(page.locator("#new-run-models-lora-rank")).to_have_count(0)
    page.locator("#new-run-settings button").first.click()
    words, only = (
        page.locator(f"#new-run-settings .new-run-search input[type={kind}]") for kind in ("search", "checkbox")
    )
    left = page.locator(
        "#new-run-settings .app-grid > [id^=new-run-]:visible, #new-run-settings .form > [id^=new-run-]:visible"
    )
    words.fill("lora adapters rank =")
    expect(left).to_have_count(1)
    page.locator("#new-run-models-lora-rank input").fill("2")
    words.fill("")
    only.check()
    expect(page.locator("#new-run-models-lora-rank input")).to_be_visible()
    expect(page.locator("#new-run-models-lora-alpha")).to_be_hidden()
    page.locator("#new-run-models-lora-rank input").fill("0")
    expect(page.locator("#new-run-models-lora-rank")).to_be_hidden()
    only.uncheck()
    expect(page.locator("#new-run-method-trim input")).to_be_visible()


def test_check_edited_form_replaces_report(open_page: Callable) -> None:
    page = open_page("tab=new-run")
    report, output = page.locator("#new-run-report"), page.locator("#new-run-said [role=alert]")
    data, steps = page.locator("#new-run-data-train textarea"), page.locator("#new-run-training-steps input")
    command = page.locator("#new-run-command textarea")
    search_settings(page)
    page.locator("#new-run-method-name input").click()
    page.get_by_role("option", name=re.compile("^opd .*on-policy with a teacher.*by reverse KL")).click()
    expect(page.locator("#new-run-method-support")).to_be_visible()
    expect(page.locator("#new-run-method-trim")).to_have_count(0)
    expect(command).to_have_value(re.compile(r"method\.name=opd"))

    data.fill("nofile.jsonl")
    expect(command).to_have_value(re.compile("nofile.jsonl"))
    page.locator("#new-run-check").click()
    expect(output).to_contain_text("nofile.jsonl")
    expect(report).not_to_contain_text("Checking")
    data.fill("scenes:train?count=12")
    expect(command).not_to_have_value(re.compile("nofile.jsonl"))
    expect(output).to_have_count(0)

    page.locator("#new-run-check").click()
    expect(report).to_contain_text("Checking")
    expect(report.locator(".app-good")).to_contain_text("checks passed", timeout=RUN_MS)
    expect(report.locator("table tbody tr").first).to_contain_text("evidence")
    expect(report.locator("table")).to_contain_text("regimes of this batch")
    expect(report.locator("td", has_text=re.compile("^ok$")).first).to_be_visible()
    steps.fill("7")
    expect(report).not_to_contain_text("checks passed")

    page.locator("#new-run-check").click()
    expect(report).to_contain_text("Checking")
    steps.fill("8")
    expect(report).to_contain_text("The form was edited during the check", timeout=RUN_MS)
    expect(command).to_have_value(re.compile("training.steps=8"))
    expect(report.locator("table")).to_have_count(0)


@pytest.fixture
def failed_run(server: Served) -> Iterator[str]:
    """A run whose process ended before it made the run's folder, since its data file does not exist."""
    folder = server.runs / ".jobs/fails"
    folder.mkdir(parents=True)
    plain = yaml.safe_load((server.folder / "configs/tiny.yaml").read_text())
    plain |= {"name": "fails", "data": {"train": "nofile.jsonl", "eval": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    (folder / "train.out").write_text("workbench.errors.DataError: nofile.jsonl does not exist.\n")
    command = ("python", "-m", "workbench", "train", str(folder / "config.yaml"))
    _write_record(server.runs / "fails", _Record(2**22 + 1, None, 1.0, command))  # no process has such a number
    yield "fails"
    shutil.rmtree(folder)


def test_run_failed_before_folder_can_be_corrected(server: Served, open_page: Callable, failed_run: str) -> None:
    page = open_page(f"run={failed_run}&tab=training")
    status = page.locator("#training-status")
    expect(status).to_contain_text("nofile.jsonl does not exist")
    expect(status).to_contain_text("This run cannot be resumed")
    words = status.locator(".app-command code").inner_text().split()
    assert words[:2] == ["workbench", "train"] and words[3:] == ["name=fails-again"]
    assert (server.folder / words[2]).read_text() == (server.runs / ".jobs/fails/config.yaml").read_text()
    expect(page.locator("#training-charts")).to_contain_text("before it recorded anything")
    click_tab(page, "data")
    expect(page.locator("#data-source input")).to_have_value(re.compile("nofile.jsonl"))
    expect(page.locator("#data-list")).to_contain_text("nofile.jsonl")
    click_tab(page, "new-run")
    page.locator("#new-run-recipe input").click()
    page.get_by_role("option", name=re.compile(r"run\s+fails")).click()
    expect(page.locator("#new-run-data-train textarea, #new-run-data-train input").first).to_have_value("nofile.jsonl")


def test_read_only_page_disables_launch_and_resume(visitor: BrowserContext, launch_folder: Path) -> None:
    add_begun(launch_folder / "runs")
    served = Served(launch_folder, read_only=True)
    try:
        with watched_pages(visitor, served.address) as open_query:
            page = open_query("run=begun&tab=new-run")
            expect(page.locator("#new-run-report")).to_contain_text("read-only")
            assert page.locator("#new-run-start").is_disabled() and page.locator("#new-run-check").is_disabled()
            click_tab(page, "training")
            expect(page.locator("#training-status .app-badge")).to_have_text("stopped")
            assert page.locator("#training-resume").is_disabled()
    finally:
        served.app.close()
