"""Hosts and ports that a server of the workbench listens on."""

import ipaddress
import socket

from workbench.errors import ConfigError, RunError

_LOCAL = ("localhost", "localhost.localdomain")


def is_local(host: str) -> bool:
    """Whether a host is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in _LOCAL


def check_port(host: str, port: int) -> None:
    """Raises ConfigError if the port or host does not exist, RunError if the port is in use."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, got {port}.")
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise ConfigError(f'--host "{host}" cannot be resolved. Use 127.0.0.1 for this machine alone.') from None
    family, kind, _, _, address = addresses[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise RunError(
                f"port {port} on {host} cannot be used ({error.strerror}). Another server may be using it: open "
                f"http://{host}:{port}, or choose another port with --port {port % 65535 + 1}."
            ) from None
