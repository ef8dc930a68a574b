"""Hosts and ports that a server of the workbench listens on."""

import contextlib
import ipaddress
import socket
from typing import Any

from workbench.errors import ConfigError, RunError

_LOCAL = ("localhost", "localhost.localdomain")
_LAST = 65535
_PROPOSALS = 1000  # ports that are tried for a proposal


def is_local(host: str) -> bool:
    """Whether a host is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in _LOCAL


def check_port(host: str, port: int) -> None:
    """Raises ConfigError if the port or host does not exist, RunError if the port is in use."""
    listen(host, port).close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a port, so that no other process can.

    Raises: ConfigError if the port or host does not exist; RunError if the port is in use, which proposes a free one.
    """
    if not 1 <= port <= _LAST:
        raise ConfigError(f"--port must be from 1 to {_LAST}, got {port}.")
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise ConfigError(f'--host "{host}" cannot be resolved. Use 127.0.0.1 for this machine alone.') from None
    family, _, _, _, address = addresses[0]
    try:
        return _listening(family, address)
    except OSError as error:
        raise RunError(
            f"port {port} on {host} cannot be used ({error.strerror}). Another server may be using it: open "
            f"http://{host}:{port}, or choose another port{_proposal(family, address)}."
        ) from None


def _proposal(family: int, address: tuple[Any, ...]) -> str:
    """The option for the next port that is free, among some; "" if all are in use."""
    port = address[1]
    for proposed in range(port + 1, min(port + 1 + _PROPOSALS, _LAST + 1)):
        with contextlib.suppress(OSError):
            _listening(family, (address[0], proposed, *address[2:])).close()
            return f" with --port {proposed}"
    return ""


def _listening(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # two sockets may be bound to a port, and only one listens
    except BaseException:
        listener.close()
        raise
    return listener
