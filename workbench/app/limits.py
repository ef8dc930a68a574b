"""Limits on requests: size, uploads, and the rate of login attempts."""

import asyncio
import ipaddress
import json
from collections import OrderedDict
from dataclasses import dataclass, field

import gradio as gr
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.app.context import MAX_UPLOAD_MB
from workbench.app.requests import CALLS, request_fault

MAX_BODY = 2**20  # bytes of a request without files
MAX_UPLOAD = (MAX_UPLOAD_MB + 1) * 2**20  # bytes of a request with files, all of them together
MAX_SESSIONS = 200  # browser tabs whose state is kept
MAX_WAITING = 400  # queued events
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0  # after a wrong password; each further one doubles the delay
MAX_TRIES, MAX_PEERS = 8, 1000  # pending login attempts of one address; addresses that are tracked
_UPLOADS = ("/gradio_api/upload", "/gradio_api/process_recording")


class RequestLimits:
    """ASGI middleware that refuses requests that are too large or malformed, with a message.

    blocks     the page
    read_only  whether uploads are refused
    """

    def __init__(self, app: ASGIApp, blocks: gr.Blocks, read_only: bool) -> None:
        self.app, self.blocks, self.read_only = app, blocks, read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"].removeprefix(scope.get("root_path", "")), Headers(scope=scope)
        is_upload = path.startswith(_UPLOADS) or headers.get("content-type", "").startswith("multipart/")
        limit = MAX_UPLOAD if is_upload else MAX_BODY
        length = headers.get("content-length", "")
        if is_upload and self.read_only:
            await _refuse(403, "This page is read-only and does not accept files.")(scope, receive, send)
        elif length.isdecimal() and int(length) > limit:
            await _too_large(limit)(scope, receive, send)
        elif is_upload:
            await self._upload(scope, receive, send)
        else:
            await self._call(path, scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request with files; end it if it exceeds MAX_UPLOAD bytes."""
        size, is_refused = 0, False

        async def counted() -> Message:
            nonlocal size, is_refused
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_UPLOAD and not is_refused:
                is_refused = True
                await _too_large(MAX_UPLOAD)(scope, receive, send)
            return {"type": "http.disconnect"} if is_refused else message

        async def unless_refused(message: Message) -> None:
            if not is_refused:
                await send(message)

        try:
            await self.app(scope, counted, unless_refused)
        except ClientDisconnect:
            if not is_refused:
                raise

    async def _call(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a request without files, validate it, and pass it on."""
        body = await _read(receive)
        if body is None:
            await _too_large(MAX_BODY)(scope, receive, send)
            return
        fault = request_fault(self.blocks, path, body)
        if fault is not None:
            await _refuse(422, fault)(scope, receive, send)
            return
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, _ResponseStatus(send) if path.startswith(CALLS) else send)


class _ResponseStatus:
    """Passes a response on; Gradio's 500 becomes 422 if its body has an error message about a value."""

    def __init__(self, send: Send) -> None:
        self.send, self.start = send, None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self.start = message
            return
        if self.start is not None:
            status = 422 if _has_error_message(message.get("body", b"")) else 500
            await self.send({**self.start, "status": status})
            self.start = None
        await self.send(message)


@dataclass
class _Peer:
    """Login attempts of one address. wrong: wrong passwords since the last right one."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wrong: int = 0
    waiting: int = 0


class LoginDelay:
    """ASGI middleware that delays responses to wrong passwords, one at a time per address and longer each time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/")
        if scope["type"] != "http" or path != "/login" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        peer = self._peer((scope.get("client") or ("", 0))[0])
        if peer.waiting >= MAX_TRIES:
            await _refuse(429, "Too many login attempts. Wait half a minute.")(scope, receive, send)
            return

        async def delayed(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 200:
                    peer.wrong = 0
                else:
                    await asyncio.sleep(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**peer.wrong))
                    peer.wrong = min(peer.wrong + 1, 16)
            await send(message)

        peer.waiting += 1
        try:
            async with peer.lock:
                await self.app(scope, receive, delayed)
        finally:
            peer.waiting -= 1

    def _peer(self, address: str) -> _Peer:
        """The record of an address; addresses of one IPv6 /64 network share it."""
        try:
            network = ipaddress.ip_address(address)
            address = str(ipaddress.ip_network((network, 64), strict=False)) if network.version == 6 else str(network)
        except ValueError:
            pass
        peer = self._peers.setdefault(address, _Peer())
        self._peers.move_to_end(address)
        idle = [name for name, peer_state in self._peers.items() if not peer_state.waiting and name != address]
        for name in idle[: max(0, len(self._peers) - MAX_PEERS)]:
            del self._peers[name]
        return peer


async def _read(receive: Receive) -> bytes | None:
    """The body of a request; None if it has more than MAX_BODY bytes."""
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            return None
    return body


def _has_error_message(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body).get("error"), str)
    except (ValueError, AttributeError):
        return False


def _too_large(limit: int) -> JSONResponse:
    return _refuse(413, f"The request has more than {limit:,} bytes. Send a smaller one.")


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence, "error": sentence}, status)
