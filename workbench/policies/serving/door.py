"""The server of `workbench teacher` and `workbench sampler`: Starlette over one service.

GET  /info     facts about the model
GET  /files    what encodes prompts, as a message of bytes by file name
GET  /head     the output layer's weights
POST /read     hidden states of answers
POST /sample   answers to prompts
POST /weights  weights in place of the sampler's; a teacher has no such route

While the model is loading, every request is answered with 503 and what loads, so that a run waits. A server whose
engine is dead answers 503 and ends, so that a run asks another server, or waits for this one to restart.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import FrameType
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.files.hosts import is_local, listen
from workbench.policies.proof import FAILURES
from workbench.policies.serving.addresses import TOKEN
from workbench.policies.serving.client import CONFLICT, RETRY_AFTER
from workbench.policies.serving.engine import DeadEngineError
from workbench.policies.serving.service import OtherWeights, SamplerService, TeacherService
from workbench.policies.serving.wire import WireError, pack, pin_facts, unpack, unpack_request, unpack_sample

MAX_BODY = 4 * 2**30  # bytes of a request; the embeddings of an 8B model in float32 are 2.5e9
BYTES = "application/octet-stream"
GRACE_S = 5  # for a read in progress when the server is stopped
WATCH_S = 1.0  # between looks at the engine
BUSY = 503
RETRY_S = 1  # after which a run may ask whether the model is loaded

log = logging.getLogger("workbench")
Handler = Callable[[Request], Awaitable[Response]]


def build_waiting_room(model: str, token: str | None = None) -> Starlette:
    """The application while a model is loading: it says so in answer to every request that bears the token."""
    begun, since = time.monotonic(), time.strftime("%H:%M:%S")

    async def answer(request: Request) -> Response:
        seconds = f"{time.monotonic() - begun:.0f} s"
        return _error(BUSY, f"{model} is loading since {since} ({seconds}).", {RETRY_AFTER: str(RETRY_S)})

    return Starlette(routes=[Route("/{path:path}", _admitted(token)(answer), methods=["GET", "POST"])])


def _admitted(token: str | None) -> Callable[[Handler], Handler]:
    """Decorator of handlers that answer only requests with the token; None = all."""

    def admitted(answer: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
                return _error(401, f"this server needs a token. Set {TOKEN} where the run starts to the server's.")
            return await answer(request)

        return handle

    return admitted


def build_door(
    service: TeacherService, token: str | None = None, end: Callable[[str], None] = lambda reason: None
) -> Starlette:
    """The application. token: what every request must bear, None = none. end: stop serving, for the given reason."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="engine")  # one read at a time, in the order of arrival

    admitted = _admitted(token)

    async def respond(work: Callable[[], Response]) -> Response:
        try:
            return await asyncio.get_running_loop().run_in_executor(reader, work)
        except asyncio.CancelledError:  # it took longer than GRACE_S
            return _error(BUSY, "this server stops, before it has answered.")

    @admitted
    async def info(request: Request) -> Response:
        return await respond(lambda: JSONResponse(service.info))

    @admitted
    async def files(request: Request) -> Response:
        tensors = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in service.files.items() if data
        }
        return await respond(lambda: Response(pack(tensors, {}), media_type=BYTES))

    @admitted
    async def head(request: Request) -> Response:
        return await respond(lambda: Response(pack(service.engine.head, {}), media_type=BYTES))

    def posted(answer: Callable[[Any, bytes], bytes]) -> Handler:
        @admitted  # before the body is read
        async def handle(request: Request) -> Response:
            if request.headers.get("content-type") != BYTES:  # which a page in a browser cannot send to another site
                return _error(415, f"expected content-type {BYTES}.")
            length = request.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY or "transfer-encoding" in request.headers:
                return _error(413, f"a request must state its length, at most {MAX_BODY:,} bytes. Lower batch_size.")
            body = await request.body()
            return await respond(lambda: _answered(service, answer, body, end))

        return handle

    return Starlette(
        routes=[
            Route("/info", info),
            Route("/files", files),
            Route("/head", head),
            Route("/read", posted(_read), methods=["POST"]),
            Route("/sample", posted(_sample), methods=["POST"]),
            *([Route("/weights", posted(_load), methods=["POST"])] if isinstance(service, SamplerService) else []),
        ]
    )


def _read(service: TeacherService, body: bytes) -> bytes:
    hidden, pins = service.read(unpack_request(body))
    return pack({"hidden": hidden}, _signed(service, {"pins": pin_facts(pins)}))


def _sample(service: TeacherService, body: bytes) -> bytes:
    sampled, pins = service.sample(unpack_sample(body))
    facts = [[asdict(completion) for completion in completions] for completions in sampled]
    return pack({}, _signed(service, {"completions": facts, "pins": pin_facts(pins)}))


def _load(service: SamplerService, body: bytes) -> bytes:
    weights, facts = unpack(body)
    service.load_part(weights, str(facts.get("version")), last=bool(facts.get("last")))
    return pack({}, _signed(service, {}))


def _signed(service: TeacherService, facts: dict[str, Any]) -> dict[str, Any]:
    return {"fingerprint": service.engine.fingerprint, **facts}


def _answered(
    service: TeacherService,
    answer: Callable[[Any, bytes], bytes],
    body: bytes,
    end: Callable[[str], None],
) -> Response:
    try:
        return Response(answer(service, body), media_type=BYTES)
    except DeadEngineError as error:
        end(str(error))
        return _error(BUSY, str(error))
    except OtherWeights as error:
        return _error(CONFLICT, str(error))
    except (WireError, WorkbenchError) as error:
        return _error(400, str(error))
    except torch.OutOfMemoryError as error:
        return _error(500, f"out of device memory: {str(error).splitlines()[0]} Lower training.micro_batch_size.")
    except FAILURES as error:
        log.exception("a request failed")
        return _error(500, f"the model's forward pass failed ({error}). The server's output has the traceback.")


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


def required_token(host: str) -> str | None:
    """The token in the environment. Raises ConfigError if other machines could use the teacher without it."""
    token = os.environ.get(TOKEN) or None
    if token is None and not is_local(host):
        raise ConfigError(
            f"--host {host} lets other machines use the model. Set {TOKEN} to a secret text, here and where runs start."
        )
    return token


def serve(load: Callable[[], TeacherService], model: str, host: str, port: int) -> None:
    """Serve until a signal (SIGINT, SIGTERM). Before the model is loaded, requests are answered with 503.

    model  that is loading, for these answers

    Raises: ConfigError without a needed token; RunError if the port is in use, or when the engine is dead.
    """
    token = required_token(host)
    with listen(host, port) as listener, _terminable():
        with _waiting_room(model, token, listener):
            service = load()
        try:
            info = service.info
            log.info(
                "http://%s:%d serves %s (%s, %s, by %s, context of %s tokens); Ctrl-C stops it",
                *(host, port, info["model"], info["class"], info["dtype"], info["engine"], info["context_length"]),
            )
            reason = _run(service, token, listener)
        finally:
            service.engine.close()
    if reason:
        raise RunError(f"{info['model']} is not served any more: {reason} Start the command again; runs wait for it.")


@contextlib.contextmanager
def _waiting_room(model: str, token: str | None, listener: socket.socket) -> Iterator[None]:
    """Answer requests in a thread, while the model is loading in this one."""
    server = uvicorn.Server(_options(build_waiting_room(model, token)))
    copies = [listener.dup()]  # the server closes its own
    thread = threading.Thread(target=server.run, args=(copies,), name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(GRACE_S)


def _options(application: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        application, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE_S
    )


def _run(service: TeacherService, token: str | None, listener: socket.socket) -> str:
    """Serve until a signal, or until the engine is dead; returns why."""
    reasons: list[str] = []
    ended = threading.Event()

    def end(reason: str) -> None:
        reasons.append(reason)
        server.should_exit = True

    def watch() -> None:
        while not ended.wait(WATCH_S):
            if reason := service.engine.fault():
                return end(reason)

    server = uvicorn.Server(_options(build_door(service, token, end)))
    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        ended.set()
    return reasons[0] if reasons else ""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM raise here, so that an engine's processes are ended; the process then ends by it all the same."""

    def raise_exit(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, raise_exit)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
