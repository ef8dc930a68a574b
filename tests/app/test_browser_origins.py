"""Other pages in the same browser, in a real one: from another port, under another name, and in a frame.

The page has a password and the visitor is logged in, which helps an attacker and not the visitor.
"""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_checks import PATIENCE_MS, free_port
from playwright.sync_api import Browser, BrowserContext, Page, expect

from workbench.app.server import serve

ASK = """async ([address, path, method, mode]) => {
    const event = path.includes("join") ? {fn_index: 1} : {}
    const json = {data: ["?tab=training"], session_hash: "other", ...event}, form = new FormData()
    form.append("files", new Blob(["x".repeat(4000)]), "theirs.png")
    const body = method === "GET" ? undefined : path.includes("upload") ? form : JSON.stringify(json)
    const headers = path.includes("upload") || mode === "no-cors" ? {} : {"content-type": "application/json"}
    try {
        const answer = await fetch(address + path, {method, mode, body, headers, credentials: "include"})
        return [answer.status, await answer.text()]
    } catch (error) { return [-1, String(error)] }
}"""
READS, WRITES = (
    ("/config", "/gradio_api/info", "/gradio_api/openapi.json"),
    ("/gradio_api/run/first_paint", "/gradio_api/queue/join", "/gradio_api/upload"),
)


@pytest.fixture(scope="module")
def app(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text("ann:right\n")
    served = serve(runs, configs=runs, port=free_port(), auth=users)
    yield served
    served.close()


@pytest.fixture(scope="module")
def port(app: object) -> int:
    return app.server_port


@pytest.fixture(scope="module")
def foreign(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of somebody else on this machine, that also frames ours."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "index.html").write_text(
        f'<h1>theirs</h1><iframe src="http://127.0.0.1:{port}/" width=900 height=600></iframe>'
    )
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def visitor(browser: Browser, port: int) -> Iterator[BrowserContext]:
    context = browser.new_context()
    page = log_in(context, f"http://127.0.0.1:{port}")
    expect(page.locator("#app-title h1")).to_have_text("Distillation workbench", timeout=PATIENCE_MS)
    yield context
    context.close()


def log_in(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    done = page.evaluate(
        """async () => {
            const body = new URLSearchParams({username: 'ann', password: 'right'});
            return (await fetch('login', {method: 'POST', body})).status; }"""
    )
    assert done == 200
    page.goto(address)
    return page


def uploads(app: object) -> int:
    return sum(path.is_file() for path in Path(app.app.uploaded_file_dir).rglob("theirs.png"))


def test_requests_own_page_reads_and_writes(visitor: BrowserContext, app: object, port: int) -> None:
    page = visitor.pages[0]
    for path in READS:
        assert page.evaluate(ASK, ["", path, "GET", "cors"])[0] == 200, path
    assert page.evaluate(ASK, ["", "/gradio_api/run/first_paint", "POST", "cors"])[0] == 200
    assert page.evaluate(ASK, ["", "/gradio_api/upload", "POST", "cors"])[0] == 200 and uploads(app) == 1


def test_requests_page_on_other_port_are_refused(visitor: BrowserContext, app: object, port: int, foreign: str) -> None:
    page, before = visitor.new_page(), uploads(app)
    page.goto(foreign)
    for method, paths in (("GET", READS), ("POST", WRITES)):
        for path in paths:
            for mode in ("cors", "no-cors"):
                for name in ("127.0.0.1", "localhost"):
                    status, text = page.evaluate(ASK, [f"http://{name}:{port}", path, method, mode])
                    assert status in (-1, 0, 403), (path, mode, status)
                    assert status != 403 or "Expected the page itself" in text
    assert uploads(app) == before
    page.close()


def test_frame_foreign_page_is_empty_and_link_opens(visitor: BrowserContext, port: int, foreign: str) -> None:
    page = visitor.new_page()
    page.goto(foreign)
    page.wait_for_timeout(1500)
    assert page.frame_locator("iframe").locator("#app-title").count() == 0
    page.evaluate(f"() => {{ location.href = 'http://127.0.0.1:{port}/?tab=new-run' }}")
    expect(page.locator("#app-title h1")).to_have_text("Distillation workbench", timeout=PATIENCE_MS)
    page.close()


def test_requests_rebound_name_get_403_and_remedy(browser: Browser, chromium: str, port: int) -> None:
    rule = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    rebound = browser.browser_type.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", rule])
    try:
        page = rebound.new_page()
        answer = page.goto(f"http://evil.example:{port}/")
        assert answer.status == 403 and "--allow-host" in page.locator("body").inner_text()
        for requested in (*READS, *WRITES):
            method = "POST" if requested in WRITES else "GET"
            assert page.evaluate(ASK, ["", requested, method, "cors"])[0] == 403, requested
    finally:
        rebound.close()


def test_frame_allowed_site_shows_page(browser: Browser, runs: Path, foreign: str, tmp_path: Path) -> None:
    origin = foreign.rstrip("/")
    served = serve(runs, configs=runs, port=free_port(), read_only=True, allow_frames=[origin])
    page = browser.new_page()
    try:
        page.goto(foreign)
        page.evaluate(f"() => {{ document.querySelector('iframe').src = 'http://127.0.0.1:{served.server_port}/' }}")
        title = page.frame_locator("iframe").locator("#app-title h1")
        expect(title).to_have_text("Distillation workbench", timeout=PATIENCE_MS)
        answer = page.request.get(f"http://127.0.0.1:{served.server_port}/")
        assert answer.headers["content-security-policy"] == f"frame-ancestors 'self' {origin}"
        assert "x-frame-options" not in answer.headers and answer.headers["x-content-type-options"] == "nosniff"
    finally:
        page.close()
        served.close()
