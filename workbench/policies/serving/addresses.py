"""Addresses of served teachers: `http://HOST:PORT`, or several with commas, which are used in turn."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from workbench.errors import ConfigError

SCHEMES = ("http://", "https://")
_BARE = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}")
WORKERS = "WORKBENCH_VLLM_WORKERS"  # environment variable of the processes that vLLM starts
TOKEN = "WORKBENCH_TOKEN"  # environment variable of servers and runs


def is_served(model: object) -> bool:
    """Return whether a model is given by addresses of servers; values of other types are refused elsewhere."""
    return isinstance(model, str) and model.lstrip().startswith(SCHEMES)


def meant_addresses(model: str) -> str:
    """Addresses that a text names without `http://`, as HOST:PORT, with it; "" for other texts, and for folders."""
    parts = [part.strip().rstrip("/") for part in model.split(",")]
    if Path(model).exists() or not all(_BARE.fullmatch(part) or part.startswith(SCHEMES) for part in parts):
        return ""
    return ",".join(part if part.startswith(SCHEMES) else f"http://{part}" for part in parts)


def split_addresses(model: str, key: str) -> tuple[str, ...]:
    """Addresses in a text, without a trailing slash; `key` names the text in messages.

    Raises: ConfigError for an address without host, or with a path.
    """
    addresses = tuple(dict.fromkeys(part.strip().rstrip("/") for part in model.split(",") if part.strip()))
    for address in addresses:
        try:
            parts = urlsplit(address)
            is_address = address.startswith(SCHEMES) and parts.hostname and (parts.port or True) and not parts.path
        except ValueError:  # a port that is not a number
            is_address = False
        if not is_address or parts.query or parts.username:
            raise ConfigError(
                f'{key}: "{address}" is not the address of a server. Expected http://HOST:PORT, or several of one '
                "model with commas."
            )
    return addresses


@dataclass(frozen=True)
class Patience:
    """Limits in seconds. timeout: of one answer. wait: for a server to come back after a failure."""

    timeout: float = 600.0
    wait: float = 300.0


USUAL = Patience()
