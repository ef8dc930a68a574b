"""Serves the page: where it listens, who may look, and what it says if it cannot.

1. Starting runs is running programs, so another machine may not do it without a password: a host that is not this
   machine needs `--auth FILE` or `--read-only`.
2. Users and passwords come from a file, since a command line can be read by everybody on the machine.
3. Nothing is loaded from a network, and nothing of the page is told to one.
4. Other pages in the same browser can neither read this one nor act through it: see origins.py.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.app.context import MAX_UPLOAD_MB, AppContext
from workbench.app.layout import build_app, early_head, page_style
from workbench.app.limits import MAX_SESSIONS, MAX_WAITING, LoginDelay, RequestLimits
from workbench.app.origins import OriginGuard, Origins, read_allowed, read_frames
from workbench.errors import ConfigError, RunError
from workbench.files.shipped import RECIPES
from workbench.runs.run_queue import default_limit, set_limit

QUEUE_PAUSE_S = 0.02  # between looks for something to do
_BASE = re.compile(rb"<base\b[^>]*>")
_LOCAL = ("localhost", "localhost.localdomain")


def serve(
    runs: str | Path = "runs",
    *,
    configs: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    read_only: bool = False,
    auth: str | Path | None = None,
    allow_hosts: Sequence[str] = (),
    allow_frames: Sequence[str] = (),
    allow_dirs: Sequence[str | Path] = (),
    max_runs: int | None = None,
) -> gr.Blocks:
    """Open the app and serve it in a thread; its block_thread() waits until it is interrupted.

    configs       recipes to start from; None = configs/ if it exists, otherwise the built-in ones
    auth          a file with lines of user:password
    allow_hosts   names that the page answers to besides the addresses it listens at, as those of a proxy
    allow_frames  origins of sites that may show the page in a frame, as a notebook's or https://huggingface.co
    allow_dirs    where pictures of data may lie besides the data file's own folder
    max_runs      how many runs may be at work at once, further ones wait; None = what devices and memory hold

    Raises: ConfigError for a host, port or file that will not do; RunError if the port is in use.
    """
    origins = Origins(host, read_allowed(allow_hosts), read_frames(allow_frames))
    if max_runs is not None and max_runs < 1:
        raise ConfigError(f"--max-runs must be at least 1, got {max_runs}.")
    users = read_users(auth) if auth is not None else None
    check_host(host, has_password=users is not None, read_only=read_only)
    check_port(host, port)
    runs = _runs_folder(runs)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    max_runs = default_limit() if max_runs is None else max_runs
    if not read_only:
        set_limit(runs, max_runs)
    app = build_app(AppContext(runs, _recipes(configs), read_only, read_folders(allow_dirs), max_runs))
    app.queue(default_concurrency_limit=8, max_size=MAX_WAITING)
    app._queue.sleep_when_free = (
        QUEUE_PAUSE_S  # Gradio looks a thousand times a second: a twentieth of a core, for nothing
    )
    app._queue.progress_update_sleep_when_free = 10 * QUEUE_PAUSE_S
    app.launch(
        server_name=host,
        server_port=port,
        auth=users,
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size=1 if read_only else f"{MAX_UPLOAD_MB}mb",  # nothing is taken there
        prevent_thread_lock=True,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": _middleware(app, origins, read_only=read_only)},
        **page_style(),
    )
    return app


def _runs_folder(path: str | Path) -> Path:
    runs = Path(path)
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"runs folder {runs} cannot be made ({error.strerror}). Choose another with --runs.") from None
    return runs


def _middleware(app: gr.Blocks, origins: Origins, *, read_only: bool) -> list[Middleware]:
    """What every request passes before Gradio has it, outermost first."""
    return [
        Middleware(OriginGuard, origins=origins),
        Middleware(RequestLimits, blocks=app, read_only=read_only),
        Middleware(LoginDelay),
        Middleware(EarlyHead, head=early_head()),
    ]


def _recipes(configs: str | Path | None) -> Path:
    if configs is not None:
        return Path(configs)
    return Path("configs") if Path("configs").is_dir() else RECIPES


class EarlyHead:
    """Writes our own lines into the page's head: Gradio adds what it is given as `head` a second later, with its own parts.

    The head's <base href="./"> is taken out. It changes no address of the page's own parts, and with it Plotly writes each
    reference to an area, a clip or a gradient as the page's address of that moment: as soon as the page writes another
    address (assets/app.js), all of them lead out of the page, and the browser draws nothing there.

    `page` is taken out of the address: Gradio reads it for itself, and knows no page by such a name.
    """

    def __init__(self, app: ASGIApp, head: str) -> None:
        self.app, self.head = app, head.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) not in ("", "/"):
            await self.app(scope, receive, send)
            return
        start: Message = {}
        page = b""

        async def changed(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                start = message
                return
            page += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _BASE.sub(b"", page, count=1).replace(b"</head>", self.head + b"</head>", 1)
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})

        params = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = urlencode([(name, value) for name, value in params if name != "page"]).encode()
        await self.app({**scope, "query_string": query}, receive, changed)


def read_users(file: str | Path) -> list[tuple[str, str]]:
    """Users and passwords. Raises ConfigError naming the line that is wrong."""
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Write lines of user:password into it.") from None
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):
            raise ConfigError(f"{file}:{number} must look like user:password.")  # without the line: it may hold one
        users.append((user, password))
    if not users:
        raise ConfigError(f"{file} names nobody. Write lines of user:password into it.")
    return users


def read_folders(folders: Sequence[str | Path]) -> tuple[Path, ...]:
    """Folders given with --allow-dir. Raises ConfigError naming one that does not exist."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f'--allow-dir "{folder}" is not a folder. Give one that exists.')
    return tuple(Path(folder).resolve() for folder in folders)


def check_host(host: str, *, has_password: bool, read_only: bool) -> None:
    """Raises ConfigError if other machines could start programs here without a password."""
    if has_password or read_only or is_local(host):
        return
    raise ConfigError(
        f"--host {host} lets other machines start runs here. Give --auth FILE with lines of user:password, or --read-only."
    )


def is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in _LOCAL


def check_port(host: str, port: int) -> None:
    """Raises ConfigError if there is no such port or host, RunError if the port is in use."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, got {port}.")
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise ConfigError(f'--host "{host}" is not known here. Use 127.0.0.1 for this machine alone.') from None
    family, kind, _, _, address = addresses[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise RunError(
                f"port {port} on {host} cannot be used ({error.strerror}). Another app may be open there: look at "
                f"http://{host}:{port}, or choose another with --port {port % 65535 + 1}."
            ) from None
