"""A student's copy on a server, which samples in its place with the student's current weights.

Weights are sent before a generation if they changed since the last one. Their version names run and update, and the
server samples only if it has that version: after a restart, or if another run sent its weights, they are sent again.
"""

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import ConfigError, PolicyError, UnavailableError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.serving.addresses import Patience, split_addresses
from workbench.policies.serving.client import ConflictError, ServerClient
from workbench.policies.serving.engine import unique_weights
from workbench.policies.serving.served import check_pins, decoding, pins, sendable, template
from workbench.policies.serving.wire import PROTOCOL, SAMPLER, SampleRequest, pack, pack_sample, unpack_completions
from workbench.types import Prompt

if TYPE_CHECKING:
    from workbench.policies.autoregressive import AutoregressivePolicy

KEY = "sampling.server"
PART_BYTES = 2**29  # of weights in one request
TRIES = 5  # of a generation, if another run sends its weights meanwhile
OTHERS_S = 60.0  # in which the first process of a run sends the weights for all


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
        self.client = ServerClient(addresses, self.name, patience, SAMPLER)
        self.info = self.client.info()
        self._run, self._updates = run, 0
        self._rank = int(os.environ.get("RANK", "0"))

    @property
    def precision(self) -> str:
        """Data type of the server's weights."""
        return self.info["dtype"]

    def sample(
        self,
        student: "AutoregressivePolicy",
        prompts: list[Prompt],
        seeds: list[list[int]],
        options: SamplingOptions,
    ) -> list[list[Completion]]:
        """Sample one completion per seed of each prompt with the student's present weights.

        Raises: PolicyError if the server refuses the weights, or reads other prompts; UnavailableError if it fails.
        """
        if not prompts:
            return []
        opened = sendable(student.encoder, prompts)
        request = SampleRequest(
            opened,
            seeds,
            options,
            template(student.encoder, self.image_options),
            decoding(student),
            f"{self._run}-{self._updates}",
        )
        body = pack_sample(request)
        for _ in range(TRIES):
            try:
                _, facts = self.client.send(body, "/sample").result()
                break
            except ConflictError:
                self._send_weights(student, request.version, body)
        else:
            raise UnavailableError(
                f"{KEY}={self.source} got other weights during {TRIES} generations: another run uses it. Start a "
                "sampler for each run."
            )
        check_pins(self, prompts, pins(student.encoder, prompts, opened), facts["pins"])
        return unpack_completions(facts["completions"])

    def weights_changed(self) -> None:
        """Have the next generation send the weights. To be called after each update."""
        self._updates += 1

    def _send_weights(self, student: "AutoregressivePolicy", version: str, body: bytes) -> None:
        """Send all weights. Other processes than the first wait for it to send them."""
        deadline = time.monotonic() + OTHERS_S
        while self._rank and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                self.client.send(body, "/sample").result()
                return
            except ConflictError:
                continue
        parts = list(_parts(unique_weights(student.model)))
        for number, part in enumerate(parts, start=1):
            facts = {"protocol": PROTOCOL, "version": version, "last": number == len(parts)}
            self.client.send(pack(part, facts), "/weights").result()


@torch.no_grad()
def _parts(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Weights in host memory, PART_BYTES at a time."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, value in weights.items():
        num_bytes = value.numel() * value.element_size()
        if part and size + num_bytes > PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = value.detach().cpu()
        size += num_bytes
    yield part


def require_same_start(student: "AutoregressivePolicy", sampler: ServedSampler) -> None:
    """Raise PolicyError if a sampler has another architecture or vocabulary than the student."""
    kind = type(student.model).__name__
    theirs = sampler.info["class"], sampler.info["vocabulary"]
    rows = student.head.linear.weight.shape[0] if student.shortcuts.head else student.vocabulary
    if theirs != (kind, rows):
        raise PolicyError(
            f"{KEY}={sampler.source} has {theirs[0]} with {theirs[1]} tokens, and the student is {kind} with {rows}. "
            "Start the sampler with the model that the run starts from."
        )
