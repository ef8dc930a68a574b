"""Weights straight into the workers of a plain `vllm serve`: vLLM's own weight transfer.

This process joins a group with vLLM's workers and broadcasts the weights to them, bundle after bundle, packed as vLLM
packs them; requests announce the names and shapes of each bundle. With NCCL nothing crosses host memory or a disk.

The requests are those of vLLM 0.32, started with --weight-transfer-config '{"backend": "nccl"}'. NCCL itself was never
met: tests have a backend over gloo in the place of its communicator.
"""

import importlib
import importlib.util
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

import torch
from torch import Tensor

from workbench.policies.serving.client import ConflictError

T = TypeVar("T")
PACKED_BYTES = 2**29  # of weights in one broadcast
SETTLE_S = 5.0  # in which a request ends whose broadcast has failed
Post = Callable[[str, dict[str, Any]], Any]  # a request that is not tried again


@runtime_checkable
class Communicator(Protocol):
    """Rank 0 of a group with vLLM's workers."""

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Send a tensor of bytes to all workers, which expect as many."""


def _join_nccl(facts: dict[str, Any]) -> Communicator:
    return importlib.import_module("vllm.distributed.weight_transfer.nccl_common").trainer_init(facts)


JOIN: dict[str, Callable[[dict[str, Any]], Communicator]] = {"nccl": _join_nccl}  # by vLLM's name of a backend


def can_transfer(backend: str | None, device: torch.device) -> bool:
    """Return whether this process can join the group of a server that was started with this backend."""
    if backend not in JOIN or importlib.util.find_spec("vllm") is None:
        return False
    return backend != "nccl" or (device.type == "cuda" and torch.distributed.is_nccl_available())


class WeightTransfer:
    """Sends weights to the workers of one server.

    post  makes a request once; the group is formed anew after a failure
    """

    def __init__(self, backend: str, address: str, post: Post, device: torch.device) -> None:
        self.backend, self._address, self._post, self._device = backend, address, post, device
        self._group: Communicator | None = None
        self._last = ""  # version that this process sent last

    def send(self, bundles: Iterable[tuple[dict[str, Tensor], bool]], workers: int, present: str, version: str) -> None:
        """Send all weights. workers: of the server; present: version that it has, another one after a restart.

        Raises: ConflictError if it broke off; PolicyError if vLLM refuses them.
        """
        if self._group is None or present != self._last:
            self._group = self._join(workers)
        group, self._group, self._last = self._group, None, ""  # not used again after a failure
        self._post("/start_weight_update", {})
        for weights, _ in bundles:
            names = {
                "names": list(weights),
                "dtype_names": [str(value.dtype).removeprefix("torch.") for value in weights.values()],
                "shapes": [list(value.shape) for value in weights.values()],
            }
            self._beside("/update_weights", {"update_info": names}, partial(_broadcast, group, weights))
        self._post("/finish_weight_update", {})
        self._group, self._last = group, version

    def _join(self, workers: int) -> Communicator:
        """Form the group: this process is its rank 0, and a port of this machine the meeting point."""
        parts = urlsplit(self._address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((parts.hostname, port)) as to_server, socket.socket(to_server.family) as free:
                here = to_server.getsockname()[0]
                free.bind((here, 0))
                facts = {"master_address": here, "master_port": free.getsockname()[1], "world_size": workers + 1}
        except OSError as error:
            raise ConflictError(f"{self._address}: the transfer of weights cannot begin ({error})") from error
        packing = {"rank_offset": 1, "packed": True, "packed_buffer_size_bytes": PACKED_BYTES}
        return self._beside(
            "/init_weight_transfer_engine", {"init_info": facts | packing}, lambda: JOIN[self.backend](facts)
        )

    def _beside(self, path: str, values: dict[str, Any], work: Callable[[], T]) -> T:
        """Result of `work`, which waits for the workers, as they wait for it during a request.

        A daemon does it: it may wait for ever for workers that have ended, of which the request tells.
        """
        done: Future[T] = Future()
        request: Future[Any] = Future()
        for future, call in ((done, work), (request, lambda: self._post(path, values))):
            threading.Thread(target=self._fulfil, args=(future, call), daemon=True).start()
        wait((request, done), return_when=FIRST_EXCEPTION)
        if not request.done():
            wait((request,), SETTLE_S)
        if request.done():
            request.result()
        if error := done.exception():
            raise ConflictError(f"{self._address}{path}: the transfer of weights broke off ({error})") from error
        return done.result()

    def _fulfil(self, future: "Future[Any]", call: Callable[[], Any]) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has its own
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)


def _broadcast(group: Communicator, weights: dict[str, Tensor]) -> None:
    """Broadcast weights in chunks that end where vLLM's workers expect it."""
    packing = importlib.import_module("vllm.distributed.weight_transfer.packed_tensor")
    pairs = iter(weights.items())
    while chunk := packing.pack_tensors(pairs, lambda pair: pair[1], PACKED_BYTES):
        group.broadcast(chunk.packed_tensor, src=0)
        if chunk.packed_tensor.is_cuda:
            torch.cuda.current_stream().synchronize()
