"""Shared by all tests: small real models on disk, made once."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import shapes
import torch
from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the suite may reach for a network
os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start too: as many tests run as there are cores
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that a test starts would compile the workbench anew
sys.dont_write_bytecode = False  # as would this one at its next start
os.environ.setdefault("WORKBENCH_CACHE", tempfile.mkdtemp(prefix="workbench-"))  # proofs of models, of this suite alone
torch.set_num_threads(1)
shapes.install()

TESTS = Path(__file__).parent
# Begun first, so that none of them runs alone at the end: the files that take longest, a browser beside none.
LONGEST = (
    "studies/test_study.py",
    "app/test_browser_runs.py",
    "training/test_train.py",
    "app/test_browser_access.py",
    "test_recipes.py",
    "app/test_browser_figures.py",
    "training/test_plan.py",
    "app/test_browser_new_run.py",
    "test_notebooks.py",
    "app/test_browser_answers.py",
    "test_real_model.py",
    "app/test_browser_navigation.py",
    "training/families/test_model_families.py",
    "app/test_browser_states.py",
    "test_cli.py",
    "render/test_render_browser.py",
    "test_campaigns.py",
    "app/test_browser_origins.py",
    "test_distributed.py",
    "runs/test_jobs.py",
    "test_real_vlm.py",
    "test_api_pages.py",
    "training/test_start.py",
    "app/test_score_tab.py",
    "training/test_devices.py",
    "traces/test_reader.py",
    "test_installed.py",
    "policies/test_served_apart.py",
    "policies/test_layer_by_layer.py",
    "distill/test_usable.py",
    "traces/test_checksums.py",
    "runs/test_run_queue.py",
    "training/test_check.py",
    "policies/test_autoregressive.py",
    "runs/test_damaged.py",
    "policies/test_served_sampler.py",
    "policies/test_served.py",
    "policies/test_speed.py",
    "training/test_pretrain.py",
)

# What `make test-fast` leaves out, beside tests with a browser and tests of models on disk: files that start programs,
# and files that take more than some five seconds of a processor.
SUBPROCESS = (
    "test_api_pages.py",
    "test_campaigns.py",
    "test_cli.py",
    "test_distributed.py",
    "test_installed.py",
    "runs/test_jobs.py",
    "test_notebooks.py",
    "test_public.py",
    "runs/test_run_queue.py",
    "runs/test_runs.py",
    "files/test_shipped.py",
    "studies/test_study.py",
    "analysis/test_summary.py",
    "runs/test_threads.py",
    "training/test_train.py",
    "test_your_models_your_data.py",
    "policies/test_worker.py",
    "training/test_devices.py",
    "traces/test_parts.py",
    "app/test_new_run.py",
    "app/test_limits.py",
    "app/test_remote_code.py",
    "app/test_shell.py",
)
SLOW = (
    "training/families/test_adapters.py",
    "training/families/test_model_families.py",
    "analysis/test_figures.py",
    "analysis/test_tables.py",
    "methods/test_d_opsd.py",
    "methods/test_peers.py",
    "policies/test_autoregressive.py",
    "policies/test_caches.py",
    "policies/test_diffusion.py",
    "policies/test_drawing.py",
    "policies/test_encoding.py",
    "policies/test_newer_families.py",
    "policies/test_proof.py",
    "policies/test_table.py",
    "policies/test_templates.py",
    "methods/test_adding_a_method.py",
    "data/test_bad_rows.py",
    "policies/test_dropout.py",
    "training/test_export.py",
    "policies/test_fetching.py",
    "data/test_grading_scripts.py",
    "test_opd_loop.py",
    "test_real_model.py",
    "test_real_vlm.py",
    "training/test_pretrain.py",
    "traces/test_checksums.py",
    "traces/test_reader.py",
)
FIXTURES = {"browser": ("browser", "chromium"), "slow": ("models", "trained")}  # mark -> what a test with it asks for

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the rest as they stand; marks by file and fixture."""
    position = {TESTS / file: order for order, file in enumerate(LONGEST)}
    items.sort(key=lambda item: position.get(item.path, len(position)))
    for item in items:
        file = item.path.relative_to(TESTS).as_posix()
        marks = {mark for mark, files in (("subprocess", SUBPROCESS), ("slow", SLOW)) if file in files}
        marks |= {mark for mark, names in FIXTURES.items() if set(names).intersection(item.fixturenames)}
        for mark in sorted(marks):
            item.add_marker(mark)
        if "browser" in marks:  # Chromium itself may miss a frame on a busy machine; the summary names what ran twice
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not go through all of it again and again."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores, at most four: what a test starts (a browser, an app, a study) works beside it."""
    return min(os.cpu_count() or 1, 4)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student and a teacher with random weights: tiny Idefics3 models, in folders as save_pretrained leaves them."""
    from families import save_idefics3  # noqa: PLC0415  (transformers is heavy; most tests do not need it)

    folder = tmp_path_factory.mktemp("models")
    return {"student": save_idefics3(folder / "student", 0), "teacher": save_idefics3(folder / "teacher", 1)}


@pytest.fixture(scope="session")
def trained(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, dopd and opd, on the same examples. To be copied, not changed."""
    from small import run_config  # noqa: PLC0415

    from workbench.training.run import train  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("trained")
    values = {"sampling__max_completion_length": 8, "evaluation__every": 2, "trace__probes": 3}
    train(run_config(models, folder, name="dopd", **values))
    train(run_config(models, folder, name="opd", method={"name": "opd"}, **values))
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    result = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if result is None:
        pytest.fail("These tests need Chromium: apt-get install chromium, or set CHROMIUM to the path of a browser.")
    return result


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """The driver of browsers. While it runs, this thread has a running event loop."""
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright: Playwright, chromium: str) -> Iterator[Browser]:
    """A real Chromium, for pages and fragments."""
    started = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
    yield started
    started.close()


@pytest.fixture(scope="session")
def visitor(
    playwright: Playwright, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    """One visitor for all tests: its browser has a folder, in which it keeps the page's scripts as it compiled them."""
    context = playwright.chromium.launch_persistent_context(
        tmp_path_factory.mktemp("visitor"),
        executable_path=chromium,
        args=ARGUMENTS,
        viewport={"width": 1280, "height": 1000},
        reduced_motion="reduce",
    )
    yield context
    context.close()
