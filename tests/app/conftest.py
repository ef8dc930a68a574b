"""Runs of tiny models with random weights, on which the tabs are tested, and the page over them."""

import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_process import Server
from page_checks import SHOWS, Watched, free_port, watched_pages
from playwright.sync_api import BrowserContext, Page
from small import add_begun, run_config
from test_studies import write

from workbench.app.context import AppContext
from workbench.app.server import serve
from workbench.training.run import train

SAMPLES = Path(__file__).parents[2] / "data/samples/samples.jsonl"


@pytest.fixture(scope="session")
def runs(models: dict, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, dopd and opd, on the same examples, one on photos, and one that has only begun.

    Of the photos' tokens it is not known what the image shows, so any of them may be a case of illusion.
    """
    folder = tmp_path_factory.mktemp("shown") / "runs"
    shutil.copytree(trained, folder)
    photos = {"train": str(SAMPLES), "eval": None}
    train(run_config(models, folder, name="photos", data=photos, training__steps=2, trace__probes=0))
    add_begun(folder)
    return folder


@pytest.fixture
def context(runs: Path) -> AppContext:
    return AppContext(runs, runs.parent / "configs")


@pytest.fixture(scope="session")
def address(runs: Path, models: dict) -> Iterator[str]:
    """The page over the runs, a study beside them, and one recipe."""
    port = free_port()
    write(AppContext(runs, runs), compared=True)
    recipes = runs.parent / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / "tiny.yaml").write_text(run_config(models, "runs", name="tiny").to_yaml())
    app = serve(runs, configs=recipes, port=port)
    yield f"http://127.0.0.1:{port}"
    app.close()


@pytest.fixture(scope="session")
def kept() -> Iterator[list[Watched]]:
    """The page that tests leave to the next one, if any."""
    pages: list[Watched] = []
    yield pages
    for item in pages:
        item.close()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    """Note whether the test itself failed, for fixtures that end after it."""
    report = yield
    item.stash[FAILED] = report.failed
    return report


@pytest.fixture
def visit(
    request: pytest.FixtureRequest, visitor: BrowserContext, address: str, kept: list[Watched]
) -> Iterator[Callable[..., Page]]:
    """Open a tab of the app, in the page that the test before left, or, if `fresh`, in one that loads the address.

    No page may request another address or raise a script error. A test that fails leaves no page.
    """

    faults: list[str] = []

    def close_kept() -> None:
        while kept:
            faults.extend(kept[0].faults("$^"))
            kept.pop().close()

    def open_tab(query: str, tab: str, *, fresh: bool = False) -> Page:
        if fresh:
            close_kept()
        if kept:
            page = kept[0].show(f"{query}&tab={tab}")
        else:
            kept.append(Watched(visitor, address))
            page = kept[0].load(f"{query}&tab={tab}")
        page.locator(SHOWS[tab]).first.wait_for()
        return page

    yield open_tab
    faults += [fault for item in kept for fault in item.faults("$^")]
    if faults or request.node.stash.get(FAILED, False):
        close_kept()
    assert faults == []


@pytest.fixture(scope="module")
def launch_folder(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder of runs, and one recipe."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("configs", "runs"):
        (folder / name).mkdir()
    config = run_config(models, "runs", name="tiny", data__eval="scenes:eval?count=4")
    (folder / "configs" / "tiny.yaml").write_text(config.to_yaml())
    return folder


@pytest.fixture(scope="module")
def server(launch_folder: Path) -> Iterator[Server]:
    """The app as a process, without the type checks that tests have."""
    server = Server(launch_folder)
    server.start()
    yield server
    server.kill()
    for job in server.runs.glob("*/run.json"):
        state = server.state(job.parent.name)
        if state.is_alive:
            os.kill(state.pid, signal.SIGKILL)


@pytest.fixture
def open_page(visitor: BrowserContext, server: Server) -> Iterator[Callable[..., Page]]:
    """Open an address of the app; errors of requests to a killed server are expected."""
    with watched_pages(visitor, server.address, expected="(?i)fetch|network|connection|stream") as open_at:

        def open_query(query: str) -> Page:
            page = open_at(query)
            page.locator("#app-runs :is(li, p)").first.wait_for()
            return page

        yield open_query
