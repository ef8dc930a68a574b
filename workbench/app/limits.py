"""How much a visitor may ask of the page: the size of a request, uploads, and the pace of guessing passwords."""

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

MAX_BODY = 2**20  # bytes of a request that is no upload
MAX_UPLOAD = (MAX_UPLOAD_MB + 1) * 2**20  # bytes of a request with files, all of them together
MAX_SESSIONS = 200  # browsers' tabs whose state is kept
MAX_WAITING = 400  # events that wait for their turn
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0  # after a wrong password; doubled by each further one
MAX_TRIES, MAX_PEERS = 8, 1000  # passwords of one address that wait; addresses that are remembered
_UPLOADS = ("/gradio_api/upload", "/gradio_api/process_recording")


class RequestLimits:
    """ASGI middleware that refuses, with a sentence, what is too large or of a wrong kind.

    blocks     the page
    read_only  whether no file is taken at all
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
            await _refuse(403, "This page is read-only and takes no files.")(scope, receive, send)
        elif length.isdecimal() and int(length) > limit:
            await _too_large(limit)(scope, receive, send)
        elif is_upload:
            await self._upload(scope, receive, send)
        else:
            await self._call(path, scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request with files, cut off where it has more bytes than are taken."""
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
        """A request without files: read whole, looked at, and handed on."""
        body = await _read(receive)
        if body is None:
            await _too_large(MAX_BODY)(scope, receive, send)
            return
        fault = request_fault(self.blocks, path, body)
        if fault is not None:
            await _refuse(422, fault)(scope, receive, send)
            return
        is_read = False

        async def again() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, _Answer(send) if path.startswith(CALLS) else send)


class _Answer:
    """Sends an answer on; Gradio's 500 becomes 422 where it says in a sentence what is wrong with a value."""

    def __init__(self, send: Send) -> None:
        self.send, self.start = send, None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self.start = message
            return
        if self.start is not None:
            status = 422 if _has_sentence(message.get("body", b"")) else 500
            await self.send({**self.start, "status": status})
            self.start = None
        await self.send(message)


@dataclass
class _Peer:
    """Tries of one address. wrong: passwords since the last right one."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wrong: int = 0
    waiting: int = 0


class LoginDelay:
    """ASGI middleware that answers wrong passwords of an address one after the other, each later than the last."""

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
            await _refuse(429, "Too many passwords were tried at once. Wait half a minute.")(scope, receive, send)
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
        """What is remembered of an address; those of one IPv6 network of 64 bits are one."""
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


def _has_sentence(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body).get("error"), str)
    except (ValueError, AttributeError):
        return False


def _too_large(limit: int) -> JSONResponse:
    return _refuse(413, f"The request has more than {limit:,} bytes. Send less at once.")


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence, "error": sentence}, status)
