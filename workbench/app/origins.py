"""Refuse requests under foreign host names and from foreign origins.

A browser sends the user's password with a request from any page that is open in it. So each request, read or write,
must pass two checks:

1. Host must be the address of the connection, the host of `--host`, or a name of `--allow-host`. Another name is a sign
   of DNS rebinding: a foreign domain that resolves to this machine.
2. Origin must be the page itself, by `Origin`, or if that is missing by `Sec-Fetch-Site` or `Referer`. A link from
   another site may only open the page at its root. Programs other than browsers send none of the three headers and
   pass, since they do not send another user's password.

Every response tells browsers which sites may frame the page, and not to guess content types. Starlette's
TrustedHostMiddleware supports neither IPv6 addresses nor the connection's own address, so this module checks Host
itself.
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
    """Host names and framing sites that the page allows.

    host     host of --host
    allowed  names of --allow-host; without a port, a name matches every port of Host and the default ports of Origin
    frames   origins of --allow-frame
    """

    host: str = "127.0.0.1"
    allowed: tuple[Authority, ...] = ()
    frames: tuple[str, ...] = ()

    def answers_to(self, authority: Authority, connection: str) -> bool:
        """Whether the page answers to a host name.

        connection  this machine's address in the request's connection
        """
        name, port = authority
        served = {_plain(connection), _plain(self.host)}
        is_loopback = _is_loopback(connection)
        served |= set(_LOOPBACK_NAMES) if is_loopback else set(_machine_names())
        served |= {"127.0.0.1", "::1"} if is_loopback else set()
        return name in served or any(name == other and among in (None, port) for other, among in self.allowed)

    def is_own(self, origin: str, authority: Authority) -> bool:
        """Whether the text of `Origin` or `Referer` names the page that answers to `authority`."""
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
    """ASGI middleware that refuses requests with status 403 if `Origins` forbids them, and sets response headers."""

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
    """Why a request is refused; None if it is allowed."""
    headers = Headers(scope=scope)
    hosts = headers.getlist("host")
    authority = read_authority(hosts[0]) if len(hosts) == 1 else None
    connection = (scope.get("server") or ("", None))[0]
    if authority is None or not origins.answers_to(authority, connection):
        listed = ", ".join(hosts)[:_LONGEST] or "(none)"
        return f'Host name "{listed}" is not allowed. To allow it, start the app with --allow-host NAME.'
    source = foreign_source(origins, headers, authority)
    if source is None or _is_opening(origins, scope, headers):
        return None
    return (
        f"Request refused: it comes from {source[:_LONGEST]}. Expected the page itself. Behind a proxy that changes "
        "the host name, start the app with --allow-host and the name that the browser shows."
    )


def foreign_source(origins: Origins, headers: Headers, authority: Authority) -> str | None:
    """The source of a request from another page, by its headers; None if it comes from the page itself."""
    senders = headers.getlist("origin")
    if senders:
        return next((f'"{sender}"' for sender in senders if not origins.is_own(sender, authority)), None)
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site in ("same-origin", "none") else f"another page ({site})"
    referer = headers.get("referer")
    return None if referer is None or origins.is_own(referer, authority) else f'"{referer}"'


def _is_opening(origins: Origins, scope: Scope, headers: Headers) -> bool:
    """Whether a request from elsewhere only opens the page: by a link, or in an allowed frame."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or "origin" in headers:
        return False
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path not in ("", "/"):
        return False
    mode, target = headers.get("sec-fetch-mode", "navigate"), headers.get("sec-fetch-dest", "document")
    return mode == "navigate" and (target == "document" or (bool(origins.frames) and target in _FRAMES))


def set_headers(headers: MutableHeaders, origins: Origins) -> None:
    """Allow framing by the page itself and the allowed sites only; forbid guessing of content types."""
    policy = " ".join(["frame-ancestors 'self'", *origins.frames])
    headers.append("content-security-policy", policy)
    headers["x-content-type-options"] = "nosniff"
    if not origins.frames:  # x-frame-options cannot name other sites
        headers["x-frame-options"] = "SAMEORIGIN"


def read_authority(text: str) -> Authority | None:
    """Name and port of a Host header such as "localhost:7860" or "[::1]:7860"; None if it is invalid."""
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
                f'--allow-host "{name}" is not a host. Give the name that browsers show, such as workbench.example.org '
                "or workbench.example.org:8443, without http:// and path."
            )
        allowed.append(authority)
    return tuple(allowed)


def read_frames(sites: Sequence[str]) -> tuple[str, ...]:
    """Origins given with --allow-frame. Raises ConfigError naming one that is not an origin."""
    for site in sites:
        parts = urlsplit(site) if not set(site) & set(" ;,'\"") else urlsplit("")
        if parts.scheme not in _DEFAULT_PORTS or not parts.netloc or parts.path or parts.query or parts.fragment:
            raise ConfigError(
                f'--allow-frame "{site}" is not an origin. Give scheme and host of the page that frames this one, such '
                "as https://huggingface.co or http://localhost:8888."
            )
    return tuple(sites)


def _plain(name: str) -> str:
    """Lower case, without brackets, zone and final dot; an IPv4-mapped IPv6 address as IPv4."""
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
