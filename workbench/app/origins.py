"""Which requests the page answers: under its own names only, and from its own pages only.

A browser sends the user's password and reaches this machine for every page that is open in it. So each request, read or
write, passes two checks:

1. Host. The address that the connection came in at, the host given to `--host`, and names given with `--allow-host`.
   Another name means that somebody pointed a name of theirs at this machine (DNS rebinding).
2. Origin. `Origin`, or where a browser sends none `Sec-Fetch-Site` or `Referer`, must name the page itself. A link from
   another site may open the page at its root; nothing else of it is answered. Programs that are not browsers send none
   of the three and pass: they carry no password of somebody else.

Every response tells browsers which sites may frame the page and not to guess content types. Starlette's
TrustedHostMiddleware knows no IPv6 addresses and no address of the connection, so the check of Host is written here.
"""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.errors import ConfigError

Authority = tuple[str, int | None]  # lower-case name or address without brackets, port
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FRAMES = ("iframe", "frame", "embed", "object", "fencedframe")
_LONGEST = 100  # characters of a header that a message repeats


@dataclass(frozen=True)
class Origins:
    """Names and frames that the page allows.

    host    what --host was given; the page answers to it as it stands
    allowed names of --allow-host; one without a port holds for every port of Host, and for the default ports of Origin
    frames  origins of --allow-frame that may show the page in a frame
    """

    host: str = "127.0.0.1"
    allowed: tuple[Authority, ...] = ()
    frames: tuple[str, ...] = ()

    def answers_to(self, authority: Authority, connection: str) -> bool:
        """Whether the page answers under a name.

        connection  the address of this machine that the request came in at
        """
        name, port = authority
        served = {_plain(connection), _plain(self.host)}
        is_loopback = _is_loopback(connection)
        served |= set(_LOOPBACK_NAMES) if is_loopback else set(_machine_names())
        served |= {"127.0.0.1", "::1"} if is_loopback else set()
        return name in served or any(name == other and among in (None, port) for other, among in self.allowed)

    def is_own(self, origin: str, authority: Authority) -> bool:
        """Whether the text of `Origin` or `Referer` names the page that answers as `asked`."""
        try:
            parts = urlsplit(origin)
            default = _DEFAULT_PORTS.get(parts.scheme)
            name, port = _plain(parts.hostname or ""), parts.port or default
        except ValueError:
            return False
        if default is None or not name:
            return False  # "null", an extension, a file
        if (name, port) == (authority[0], authority[1] or default):
            return True
        # a proxy may have put its own name into Host
        return any(name == other and port == (among or default) for other, among in self.allowed)


class OriginGuard:
    """ASGI middleware that answers 403 to requests which `Origins` does not allow, and sets the headers of all others."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.app, self.origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reason = refusal(self.origins, scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_headers(MutableHeaders(scope=message), self.origins)
            await send(message)

        if reason is None:
            await self.app(scope, receive, with_headers)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
        else:
            await PlainTextResponse(reason + "\n", status_code=403)(scope, receive, with_headers)


def refusal(origins: Origins, scope: Scope) -> str | None:
    """Why a request is not answered; None if it is."""
    headers = Headers(scope=scope)
    hosts = headers.getlist("host")
    authority = read_authority(hosts[0]) if len(hosts) == 1 else None
    connection = (scope.get("server") or ("", None))[0]
    if authority is None or not origins.answers_to(authority, connection):
        listed = ", ".join(hosts)[:_LONGEST] or "(none)"
        return f'This page does not answer under the name "{listed}". If it is right, start the app with --allow-host NAME.'
    source = foreign_source(origins, headers, authority)
    if source is None or _is_opening(origins, scope, headers):
        return None
    return (
        f"This request comes from {source[:_LONGEST]} and not from the page itself, so nothing was done. "
        "Behind a proxy that changes the name, start the app with --allow-host and the name that the browser shows."
    )


def foreign_source(origins: Origins, headers: Headers, authority: Authority) -> str | None:
    """Where a request comes from if a browser says that it is not the page itself."""
    senders = headers.getlist("origin")
    if senders:
        return next((f'"{sender}"' for sender in senders if not origins.is_own(sender, authority)), None)
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site in ("same-origin", "none") else f"another page ({site})"
    referer = headers.get("referer")
    return None if referer is None or origins.is_own(referer, authority) else f'"{referer}"'


def _is_opening(origins: Origins, scope: Scope, headers: Headers) -> bool:
    """Whether a request from elsewhere only opens the page: a link that was followed, or a frame where they are allowed."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or "origin" in headers:
        return False
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path not in ("", "/"):
        return False
    mode, target = headers.get("sec-fetch-mode", "navigate"), headers.get("sec-fetch-dest", "document")
    return mode == "navigate" and (target == "document" or (bool(origins.frames) and target in _FRAMES))


def set_headers(headers: MutableHeaders, origins: Origins) -> None:
    """Framing by the page itself and by the allowed sites only; no guessing of content types."""
    policy = " ".join(["frame-ancestors 'self'", *origins.frames])
    headers.append("content-security-policy", policy)
    headers["x-content-type-options"] = "nosniff"
    if not origins.frames:  # it cannot name other sites
        headers["x-frame-options"] = "SAMEORIGIN"


def read_authority(text: str) -> Authority | None:
    """Name and port of a Host header, as "localhost:7860" or "[::1]:7860"; None if it is neither."""
    try:
        parts = urlsplit(f"//{text.strip()}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or "@" in text:
        return None
    return _plain(parts.hostname), port


def read_allowed(names: Iterable[str]) -> tuple[Authority, ...]:
    """Names given with --allow-host. Raises ConfigError naming one that is not a host."""
    allowed = []
    for name in names:
        authority = read_authority(name) if "*" not in name else None
        if authority is None:
            raise ConfigError(
                f'--allow-host "{name}" is not a host. Write the name that browsers show, as workbench.example.org or '
                "workbench.example.org:8443, without http:// and without a path."
            )
        allowed.append(authority)
    return tuple(allowed)


def read_frames(sites: Sequence[str]) -> tuple[str, ...]:
    """Origins given with --allow-frame. Raises ConfigError naming one that is not an origin."""
    for site in sites:
        parts = urlsplit(site) if not set(site) & set(" ;,'\"") else urlsplit("")
        if parts.scheme not in _DEFAULT_PORTS or not parts.netloc or parts.path or parts.query or parts.fragment:
            raise ConfigError(
                f'--allow-frame "{site}" is not an origin. Write scheme and host of the page that shows this one in a frame, '
                "as https://huggingface.co or http://localhost:8888."
            )
    return tuple(sites)


def _plain(name: str) -> str:
    """Lower case, without brackets, zone and final dot; an IPv4 address that is written as IPv6 as IPv4."""
    name = name.lower().strip("[]").rstrip(".").partition("%")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(_plain(address)).is_loopback
    except ValueError:
        return False


def _machine_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0]} - {""}
