"""Runs of tiny models with random weights, on which the tabs are tested, and the page over them."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_checks import SHOWS
from playwright.sync_api import Browser, BrowserContext, Page, expect
from small import add_begun, run_config
from test_studies import write

from workbench.app.context import AppContext
from workbench.app.server import serve
from workbench.training.run import train

SAMPLES = Path(__file__).parents[2] / "data/samples/samples.jsonl"
PATIENCE_MS = 60_000  # a busy machine is slow, and a wrong page stays wrong


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
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
    shutil.rmtree(runs / "small")


@pytest.fixture(scope="module")
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """One visitor for all tests: its browser keeps the page's scripts."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@pytest.fixture
def visit(visitor: BrowserContext, address: str) -> Iterator[Callable[[str, str], Page]]:
    """Opens an address of the app; at the end the page must have asked nobody else and said no script error."""
    pages, foreign, faults = [], [], []
    expect.set_options(timeout=PATIENCE_MS)

    def opened(query: str, tab: str) -> Page:
        page = visitor.new_page()
        pages.append(page)
        page.set_default_timeout(PATIENCE_MS)
        page.on(
            "request",
            lambda request: (
                foreign.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None
            ),
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{address}/?{query}&tab={tab}")
        page.locator(SHOWS[tab]).first.wait_for()
        return page

    yield opened
    for page in pages:
        page.close()
    assert foreign == [] and faults == []
