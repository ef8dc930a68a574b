"""How much a visitor may ask of the page, over HTTP: sizes, kinds of values, uploads, passwords."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import pytest
from page_checks import free_port

from workbench.app import limits
from workbench.app.context import AppContext
from workbench.app.layout import build_app
from workbench.app.limits import MAX_BODY, MAX_UPLOAD, LoginDelay
from workbench.app.requests import takes_click
from workbench.app.server import serve

ODD = (5, 1.5, True, [], ["a"], [1], {}, {"a": 1}, {"a": [1]}, [[1]], None, "x", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a number."""
    folder = tmp_path_factory.mktemp("limits")
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "config.yaml").write_text("method: {name: opd}\n")
    (folder / "runs" / "a" / "run.json").write_text('{"status": "finished", "method": "opd"}')
    return folder


@pytest.fixture(scope="module")
def app(folder: Path) -> gr.Blocks:
    """The page, to know its events."""
    return build_app(AppContext(folder / "runs", folder))


@pytest.fixture(scope="module")
def visitor(folder: Path) -> Iterator[httpx.Client]:
    """Of the page as a process, without the checks of types that tests have."""
    port = free_port()
    command = [sys.executable, "-m", "workbench", "app", "--runs", "runs", "--configs", ".", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "GRADIO_TEMP_DIR": str(folder / "sent")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout.readline().startswith(b"http://")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def is_sentence(text: str) -> bool:
    return isinstance(text, str) and len(text) > 20 and text.endswith(".") and "Traceback" not in text


def outcome(visitor: httpx.Client, event: object, body: dict) -> str | None:
    """What an event answers that fails: a sentence, or "500"; None if it does not fail."""
    if not event.queue:
        answer = visitor.post("/gradio_api/run/predict", json=body)
        return None if answer.status_code == 200 else answer.json()["error"] if answer.status_code == 422 else "500"
    joined = visitor.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.json()["detail"] if joined.status_code == 422 else "500"
    with visitor.stream("GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}") as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return None if message["success"] else str(message["output"].get("error"))
    return "500"


def test_events_odd_values_answer_or_name_error(app: object, visitor: httpx.Client) -> None:
    """The press of a button with everything odd, for every event that the page has."""
    wrong, refused = [], 0
    for event in app.fns.values():
        for value in ODD if event.fn is not None else ODD[:1]:
            body = {"data": [value] * len(event.inputs), "fn_index": event._id, "session_hash": "s"}
            text = outcome(visitor, event, body)
            refused += text is not None
            if text is not None and not is_sentence(text) and "not in the list of choices" not in text:
                wrong.append((event.name, value, text))
    assert not wrong and refused > 100


@pytest.mark.parametrize(
    "click", [None, 5, "x", [], {}, {"key": 5}, {"key": {"step": [1]}}, {"direction": "up"}, {"corners": []}]
)
def test_click_events_invalid_click_name_error(app: object, visitor: httpx.Client, click: object) -> None:
    result = 0
    for event in app.fns.values():
        if event.fn is not None and takes_click(event.fn):
            result += 1
            data = [{} if item.get_block_name() == "json" else None for item in event.inputs]
            body = {"data": data, "fn_index": event._id, "session_hash": "s", "event_data": click}
            assert is_sentence(outcome(visitor, event, body) or ""), event.name
    assert result >= 6


@pytest.mark.parametrize(
    "body",
    [
        "5",
        "[]",
        "null",
        '"x"',
        "{",
        "{}",
        '{"data": 5}',
        '{"data": []}',
        '{"data": [1, 2]}',
        '{"data": ["x"], "fn_index": 1000000}',
        '{"data": ["x"], "fn_index": "a"}',
        '{"data": ["x"], "fn_index": true}',
        '{"data": ["x"], "session_hash": 5}',
        '{"data": ' + "[" * 6000 + "]" * 6000 + "}",
        "\udcff",
    ],
)
def test_request_malformed_body_gets_422(visitor: httpx.Client, body: str) -> None:
    for path in ("run/first_paint", "api/first_paint", "call/first_paint", "queue/join"):
        answer = visitor.post(
            f"/gradio_api/{path}",
            content=body.encode(errors="surrogateescape"),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 422 and is_sentence(answer.json()["detail"]), (path, answer.text[:200])


def test_request_large_body_gets_413(visitor: httpx.Client) -> None:
    large = b'{"data": ["' + b"x" * MAX_BODY + b'"]}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for path in ("run/first_paint", "queue/join", "reset", "cancel", "component_server", "unknown"):
        for content in (large, pieces()):
            answer = visitor.post(f"/gradio_api/{path}", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 413 and "1,048,576 bytes" in answer.json()["detail"], path


def test_upload_large_sum_gets_413(folder: Path, visitor: httpx.Client) -> None:
    part = b"x" * (MAX_UPLOAD // 3)

    def pieces() -> Iterator[bytes]:
        for name in "abcd":
            yield f'--b\r\ncontent-disposition: form-data; name="files"; filename="{name}.png"\r\n\r\n'.encode()
            yield part
            yield b"\r\n"
        yield b"--b--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=b"}
    for content in (b"".join(pieces()), pieces()):
        try:
            answer = visitor.post("/gradio_api/upload", content=content, headers=kind)
        except httpx.WriteError:  # it was closed while we were still sending
            continue
        assert answer.status_code == 413 and is_sentence(answer.json()["detail"])
    assert not list((folder / "sent").rglob("d.png"))
    small = visitor.post("/gradio_api/upload", files={"files": ("own.png", b"x" * 4000)})
    assert small.status_code == 200


def test_upload_read_only_page_gets_403(folder: Path) -> None:
    app = serve(folder / "runs", configs=folder, port=free_port(), read_only=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{app.server_port}", timeout=60) as client:
            for path in ("upload", "upload/", "upload?upload_id=1", "process_recording", "component_server"):
                for content in (b"", b"x"):  # Gradio's own limit lets a byte through
                    answer = client.post(f"/gradio_api/{path}", files={"files": ("own.png", content)})
                    assert answer.status_code == 403 and "read-only" in answer.text, path
    finally:
        app.close()


def tries(count: int, *, together: bool, address: str = "10.0.0.1") -> tuple[float, list[int]]:
    """Seconds that so many wrong passwords take, and their answers; the page itself answers at once."""

    async def page(scope: dict, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(delay: LoginDelay) -> int:
        statuses = []

        async def send(message: dict) -> None:
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": (address, 1)}
        await delay(scope, None, send)
        return statuses[0]

    async def all_of_them() -> list[int]:
        delay = LoginDelay(page)
        if together:
            return list(await asyncio.gather(*(ask(delay) for _ in range(count))))
        return [await ask(delay) for _ in range(count)]

    start = time.monotonic()
    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop, that of a browser's driver
        answers = thread.submit(asyncio.run, all_of_them()).result()
    return time.monotonic() - start, answers


@pytest.mark.parametrize("together", [True, False])
def test_login_wrong_passwords_double_delay(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    monkeypatch.setattr(limits, "FIRST_DELAY_S", 0.02)
    seconds, answers = tries(5, together=together)
    assert answers == [400] * 5 and seconds >= 0.02 * (1 + 2 + 4 + 8 + 16)


def test_login_too_many_waiting_get_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRST_DELAY_S", 0.001)
    _, answers = tries(40, together=True)
    assert answers.count(429) == 40 - limits.MAX_TRIES
    assert limits.FIRST_DELAY_S and limits.LONGEST_DELAY_S == 30.0


def test_login_delay_many_addresses_keeps_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEERS", 10)
    delay = LoginDelay(lambda *_: None)
    for idx in range(50):
        delay._peer(f"10.0.0.{idx}")
    assert len(delay._peers) == 10 and "10.0.0.49" in delay._peers
    assert delay._peer("2001:db8::1") is delay._peer("2001:db8::ffff:1")
