"""The page around the tabs: what an address opens, what leaves the runs folder, who may look, and where it listens."""

import re
import socket
from collections import Counter
from pathlib import Path

import gradio as gr
import httpx
import pytest
from failures import raises
from page_checks import free_port

from workbench.app.components import TRACES
from workbench.app.context import ADDRESS_KEYS, AppContext, run_names
from workbench.app.layout import (
    TABS,
    alert_html,
    build_app,
    early_head,
    first_paint,
    open_address,
    page_style,
    refresh_runs,
)
from workbench.app.server import check_host, read_users, serve
from workbench.cli import main
from workbench.errors import ConfigError, RunError
from workbench.files.hosts import check_port, is_local, listen


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    for name, started in (("old", "2026-01-01T00:00:00+0000"), ("new", "2026-02-01T00:00:00+0000")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("method: {name: dopd}\n")
        (folder / "run.json").write_text(f'{{"status": "finished", "method": "dopd", "started": "{started}"}}')
    return AppContext(tmp_path / "runs", tmp_path)


def opened(context: AppContext, search: str) -> tuple[str | None, str, dict]:
    run, tab, address, _ = open_address(context, search, "light")
    return run, tab, address


def test_open_address_full_opens_run_tab_and_parameters(context: AppContext) -> None:
    rest = "&".join(f"{key}={idx}" for idx, key in enumerate(ADDRESS_KEYS))
    run, tab, address = opened(context, f"?run=old&tab=training&{rest}&__theme=dark&foreign=1")
    assert (run, tab) == ("old", "training")
    assert address == {key: str(idx) for idx, key in enumerate(ADDRESS_KEYS)}


def test_open_address_empty_opens_newest_run_or_launch(context: AppContext, tmp_path: Path) -> None:
    assert opened(context, "") == ("new", "training", {})
    assert opened(AppContext(tmp_path / "none", tmp_path), "?tab=nonsense") == (None, "runs", {})


def test_open_address_missing_run_warns_and_opens_newest(context: AppContext) -> None:
    with pytest.warns(UserWarning, match="Run &quot;&lt;b&gt;&quot; does not exist"):
        assert opened(context, "?run=%3Cb%3E&tab=training")[0] == "new"
    with pytest.warns(UserWarning, match="does not exist"):
        assert opened(context, "?run=../../etc")[0] == "new"


def test_first_paint_loading_page_shows_run_state(context: AppContext, tmp_path: Path) -> None:
    assert "<h2>new</h2>" in first_paint(context, "") and "<h2>old</h2>" in first_paint(
        context, "?run=old&tab=training"
    )
    assert "<h2>new</h2>" in first_paint(context, "?run=%3Cb%3E"), "as the page, when the address names no run"
    assert (
        first_paint(context, "?run=old&tab=answers") == "" == first_paint(AppContext(tmp_path / "none", tmp_path), "")
    )


def test_open_address_long_value_is_cut(context: AppContext) -> None:
    assert len(opened(context, "?example=" + "x" * 10_000)[2]["example"]) == 200


@pytest.mark.parametrize("name", ["../runs", "/etc", "..", ".jobs", "a/b", "", "missing"])
def test_run_dir_outside_folder_raises(context: AppContext, name: str) -> None:
    with pytest.raises(RunError):
        context.run_dir(name)


def test_open_address_run_of_study_opens(context: AppContext) -> None:
    (context.runs_dir / "study").mkdir()
    (context.runs_dir / "old").rename(context.runs_dir / "study" / "dopd-s0")
    assert opened(context, "?run=study%2Fdopd-s0&tab=training")[0] == "study/dopd-s0"
    assert context.run_dir("study/dopd-s0") == context.runs_dir / "study" / "dopd-s0"


def test_run_dir_symlink_out_of_folder_raises(context: AppContext, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (context.runs_dir / "link").symlink_to(tmp_path / "secret")
    with raises(RunError, "leads out"):
        context.run_dir("link")
    assert run_names(context) == ["new", "old"]


def test_refresh_runs_existing_choice_is_kept(context: AppContext) -> None:
    assert refresh_runs(context, "old") == "old" and refresh_runs(context, None) == "new"
    with pytest.warns(UserWarning, match="was deleted or renamed"):
        assert refresh_runs(context, "gone") == "new"


def test_alert_html_failed_run_names_error_on_drawing_tabs(context: AppContext) -> None:
    (context.runs_dir / "old" / "run.json").write_text('{"status": "failed", "steps": 9, "error": "no <model> there"}')
    assert "old failed before its first step: no &lt;model&gt; there" in alert_html(context, "old", "answers")
    assert not alert_html(context, "old", "training") and not alert_html(context, "new", "answers")


def test_build_app_places_and_views_are_in_order(context: AppContext) -> None:
    app = build_app(context)
    tabs = [
        block.elem_id.removeprefix("tab-") for block in app.blocks.values() if str(block.elem_id).startswith("tab-")
    ]
    places = [block.label for block in app.blocks.values() if str(block.elem_id).startswith("place-")]
    assert tabs == TABS and places == ["Runs", "Training", "Answers", "Leakage", "Data"]


def test_events_have_at_most_one_deferred_function(context: AppContext) -> None:
    """Two would repeat each other for ever (Gradio 6.31: after a deferred call the event is dispatched again)."""
    deferred = Counter(
        target
        for event in build_app(context).fns.values()
        if event.fn is not None and event.trigger_mode == "always_last"
        for target in event.targets
        if target[0] is not None
    )
    assert len(deferred) > 20 and max(deferred.values()) == 1


def test_callbacks_on_error_answer_for_every_output(context: AppContext) -> None:
    """A callback that fails must answer for as many components as its event changes."""
    wrong, result = [], 0
    for event in build_app(context).fns.values():
        told_of = getattr(event.fn, "outputs", None)
        if told_of is not None:
            result += 1
            wrong += [] if told_of == len(event.outputs) else [(event.name, told_of, len(event.outputs))]
    assert not wrong and result > 20


def shown_instead(context: AppContext, run: str) -> dict[str, str]:
    """By tab: all texts that it has after the page turned to a run."""
    app, result = build_app(context), {}
    for event in app.fns.values():
        woken = [app.blocks[block].elem_id or "" for block, _ in event.targets if block in app.blocks]
        for name in (each.removeprefix("app-trigger-") for each in woken if each.startswith("app-trigger-")):
            if event.fn is not None:
                values = [run if entry.elem_id == "app-run" else entry.value for entry in event.inputs]
                drawn = event.fn(*values)
                drawn = drawn if isinstance(drawn, tuple) else (drawn,)
                texts = [value for value, item in zip(drawn, event.outputs, strict=True) if isinstance(item, gr.HTML)]
                result[name] = "".join(text for text in texts if isinstance(text, str))
    return result


def test_tabs_deleted_or_old_schema_run_show_error(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = AppContext(runs, runs)
    gone = shown_instead(context, "gone")
    for tab in ("training", "answers", "movement", "compare", "leakage", "data"):
        assert "does not exist" in gone[tab] and 'role="alert"' in gone[tab], tab
    TRACES.close()
    monkeypatch.setattr("workbench.traces.schema.READABLE", (98, 99))
    older = shown_instead(context, "dopd")
    for tab in ("answers", "movement", "leakage"):
        assert "has trace version" in older[tab] and "wb-t " not in older[tab], tab


def test_upload_read_only_page_is_refused(runs: Path) -> None:
    port = free_port()
    app = serve(runs, configs=runs, port=port, read_only=True)
    try:
        sent = httpx.post(
            f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": ("own.png", b"x" * 40)}, timeout=60
        )
        assert sent.status_code >= 400, sent.text
    finally:
        app.close()


def test_password_page_requires_login_and_serves_no_file(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann:right\n")
    port = free_port()
    app = serve(runs, configs=runs, port=port, auth=tmp_path / "users")
    visitor = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    try:
        assert visitor.get("/config").status_code == 401
        first = {"url": "/gradio_api/run/first_paint", "json": {"data": ["?tab=training"]}}
        assert visitor.post(**first).status_code == 401
        page = visitor.get("/").text
        assert (
            "photos" not in page and page.count(early_head()) == 1 and page.index(early_head()) < page.index("</head>")
        )
        assert visitor.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
        assert visitor.get("/config").status_code == 401
        assert visitor.post("/login", data={"username": "ann", "password": "right"}).status_code == 200
        assert visitor.get("/config").status_code == 200
        assert visitor.get("/?run=dopd&page=2&list_page=1").status_code == 200  # Gradio's own "page" is not an error
        assert "<h2>" in visitor.post(**first).json()["data"][0]
        for file in ("/etc/passwd", tmp_path / "users", runs / "dopd" / "config.yaml", "../../etc/passwd"):
            assert visitor.get(f"/gradio_api/file={file}").status_code in (403, 404), file
    finally:
        visitor.close()
        app.close()


def test_page_style_has_no_remote_address() -> None:
    dressed = page_style()
    theme = dressed["theme"]
    head = early_head().replace("http://www.w3.org/2000/svg", "")  # a namespace, which nothing loads
    assert "http" not in dressed["css"] and "https:" not in dressed["head"] and "http" not in head
    assert not theme._stylesheets and "googleapis" not in theme._get_theme_css()


def test_check_host_remote_without_password_raises() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with raises(ConfigError, "--auth", "FILE", "--read-only"):
            check_host(host, has_password=False, read_only=False)
        check_host(host, has_password=True, read_only=False)
        check_host(host, has_password=False, read_only=True)
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost") and not is_local("0.0.0.0")


def test_read_users_invalid_file_raises_without_secret(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("# who\nann:one:two\n\nbob:x\n")
    assert read_users(file) == [("ann", "one:two"), ("bob", "x")]
    file.write_text("ann:one\nsecret\n")
    with raises(ConfigError, "users:2", "user:password") as raised:
        read_users(file)
    assert "secret" not in str(raised.value)
    file.write_text("\n")
    with raises(ConfigError, "users"):
        read_users(file)
    with raises(ConfigError, "cannot be read"):
        read_users(tmp_path / "missing")


def test_app_command_port_in_use_names_port(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port), "--runs", str(tmp_path / "runs")]) == 2
    output = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 cannot be used" in output and "--port" in output and "Traceback" not in output


def test_proposed_port_is_free() -> None:
    def proposed(port: int) -> int:
        with raises(RunError, f"port {port} on 127.0.0.1") as caught:
            check_port("127.0.0.1", port)
        return int(re.findall(r"--port (\d+)", str(caught.value))[-1])

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with listen("127.0.0.1", proposed(port)) as second:
            third = proposed(port)
            assert third not in (port, second.getsockname()[1])
            check_port("127.0.0.1", third)


def test_check_port_invalid_host_or_port_raises() -> None:
    with raises(ConfigError, "from 1", "65535"):
        check_port("127.0.0.1", 0)
    with raises(ConfigError, "--host"):
        check_port("no host at all", 7860)
