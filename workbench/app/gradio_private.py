"""All that relies on Gradio's internals. tests/app/test_gradio_private.py names the version in which it was checked."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUEUE_PAUSE_S = 0.02  # between two polls of the queue
# Of launch. Else the server requests its own address and exits without an answer in 3 s, and behind a proxy.
NO_SELF_REQUEST = {"_frontend": False}
_BASE = re.compile(rb"<base\b[^>]*>")


def slow_queue(app: gr.Blocks) -> None:
    """Poll the queue of an app less often. Gradio's default, a poll per millisecond, takes 5% of a core."""
    app._queue.sleep_when_free = QUEUE_PAUSE_S
    app._queue.progress_update_sleep_when_free = 10 * QUEUE_PAUSE_S


def track_visible_progress(app: gr.Blocks) -> None:
    """Keep the page from tracking the progress of events that show none.

    After each change of an event's progress, Gradio's script updates every component that any event has tracked so
    far, and searches the whole page for each: a third of the work of a tab's drawing.
    """
    for event in app.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = []


def find_event(app: gr.Blocks, path: str, number: object) -> Any:
    """Find the event of a request as Gradio does, by number, or else by name. None if the app has no such event."""
    if number is not None:
        return app.fns.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    name = path.removesuffix("/").rpartition("/")[2]
    return next((event for event in app.fns.values() if event.api_name == name), None)


def is_logged_in(request: Request) -> bool:
    """Whether a request may see what the page shows: the app has no users, or the request has the cookie of one."""
    app = request.app
    if app.auth is None and app.auth_dependency is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(name)) is not None for name in names)


def plotly_module() -> str:
    """Name of the script in Gradio's assets whose import sets window.Plotly. Raises RuntimeError without it."""
    folder = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
    files = sorted(file.name for file in folder.glob("PlotlyPlot-*.js"))
    if not files:
        raise RuntimeError(f"{folder} has no PlotlyPlot-*.js; this version of Gradio is not supported.")
    return files[0]


class EarlyHead:
    """ASGI middleware that changes the page's HTML and address before Gradio does.

    1. It inserts `head` at once. Gradio would insert its own `head` argument about a second later.
    2. It removes <base href="./">. With it, Plotly refers to areas, clips and gradients by the page's address of that
       moment. After the page changes its address (assets/app.js), those references no longer resolve and nothing is
       drawn.
    3. It removes the parameter `page`, which Gradio would take as the name of one of its own pages.
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
