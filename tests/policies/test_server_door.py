"""What the servers' door refuses, before it reads a request's body."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from workbench.policies.serving.door import BYTES, MAX_BODY, build_door
from workbench.policies.serving.service import TeacherService

STATED = {"content-type": BYTES, "content-length": str(MAX_BODY)}
BEARER = {"authorization": "Bearer secret"}


class Bare(TeacherService):
    """A service without an engine: no request here gets that far."""

    info: ClassVar = {"width": 8}

    def __init__(self) -> None:
        pass


def answer_of(path: str, headers: dict[str, str], method: str = "POST", body: bytes | None = None) -> tuple[int, str]:
    """Status and error of a request to a server with a token. body: None = reading it fails."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        assert body is not None, "the body was read"
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    with ThreadPoolExecutor(1) as thread:  # Playwright's loop may be running in this one
        thread.submit(asyncio.run, build_door(Bare(), "secret")(scope, receive, send)).result()
    return sent[0]["status"], json.loads(sent[1]["body"]).get("error", "")


@pytest.mark.parametrize("bearer", [{}, {"authorization": "Bearer wrong"}])
def test_request_without_token_is_refused_before_its_body_is_read(bearer: dict[str, str]) -> None:
    for path in ("/read", "/sample"):
        for headers in (STATED, {}, {"content-type": "text/plain"}):
            status, error = answer_of(path, bearer | headers)
            assert status == 401 and "WORKBENCH_TOKEN" in error
    for path in ("/info", "/files", "/head"):
        assert answer_of(path, bearer, "GET")[0] == 401


def test_type_and_length_are_compared_before_a_body_is_read() -> None:
    assert answer_of("/read", BEARER | STATED | {"content-type": "text/plain"})[0] == 415
    for length in ({"content-length": str(MAX_BODY + 1)}, {"content-length": "-1"}, {"transfer-encoding": "chunked"}):
        assert answer_of("/read", BEARER | STATED | length)[0] == 413
    status, error = answer_of("/read", BEARER | STATED | {"content-length": "4"}, body=b"torn")
    assert status == 400 and "not a complete message" in error
    assert answer_of("/info", BEARER, "GET") == (200, "")
