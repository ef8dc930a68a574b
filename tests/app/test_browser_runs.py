"""The app as a person uses it, in a real browser: runs are launched, watched, stopped, resumed and found again.

Screenshots go to the folder $WORKBENCH_SCREENSHOTS if it is set.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from page_checks import FITS, nameless
from playwright.sync_api import Browser, BrowserContext, Page, expect
from small import run_config

from workbench.runs.jobs import JobState, _Record, _write_record, read_job

SAMPLES = Path(__file__).parents[2] / "data/samples/samples.jsonl"
SLOW_MS = 120_000  # a busy machine loads models in the background


class Server:
    """`workbench app` as a process, on a port of its own that it keeps when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def start(self, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "workbench",
            "app",
            "--runs",
            "runs",
            "--configs",
            "configs",
            "--port",
            str(self.port),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        with (self.folder / "app.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "app.log").read_text()

    def address(self, query: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{query}"

    def state(self, name: str) -> JobState:
        return read_job(self.runs / name)


def wait_for(is_so: Callable[[], bool], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "configs").mkdir()
    config = run_config(models, "runs", name="tiny", data__eval="scenes:eval?count=4")
    (folder / "configs" / "tiny.yaml").write_text(config.to_yaml())
    server = Server(folder)
    server.start()
    yield server
    server.kill()
    for job in server.runs.glob("*/run.json"):
        state = server.state(job.parent.name)
        if state.is_alive:
            os.kill(state.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """One visitor for all tests: its browser keeps the page's scripts."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@pytest.fixture
def open_page(visitor: BrowserContext, server: Server) -> Iterator[Callable[..., Page]]:
    pages, complaints, foreign = [], [], []

    def open_at(query: str = "") -> Page:
        page = visitor.new_page()
        pages.append(page)
        page.set_default_timeout(SLOW_MS)
        expect.set_options(timeout=SLOW_MS)
        page.on("pageerror", lambda error: None if is_cut_off(str(error)) else complaints.append(str(error)))
        page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url, server) else None)
        page.goto(server.address(query))
        page.locator("#app-run").wait_for()
        return page

    yield open_at
    for page in pages:
        page.close()
    assert not complaints, complaints
    assert not foreign, foreign


def is_cut_off(complaint: str) -> bool:
    """Of a page whose server was killed, as some tests do."""
    return re.search(r"fetch|network|connection|stream", complaint, re.IGNORECASE) is not None


def is_foreign(url: str, server: Server) -> bool:
    return not url.startswith((server.address(), "data:", "blob:"))


def launch(page: Page, name: str, *, steps: int, more: str = "") -> None:
    """Fills the form by mouse and keyboard and starts the run."""
    page.locator("#launch-name input, #launch-name textarea").fill(name)
    page.locator("#launch-training-steps input").fill(str(steps))
    if more:
        page.get_by_role("button", name="More overrides").click()
        page.locator("#launch-more textarea").fill(more)
    expect(page.locator("#launch-command textarea")).to_have_value(re.compile(f"name={name}.*training.steps={steps}"))
    page.locator("#launch-start").click()
    expect(page.locator("#monitor-status h2")).to_have_text(name)


def badge(page: Page, state: str) -> None:
    expect(page.locator("#monitor-status .app-badge")).to_have_text(state)


def test_launch_valid_form_run_finishes(server: Server, open_page: Callable) -> None:
    page = open_page("?tab=launch")
    launch(page, "first", steps=3)
    assert "run=first" in page.url and "tab=monitor" in page.url
    assert page.locator("#app-first").count() == 0, "what was shown while the page was loading"
    badge(page, "finished")
    assert server.state("first").status == "finished"
    expect(page.locator("#monitor-status")).to_contain_text("3 of 3")
    expect(page.locator("#monitor-status [role=progressbar]")).to_have_attribute("aria-valuenow", "100")
    expect(page.locator(".app-plots .js-plotly-plot .scatterlayer .trace").first).to_be_attached()
    expect(page.locator("#app-run input")).to_have_value("first  ·  finished")
    assert page.locator("#monitor-stop").is_disabled() and page.locator("#monitor-resume").is_disabled()
    page.get_by_role("button", name="Log").click()
    expect(page.locator("#monitor-log textarea")).to_have_value(re.compile("accuracy"))
    expect(page.locator("#monitor-answers tbody tr").first).to_be_attached()


def test_launch_to_illusion_case_by_mouse_opens_token(server: Server, open_page: Callable) -> None:
    page = open_page("?tab=launch")
    # of photos' tokens it is not known what the picture shows, so that a model of random weights has cases too
    launch(page, "walk", steps=2, more=f"data.train={SAMPLES}\ndata.eval=null\ntrace.probes=2\ntrace.probe_every=1")
    badge(page, "finished")

    page.get_by_role("tab", name="Tokens", exact=True).click()
    token = page.locator("#tokens-answer .wb-t").nth(1)
    token.hover()
    expect(page.locator(".wb-card:popover-open [data-logprob]").first).to_be_visible()
    token.click()
    expect(page.locator("#tokens-answer .wb-detail")).to_contain_text("token 2 of")
    expect(page.locator("#tokens-answer .wb-detail .wb-fall svg")).to_be_visible()

    page.get_by_role("tab", name="Movement", exact=True).click()
    expect(page.locator("#movement-flow .js-plotly-plot .sankey-node").first).to_be_attached()

    page.get_by_role("tab", name="Illusion", exact=True).click()
    worst = page.locator("#illusion-worst tr[data-key]").first
    position = json.loads(worst.get_attribute("data-key"))["position"]
    worst.click()
    expect(page.locator("#tokens-answer .wb-detail")).to_contain_text(f"token {position + 1} of")
    expect(page).to_have_url(re.compile(f"run=walk.*tab=tokens.*token={position}"))


def test_launch_form_mistakes_show_errors_and_start_nothing(server: Server, open_page: Callable) -> None:
    page = open_page("?tab=launch")
    page.locator("#launch-training-steps input").fill("0")
    expect(page.locator("#launch-message [role=alert]")).to_contain_text("training.steps must be at least 1, got 0")
    for name in ("../o", "../out") * 4:  # two fields within one round trip: the page gets one request for both
        page.locator("#launch-training-steps input").fill("0")
        page.locator("#launch-training-steps input").fill("2")
        page.locator("#launch-name input, #launch-name textarea").fill(name)
        expect(page.locator("#launch-message [role=alert]")).to_contain_text(f'"{name}" must be a plain folder name')
    page.locator("#launch-name input, #launch-name textarea").press("Backspace")  # deleting and pasting are edits too
    expect(page.locator("#launch-message [role=alert]")).to_contain_text('"../ou" must be a plain folder name')
    page.locator("#launch-name input, #launch-name textarea").evaluate(
        "one => { one.focus(); one.select(); document.execCommand('insertText', false, '../pasted'); }"
    )
    expect(page.locator("#launch-message [role=alert]")).to_contain_text('"../pasted" must be a plain folder name')
    expect(page.locator("#launch-command textarea")).to_have_value("")
    page.locator("#launch-name input, #launch-name textarea").fill("missing")
    page.locator("#launch-models-student textarea").fill("no/such/model")
    expect(page.locator("#launch-command textarea")).to_have_value(re.compile("models.student=no/such/model"))
    page.locator("#launch-start").click()
    expect(page.locator("#launch-said [role=alert]")).to_contain_text('"no/such/model" is not a model folder')
    page.wait_for_timeout(600)  # the command is written anew, and the sentence stays
    expect(page.locator("#launch-said [role=alert]")).to_be_visible()
    assert not (server.runs / "missing").exists()
    assert "Traceback" not in page.content()


def test_launch_form_other_method_shows_options_and_check(open_page: Callable) -> None:
    page = open_page("?tab=launch")
    expect(page.locator("#launch-method-trim input")).to_be_visible()
    page.locator("#launch-method-name input").click()
    page.get_by_role("option", name="opd", exact=True).click()
    expect(page.locator("#launch-method-support")).to_be_visible()
    expect(page.locator("#launch-method-trim")).to_have_count(0)
    expect(page.locator("#launch-command textarea")).to_have_value(re.compile(r"method\.name=opd"))
    page.locator("#launch-check").click()
    expect(page.locator("#launch-report table tbody tr").first).to_contain_text("evidence")
    expect(page.locator("#launch-report .app-good")).to_contain_text("checks passed")


def test_check_edited_form_clears_report(open_page: Callable) -> None:
    page = open_page("?tab=launch")
    report, output = page.locator("#launch-report"), page.locator("#launch-said [role=alert]")
    data, steps = page.locator("#launch-data-train textarea"), page.locator("#launch-training-steps input")
    command = page.locator("#launch-command textarea")
    data.fill("nofile.jsonl")
    expect(command).to_have_value(re.compile("nofile.jsonl"))
    page.locator("#launch-check").click()
    expect(output).to_contain_text("nofile.jsonl")
    expect(report).not_to_contain_text("Checking")
    data.fill("scenes:train?count=12")
    expect(command).not_to_have_value(re.compile("nofile.jsonl"))
    expect(output).to_have_count(0)
    page.locator("#launch-check").click()
    expect(report).to_contain_text("Checking")
    expect(report).to_contain_text("checks passed")
    steps.fill("7")
    expect(report).not_to_contain_text("checks passed")
    page.locator("#launch-check").click()
    expect(report).to_contain_text("Checking")
    steps.fill("8")
    expect(command).to_have_value(re.compile("training.steps=8"))
    expect(report).to_contain_text("The form was edited during the check")
    expect(report.locator("table")).to_have_count(0)


def test_run_failed_before_folder_can_be_corrected(server: Server, open_page: Callable) -> None:
    folder = server.runs / ".jobs/fails"
    folder.mkdir(parents=True)
    plain = yaml.safe_load((server.folder / "configs/tiny.yaml").read_text())
    plain |= {"name": "fails", "data": {"train": "nofile.jsonl", "eval": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    (folder / "train.out").write_text("workbench.errors.DataError: nofile.jsonl does not exist.\n")
    command = ("python", "-m", "workbench", "train", str(folder / "config.yaml"))
    _write_record(server.runs / "fails", _Record(2**22 + 1, None, 1.0, command))  # no process has such a number
    page = open_page("?run=fails&tab=monitor")
    status = page.locator("#monitor-status")
    expect(status).to_contain_text("nofile.jsonl does not exist")
    expect(status).to_contain_text("This run cannot be resumed")
    words = status.locator(".app-command code").inner_text().split()
    assert words[:2] == ["workbench", "train"] and words[3:] == ["name=fails-again"]
    assert (server.folder / words[2]).read_text() == (folder / "config.yaml").read_text()
    for figure in page.locator(".app-plots .js-plotly-plot").all():
        expect(figure).to_contain_text("before it recorded anything")
    page.get_by_role("tab", name="Data", exact=True).click()
    expect(page.locator("#data-source input")).to_have_value(re.compile("nofile.jsonl"))
    expect(page.locator("#data-list")).to_contain_text("nofile.jsonl")
    page.get_by_role("tab", name="Launch", exact=True).click()
    page.locator("#launch-recipe input").click()
    page.get_by_role("option", name=re.compile(r"run\s+fails")).click()
    expect(page.locator("#launch-data-train textarea, #launch-data-train input").first).to_have_value("nofile.jsonl")


def test_run_server_killed_continues_stops_and_resumes(server: Server, open_page: Callable) -> None:
    page = open_page("?tab=launch")
    launch(page, "long", steps=5000, more="data.eval=null\ntrace.probes=0")
    badge(page, "running")
    wait_for(lambda: server.state("long").step >= 2)
    beside = open_page("?tab=launch")
    launch(beside, "beside", steps=1, more="data.eval=null\ntrace.probes=0")
    badge(beside, "finished")
    assert server.state("long").status == "running", "two runs at once"
    page.reload()
    expect(page.locator("#monitor-status h2")).to_have_text("long")
    badge(page, "running")

    server.kill()
    before = server.state("long").step
    wait_for(lambda: server.state("long").step > before)
    server.start()
    page.locator("#app-refresh").click()  # the page that was open goes on
    badge(page, "running")
    expect(page.locator("#monitor-stop")).to_be_enabled()
    page.locator("#monitor-stop").click()
    badge(page, "stopped")
    state = server.state("long")
    assert state.status == "stopped" and (state.run_dir / f"checkpoint-{state.step:06d}").is_dir()

    page.locator("#monitor-resume").click()
    badge(page, "running")
    wait_for(lambda: server.state("long").step > state.step)
    page.locator("#monitor-stop").click()
    badge(page, "stopped")


def test_link_to_run_opens_it_and_stale_link_shows_error(open_page: Callable) -> None:
    page = open_page("?run=first&tab=monitor&step=2&rollout=1")
    expect(page.locator("#monitor-status h2")).to_have_text("first")
    page.wait_for_url(re.compile("step=2&rollout=1"))
    gone = open_page("?run=gone&tab=monitor")
    expect(gone.get_by_text('Run "gone" does not exist')).to_be_visible()


def test_theme_toggled_survives_reload(open_page: Callable) -> None:
    page = open_page("?run=first&tab=monitor")
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.locator("#app-theme").click()
    assert page.evaluate("document.body.classList.contains('dark')")
    page.reload()
    expect(page.locator("#monitor-status h2")).to_have_text("first")
    assert page.evaluate("document.body.classList.contains('dark')")
    page.locator("#app-theme").click()  # the next visitor is the same


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_launch_and_monitor_any_width_fit_window(open_page: Callable, tmp_path: Path, scheme: str) -> None:
    folder = Path(os.environ.get("WORKBENCH_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page = open_page(f"?run=first&tab=launch&__theme={scheme}")
    for tab, drawn in (("launch", "#launch-start"), ("monitor", ".app-plots .js-plotly-plot .scatterlayer")):
        page.get_by_role("tab", name=tab.capitalize(), exact=True).click()
        page.locator(drawn).first.wait_for()
        assert nameless(page, f"#tab-{tab}") == [] == nameless(page, "#app-header"), tab
        for width in (1920, 1280):
            page.set_viewport_size({"width": width, "height": 1000})
            page.wait_for_function(FITS, arg=f"#tab-{tab}")
            page.screenshot(path=folder / f"{tab}-{width}-{scheme}.png", full_page=True, animations="disabled")


def test_start_button_form_scrolled_stays_in_viewport(open_page: Callable) -> None:
    page = open_page("?tab=launch")
    page.locator("#launch-training-steps").scroll_into_view_if_needed()
    page.mouse.wheel(0, 3000)
    expect(page.locator("#launch-start")).to_be_in_viewport()


def test_read_only_page_disables_launch_and_resume(server: Server, open_page: Callable) -> None:
    server.kill()
    server.start("--read-only")
    page = open_page("?tab=launch")
    expect(page.locator("#launch-report")).to_contain_text("read-only")
    assert page.locator("#launch-start").is_disabled() and page.locator("#launch-check").is_disabled()
    page = open_page("?run=long&tab=monitor")
    badge(page, "stopped")
    assert page.locator("#monitor-resume").is_disabled()
