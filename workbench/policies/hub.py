"""Whether a model's name can be looked up on the hub.

The hub's client repeats every failed request for some twenty seconds, so a misspelt folder took a minute to be refused.
"""

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

from workbench.errors import PolicyError

SECONDS = 3.0  # to wait for a connection


def refuse_unreachable(name: str, model: str | Path) -> None:
    """Raise PolicyError if `model` is neither a folder nor in the hub's cache, and the hub does not answer.

    Behind a proxy, and offline by HF_HUB_OFFLINE, nothing is tried: there the client itself answers.
    """
    model, hub = str(model), urlsplit(constants.ENDPOINT)
    is_name = model.count("/") <= 1 and not model.startswith((".", "/", "~"))
    by_proxy = not {hub.scheme, "all"}.isdisjoint(urllib.request.getproxies())
    if not is_name or Path(model).exists() or is_offline_mode() or by_proxy:
        return
    if any(isinstance(try_to_load_from_cache(model, file), str) for file in ("config.json", "adapter_config.json")):
        return
    address = hub.hostname or "", hub.port or (443 if hub.scheme == "https" else 80)
    try:
        socket.create_connection(address, SECONDS).close()
    except OSError as error:
        raise PolicyError(
            f'{name}: cannot load "{model}": no folder here and no model in the hub\'s cache has that name, and '
            f"{constants.ENDPOINT} cannot be reached ({error}). Name a folder written by save_pretrained (config.json "
            "and *.safetensors), or connect to the hub."
        ) from None
