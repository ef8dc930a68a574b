"""The server of `workbench teacher` and `workbench sampler`: Starlette over one engine.

GET  /info     facts about the model
GET  /files    what encodes prompts, as a message of bytes by file name
GET  /head     the output layer's weights
POST /read     hidden states of answers
POST /sample   answers to prompts
POST /weights  weights in place of the sampler's; a teacher has no such route
"""

import asyncio
import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workbench.errors import ConfigError, WorkbenchError
from workbench.files.hosts import check_port, is_local
from workbench.policies.proof import FAILURES
from workbench.policies.serving.addresses import TOKEN
from workbench.policies.serving.client import CONFLICT
from workbench.policies.serving.engine import OtherWeights, SamplerEngine, TransformersEngine
from workbench.policies.serving.wire import WireError, pack, pin_facts, unpack, unpack_request, unpack_sample

MAX_BODY = 4 * 2**30  # bytes of a request; the embeddings of an 8B model in float32 are 2.5e9
BYTES = "application/octet-stream"
GRACE_S = 5  # for a read in progress when the server is stopped

log = logging.getLogger("workbench")


def build_door(engine: TransformersEngine, token: str | None = None) -> Starlette:
    """The application. token: what every request must bear; None = none."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="engine")  # one read at a time, in the order of arrival

    async def respond(request: Request, work: Callable[[], Response]) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            return _error(401, f"this server needs a token. Set {TOKEN} where the run starts to the server's.")
        return await asyncio.get_running_loop().run_in_executor(reader, work)

    async def info(request: Request) -> Response:
        return await respond(request, lambda: JSONResponse(engine.info))

    async def files(request: Request) -> Response:
        tensors = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in engine.files.items() if data
        }
        return await respond(request, lambda: Response(pack(tensors, {}), media_type=BYTES))

    async def head(request: Request) -> Response:
        return await respond(request, lambda: Response(pack(engine.head, {}), media_type=BYTES))

    def posted(answer: Callable[[Any, bytes], bytes]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            if request.headers.get("content-type") != BYTES:  # which a page in a browser cannot send to another site
                return _error(415, f"expected content-type {BYTES}.")
            if int(request.headers.get("content-length", MAX_BODY + 1)) > MAX_BODY:
                return _error(413, f"a request must state its length, at most {MAX_BODY:,} bytes. Lower batch_size.")
            body = await request.body()
            return await respond(request, lambda: _answered(engine, answer, body))

        return handle

    return Starlette(
        routes=[
            Route("/info", info),
            Route("/files", files),
            Route("/head", head),
            Route("/read", posted(_read), methods=["POST"]),
            Route("/sample", posted(_sample), methods=["POST"]),
            *([Route("/weights", posted(_load), methods=["POST"])] if isinstance(engine, SamplerEngine) else []),
        ]
    )


def _read(engine: TransformersEngine, body: bytes) -> bytes:
    hidden, pins = engine.read(unpack_request(body))
    return pack({"hidden": hidden}, _signed(engine, {"pins": pin_facts(pins)}))


def _sample(engine: TransformersEngine, body: bytes) -> bytes:
    sampled, pins = engine.sample(unpack_sample(body))
    facts = [[asdict(completion) for completion in completions] for completions in sampled]
    return pack({}, _signed(engine, {"completions": facts, "pins": pin_facts(pins)}))


def _load(engine: SamplerEngine, body: bytes) -> bytes:
    weights, facts = unpack(body)
    engine.load_part(weights, str(facts.get("version")), last=bool(facts.get("last")))
    return pack({}, _signed(engine, {}))


def _signed(engine: TransformersEngine, facts: dict[str, Any]) -> dict[str, Any]:
    return {"fingerprint": engine.fingerprint, **facts}


def _answered(
    engine: TransformersEngine, answer: Callable[[TransformersEngine, bytes], bytes], body: bytes
) -> Response:
    try:
        return Response(answer(engine, body), media_type=BYTES)
    except OtherWeights as error:
        return _error(CONFLICT, str(error))
    except (WireError, WorkbenchError) as error:
        return _error(400, str(error))
    except torch.OutOfMemoryError as error:
        return _error(500, f"out of device memory: {str(error).splitlines()[0]} Lower training.micro_batch_size.")
    except FAILURES as error:
        log.exception("a request failed")
        return _error(500, f"the model's forward pass failed ({error}). The server's output has the traceback.")


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


def required_token(host: str) -> str | None:
    """The token in the environment. Raises ConfigError if other machines could use the teacher without it."""
    token = os.environ.get(TOKEN) or None
    if token is None and not is_local(host):
        raise ConfigError(
            f"--host {host} lets other machines use the model. Set {TOKEN} to a secret text, here and where runs start."
        )
    return token


def serve(load: Callable[[], TransformersEngine], host: str, port: int) -> None:
    """Serve until a signal (SIGINT, SIGTERM). The port is taken before the model is loaded.

    Raises: ConfigError without a needed token; RunError if the port is in use.
    """
    token = required_token(host)
    check_port(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))  # not yet listening: requests are refused until the model is loaded
        engine = load()
        info = engine.info
        log.info(
            "http://%s:%d serves %s (%s, %s, context of %s tokens); Ctrl-C stops it",
            *(host, port, info["model"], info["class"], info["dtype"], info["context_length"]),
        )
        options = uvicorn.Config(
            build_door(engine, token),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_S,
        )
        uvicorn.Server(options).run(sockets=[listener])
