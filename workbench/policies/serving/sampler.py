"""A student's copy on a server, which samples in its place with the student's current weights.

Weights are sent before a generation if they changed since the last one. Their version names run and update, and the
server samples only if it has that version: after a restart, or if another run sent its weights, they are sent again.
Rank 0 sends them for all ranks; sharded weights are gathered a layer at a time. So all ranks take part in sending
(`sample_together`), before each samples its own prompts.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from workbench.distributed import ALONE, ProcessGroup
from workbench.errors import ConfigError, PolicyError, UnavailableError
from workbench.policies import Completion, Policy, SamplingOptions
from workbench.policies.fsdp import class_name, single_policies, unsharded
from workbench.policies.models import DTYPES
from workbench.policies.serving.addresses import Patience, split_addresses
from workbench.policies.serving.client import Answer, ConflictError, ServerClient
from workbench.policies.serving.engine import unique_weights
from workbench.policies.serving.served import check_pins, completions_of, decoding, pins, sendable, template
from workbench.policies.serving.wire import PROTOCOL, SAMPLER, SampleRequest, pack, pack_sample
from workbench.types import Prompt

if TYPE_CHECKING:
    from workbench.policies.autoregressive import AutoregressivePolicy

R = TypeVar("R")

KEY = "sampling.server"
PART_BYTES = 2**29  # of weights in one request
TRIES = 5  # of a generation, if another run sends its weights meanwhile


class ServedSampler:
    """Samples for one student.

    run            name of the run's weights, equal in all its processes
    image_options  of the student's image processor
    """

    def __init__(self, address: str, patience: Patience, *, run: str, image_options: dict) -> None:
        addresses = split_addresses(address, KEY)
        if len(addresses) > 1:
            raise ConfigError(f"{KEY}={address} names {len(addresses)} servers. Expected one.")
        self.name, self.source, self.image_options = "sampler", addresses[0], image_options
        self.client = self._connect(addresses, patience)
        self.info = self.client.info()
        self._run, self._updates, self._sent = run, 0, ""
        self._begun: dict[bytes, Future[Answer]] = {}  # generations in progress, by request
        self._is_main = os.environ.get("RANK", "0") == "0"

    def _connect(self, addresses: tuple[str, ...], patience: Patience) -> ServerClient:
        return ServerClient(addresses, self.name, patience, SAMPLER)

    def require_fits(self, student: "AutoregressivePolicy", options: SamplingOptions) -> None:
        """Raise PolicyError if the server has another architecture or vocabulary than the student, or lacks options."""
        mine = class_name(student.model), head_rows(student)
        theirs = self.info["class"], self.info["vocabulary"]
        if theirs != mine:
            raise PolicyError(
                f"{KEY}={self.source} has {theirs[0]} with {theirs[1]} tokens, and the student is {mine[0]} with "
                f"{mine[1]}. Start the sampler with the model that the run starts from."
            )

    @property
    def precision(self) -> str:
        """Data type of the server's weights, but for a few that it keeps in another."""
        return self.info["dtype"]

    def _sendable(self, name: str, weight: Tensor) -> Tensor:
        """A copy of a weight in host memory, in the server's data type for it if that is narrower.

        The server would round it likewise, once it has come.
        """
        theirs = DTYPES[self.info["precisions"].get(name, self.precision)]
        is_wider = weight.is_floating_point() and weight.dtype.itemsize > theirs.itemsize
        return weight.detach().to("cpu", theirs if is_wider else weight.dtype, copy=True)

    def sample(
        self,
        student: "AutoregressivePolicy",
        prompts: list[Prompt],
        seeds: list[list[int]],
        options: SamplingOptions,
    ) -> list[list[Completion]]:
        """Sample one completion per seed of each prompt with the weights that `send_weights` sent.

        Raises: ConflictError if the server has others; PolicyError if it reads other prompts; UnavailableError if it
        fails.
        """
        if not prompts:
            return []
        opened, body = self._request(student, prompts, seeds, options)
        sent = self._begun.pop(_digest(body), None) or self.client.send(body, "/sample")
        _, facts = sent.result()
        check_pins(self, prompts, pins(student.encoder, prompts, opened), facts)
        return completions_of(self, facts, seeds)

    def prefetch(
        self,
        student: "AutoregressivePolicy",
        prompts: list[Prompt],
        seeds: list[list[int]],
        options: SamplingOptions,
    ) -> None:
        """Begin what `sample` with the same arguments and weights then waits for."""
        if prompts:
            _, body = self._request(student, prompts, seeds, options)
            self._begun[_digest(body)] = self.client.send(body, "/sample")

    def _request(
        self,
        student: "AutoregressivePolicy",
        prompts: list[Prompt],
        seeds: list[list[int]],
        options: SamplingOptions,
    ) -> tuple[list[Prompt], bytes]:
        """The prompts with their pictures opened, and the request as bytes."""
        opened = sendable(student.encoder, prompts)
        encoded_by = template(student.encoder, self.image_options)
        request = SampleRequest(opened, seeds, options, encoded_by, decoding(student), self._version)
        return opened, pack_sample(request)

    def weights_changed(self) -> None:
        """Have the next generation send the weights. To be called after each update."""
        self._updates += 1

    def send_weights(self, student: "AutoregressivePolicy") -> None:
        """Send the student's present weights, unless they were sent. All ranks take part, and rank 0 sends.

        Raises: PolicyError if the server refuses them; UnavailableError if it fails.
        """
        if self._sent == self._version:
            return
        if self._is_main:
            parts = (self._named(student, part) for part in _weights(student))
            self._send(_bundles(parts, self._sendable))
        elif student.shards is not None:
            for _ in _weights(student):
                pass  # gathered for rank 0
        self._sent = self._version

    def _named(self, student: "AutoregressivePolicy", weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights by the names that the server has for them."""
        return weights

    def forget_sent(self) -> None:
        """Have the weights sent again, as the server has others."""
        self._sent = ""

    @property
    def _version(self) -> str:
        return f"{self._run}-{self._updates}"

    def _send(self, bundles: Iterator[tuple[dict[str, Tensor], bool]]) -> None:
        """Send bundles of weights, each while the next one is gathered."""
        sent: Future[Answer] | None = None
        try:
            for weights, is_last in bundles:
                if sent is not None:
                    sent.result()
                facts = {"protocol": PROTOCOL, "version": self._version, "last": is_last}
                sent = self.client.send(pack(weights, facts), "/weights")
            if sent is not None:
                sent.result()
        finally:
            for _ in bundles:
                pass  # after an error too, other ranks gather to the end


def sample_together(policies: Iterable[Policy], work: Callable[[], R], process_group: ProcessGroup = ALONE) -> R:
    """Result of `work`, in which all ranks sample with these policies: inside, weights are unsharded, and an engine or
    a server has the weights of the policies that it samples for. The roots must be unsharded (`unsharded_root`).

    Raises: UnavailableError if another run sends its weights to the server again and again.
    """
    by_id = {id(policy): policy for policy in single_policies(policies)}
    served = {key: policy for key, policy in by_id.items() if policy.sampler is not None}
    with unsharded(*policies):
        for policy in by_id.values():
            if policy.engine is not None and policy.shards is not None:
                _load_engine(policy, process_group)
        for _ in range(TRIES if served else 0):
            try:
                with process_group.propagate_errors():
                    for policy in served.values():
                        policy.sampler.send_weights(policy)
                    process_group.all_gather_object("sent")
                    result = work()
                    process_group.all_gather_object("sampled")
                    return result
            except ConflictError:  # on any rank
                for policy in served.values():
                    policy.sampler.forget_sent()
        if not served:
            return work()
    raise UnavailableError(
        f"{KEY}: the sampler got other weights during {TRIES} generations, so another run uses it. Start a sampler for "
        "each run."
    )


def _load_engine(policy: "AutoregressivePolicy", process_group: ProcessGroup) -> None:
    """Give the engine of each rank a sharded policy's weights, as copies: vLLM keeps them until a layer is complete."""
    parts = _weights(policy)
    named = (pair for part in parts for pair in revert_weight_conversion(policy.model, part).items())
    with process_group.propagate_errors(), torch.autocast(policy.device.type, enabled=False):
        try:
            policy.engine.load((name, value.clone()) for name, value in named)
        finally:
            for _ in parts:
                pass  # after an error too, other ranks gather to the end
        process_group.all_gather_object("loaded")


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


@torch.no_grad()
def _weights(student: "AutoregressivePolicy") -> Iterator[dict[str, Tensor]]:
    """Weights by name, adapters merged, of tied ones the first; of sharded weights a layer at a time."""
    if student.shards is None:
        yield unique_weights(student.model)
        return
    for modules in student.shards.parts():
        tensors = {name: value for path, module in modules for name, value in _saved(path, module)}
        yield unique_weights(student.model, tensors)


def _saved(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a model's state_dict has of one module. It cannot be called, since it would reshard all units."""
    for key, value in (*module._parameters.items(), *module._buffers.items()):
        if value is not None and key not in module._non_persistent_buffers_set:
            yield f"{path}.{key}", value.detach()


def _bundles(
    parts: Iterable[dict[str, Tensor]], sendable: Callable[[str, Tensor], Tensor]
) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """Weights as they are sent, about PART_BYTES at a time, and whether they are the last."""
    bundle: dict[str, Tensor] = {}
    size = 0
    for name, weight in (pair for part in parts for pair in part.items()):
        value = sendable(name, weight)
        if bundle and size + value.nbytes > PART_BYTES:
            yield bundle, False
            bundle, size = {}, 0
        bundle[name] = value
        size += value.nbytes
    yield bundle, True


def head_rows(student: "AutoregressivePolicy") -> int:
    """Number of tokens that the student's output layer has, padding included."""
    return student.head.linear.weight.shape[0] if student.shortcuts.head else student.vocabulary
