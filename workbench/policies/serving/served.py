"""A teacher whose hidden states a server computes; encoding, head and vocabulary are local.

One request holds all rows of a view. `prefetch` sends it, and `forward` waits for it, so that a run computes its
student's views meanwhile.
"""

import logging
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig

from workbench.errors import PolicyError
from workbench.files.folders import new_folder
from workbench.policies import Completion, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.cache_folder import cache_folder
from workbench.policies.encoding import PromptEncoder, distinct
from workbench.policies.models import DTYPES, auto_class, load_model_processor
from workbench.policies.proof import Proof
from workbench.policies.serving.addresses import Patience, split_addresses
from workbench.policies.serving.client import Answer, ServerClient
from workbench.policies.serving.wire import (
    DECODING,
    TEMPLATE,
    Pin,
    ReadRequest,
    SampleRequest,
    WireError,
    pack_request,
    pack_sample,
    pin,
    unpack_completions,
    unpack_pins,
)
from workbench.policies.shortcuts import Shortcuts
from workbench.policies.view_output import Head, ViewOutput
from workbench.types import DenoisingTrace, Prompt

log = logging.getLogger("workbench")
Row = tuple[int, tuple[int, ...]]  # identity of a prompt, and the answer's ids


@dataclass
class _Sent:
    """A request on its way.

    rows   indices of the rows that `forward` has not taken yet, by row
    pins   of each distinct prompt, as read here
    """

    prompts: list[Prompt]
    completions: list[tuple[int, ...]]
    rows: dict[Row, list[int]]
    pins: list[Pin]
    answer: "Future[Answer]"
    states: list[Tensor] | None = None  # of each row, once checked


class ServedPolicy(AutoregressivePolicy):
    """The model is on the meta device: its configuration and classes are used, and no weight but the head's."""

    prefetches = True

    def __init__(
        self, model: nn.Module, processor: Any, name: str, client: ServerClient, info: dict[str, Any], device: str
    ) -> None:
        model.generation_config.eos_token_id = info["stop_ids"]
        super().__init__(model, processor, name, vocabulary=info["vocabulary"])
        self.source = ",".join(client.addresses)
        self.client, self.info, self._device = client, info, torch.device(device)
        self.encoder.context_length = self.encoder.max_prompt_length = info[
            "context_length"
        ]  # its engine may have less
        self.stop_ids = frozenset(info["stop_ids"])
        head = dict(info["head"]) | {"never": tuple(info["head"].get("never", ()))}
        self.shortcuts = Shortcuts(head=info["has_head"], pictures=False)
        self.proof = Proof(self.shortcuts, differs=tuple(info["differs"]), head=head)
        linear = self._linear(client.fetch("/head")) if info["has_head"] else nn.Identity()
        self.head = Head(linear.to(self._device), **head)
        self._sent: list[_Sent] = []
        self._compares_pixels = True
        self.image_options: dict[str, Any] = {}  # of the image processor

    def _linear(self, tensors: dict[str, Tensor]) -> nn.Linear:
        """The output layer. Raises PolicyError for other tensors."""
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if weight is None or weight.ndim != 2 or weight.shape[1] != self.head_width:
            shape = None if weight is None else list(weight.shape)
            raise mismatch(self, f"returned a head of shape {shape}", f"[vocabulary, {self.head_width}]")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise mismatch(self, f"returned a head's bias of shape {list(bias.shape)}", f"[{weight.shape[0]}]")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, assign=True)
        return linear.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, device: str | torch.device) -> None:
        """Move the head to a device, where hidden states go too."""
        self._device = torch.device(device)
        self.head.linear.to(self._device)

    @property
    def head_width(self) -> int:
        return self.info["width"]

    @property
    def retries(self) -> int:
        """Repeated requests so far."""
        return self.client.retries

    @property
    def facts(self) -> dict[str, str]:
        """What a run records of its teacher."""
        info = self.info
        versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
        return {name: info[name] for name in ("fingerprint", "model", "dtype", "engine")} | {"versions": versions}

    def prove(self) -> Proof:
        """The server's proof."""
        return self.proof

    def apply(self, proof: Proof) -> None:
        """Nothing: the shortcuts are the server's."""

    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        """Sample on the server; it depends only on prompt and seed. Raises: PolicyError if its engine only scores."""
        if not prompts:
            return []
        self.require_samples("it is to answer prompts")
        opened = sendable(self.encoder, prompts)
        request = SampleRequest(opened, seeds, options, self._template(), decoding(self))
        _, facts = self.client.send(pack_sample(request), "/sample").result()
        check_pins(self, prompts, pins(self.encoder, prompts, opened), facts)
        return completions_of(self, facts, seeds)

    def require_samples(self, why: str) -> None:
        """Raise PolicyError, with the reason to sample, if the server's engine only scores."""
        if not self.info["samples"]:
            raise PolicyError(
                f"{self.name}: {self.source} only scores answers (engine {self.info['engine']}), and {why}. Start it "
                "with --engine transformers, or have it only score (evaluation.teacher=false)."
            )

    def prefetch(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]], passes: list[list[int]] | None = None
    ) -> None:
        """Send rows to a server; `forward` takes them. passes: rows of each of the server's forward passes."""
        rows = [row for row, ids in enumerate(completions) if ids]
        if not rows:
            return
        position = {row: idx for idx, row in enumerate(rows)}
        passes = [[position[row] for row in part if row in position] for part in passes or [rows]]
        prompts, completions = [prompts[row] for row in rows], [completions[row] for row in rows]
        unique, prompt_rows = distinct(prompts)
        opened = sendable(self.encoder, unique)
        read = pins(self.encoder, unique, opened, pixels=self._compares_pixels)
        passes = [part for part in passes if part]
        request = ReadRequest(opened, prompt_rows, completions, passes, self._template(), self._compares_pixels)
        waiting: dict[Row, list[int]] = {}
        for idx, row in enumerate(zip(map(id, prompts), completions, strict=True)):
            waiting.setdefault(row, []).append(idx)
        answer = self.client.send(pack_request(request), "/read")
        self._sent.append(_Sent(prompts, completions, waiting, read, answer))

    def _template(self) -> dict[str, Any]:
        return template(self.encoder, self.image_options)

    @torch.no_grad()
    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        """Hidden states of all completion positions, row after row: those of `prefetch`, or requested now."""
        wanted = [row for row in zip(map(id, prompts), completions, strict=True) if row[1]]
        if not wanted:
            empty = torch.zeros(0, self.head_width, dtype=DTYPES[self.info["dtype"]], device=self.device)
            return ViewOutput.of(empty, self.head, self.vocabulary)
        sent = next((sent for sent in self._sent if _holds(sent, wanted)), None)
        if sent is None:
            self.prefetch(prompts, completions)
            sent = self._sent[-1]
        try:
            states = sent.states = sent.states or self._checked(sent)
        except BaseException:
            self._sent.remove(sent)
            raise
        hidden = torch.cat([states[sent.rows[row].pop(0)] for row in wanted])
        if not any(sent.rows.values()):
            self._sent.remove(sent)
        return ViewOutput.of(hidden.to(self.device), self.head, self.vocabulary)

    def _checked(self, sent: _Sent) -> list[Float[Tensor, "T D"]]:
        """Hidden states by row. Raises PolicyError if the server read something else, or they are not finite."""
        tensors, facts = sent.answer.result()
        hidden, lengths = tensors.get("hidden"), [len(ids) for ids in sent.completions]
        if hidden is None or hidden.shape != (sum(lengths), self.head_width):
            shape = None if hidden is None else list(hidden.shape)
            raise mismatch(self, f"returned hidden states of shape {shape}", f"[{sum(lengths)}, {self.head_width}]")
        check_pins(self, distinct(sent.prompts)[0], sent.pins, facts)
        self._compares_pixels = False
        if not torch.isfinite(hidden).all():
            raise mismatch(self, "returned hidden states that are infinite or NaN", "numbers")
        return list(hidden.split(lengths))


def sendable(encoder: PromptEncoder, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts with their images as the encoder opens them, each image once."""
    images = {id(image): image for prompt in prompts for image in prompt.all_images}
    opened = {key: encoder.open(image) for key, image in images.items()}
    return [_with_images(prompt, opened) for prompt in prompts]


def template(encoder: PromptEncoder, image_options: dict[str, Any]) -> dict[str, Any]:
    """How an encoder encodes, for a server."""
    values = encoder.system_prompt, encoder.chat_template_kwargs, image_options
    return dict(zip(TEMPLATE, values, strict=True))


def decoding(policy: AutoregressivePolicy) -> dict[str, Any]:
    """How a policy ends answers, for a server."""
    values = policy.vocabulary, sorted(policy.stop_ids), list(policy.head.eos_ids), policy.placeholders
    return dict(zip(DECODING, values, strict=True))


def pins(encoder: PromptEncoder, prompts: list[Prompt], opened: list[Prompt], *, pixels: bool = False) -> list[Pin]:
    """Pins of prompts; `opened` are they as `sendable` returns them."""
    pairs = zip(prompts, opened, strict=True)
    return [pin(encoder.encode(prompt), list(read.all_images), pixels=pixels) for prompt, read in pairs]


def check_pins(policy: Any, prompts: list[Prompt], mine: list[Pin], facts: dict[str, Any]) -> None:
    """Compare what was read here with what a server read, by the pins in its answer's facts.

    Raises PolicyError for other ids or pictures, or if pins are missing; warns of other processed pictures.
    """
    try:
        theirs = unpack_pins(facts, len(prompts))
    except WireError as error:
        raise mismatch(policy, f"gave an incomplete answer: {error}", "checksums of each prompt") from None
    for prompt, entry, read in zip(prompts, mine, theirs, strict=True):
        where = f'prompt "{prompt.key}"'
        if (entry.ids, entry.length) != (read.ids, read.length):
            raise mismatch(
                policy, f"read {where} as {read.length} other token ids", f"those of this run, {entry.length}"
            )
        if entry.pictures != read.pictures:
            raise mismatch(policy, f"read other pictures of {where}", "those that were sent")
        if entry.pixels != read.pixels:
            log.warning(
                "%s: the server (%s) processes the pictures of %s to other numbers than this run, as torchvision and "
                "Pillow do where a picture is resized (up to 1/255). Install, or remove, torchvision on one side",
                *(policy.name, policy.source, where),
            )


def completions_of(policy: Any, facts: dict[str, Any], seeds: list[list[int]]) -> list[list[Completion]]:
    """Completions of an answer, one for each seed of each prompt. Raises PolicyError for others."""
    try:
        return unpack_completions(facts, [len(values) for values in seeds])
    except WireError as error:
        raise mismatch(policy, f"gave an incomplete answer: {error}", "a completion for each seed") from None


def mismatch(policy: Any, what: str, expected: str) -> PolicyError:
    """Error for a server that read or returned something else."""
    return PolicyError(
        f"{policy.name}: {policy.source} {what}. Expected {expected}. Use one version of the workbench and of "
        "transformers on both sides, and the same model files."
    )


def _holds(sent: _Sent, wanted: list[Row]) -> bool:
    return all(len(sent.rows.get(row, ())) >= count for row, count in Counter(wanted).items())


def _with_images(prompt: Prompt, opened: dict[int, Any]) -> Prompt:
    """The prompt with its images as the encoder opens them."""
    images = tuple(opened[id(image)] for image in prompt.images)
    history = tuple(
        type(turn)(turn.role, turn.text, tuple(opened[id(image)] for image in turn.images)) for turn in prompt.history
    )
    return Prompt(images, prompt.text, history, key=prompt.key)


def connect(model: str | Path, name: str, patience: Patience) -> tuple[ServerClient, dict[str, Any], Path]:
    """Client of a teacher's servers, their facts, and a folder with the files that encode prompts.

    Raises: PolicyError or ConfigError if the addresses are not servers of one teacher.
    """
    client = ServerClient(split_addresses(str(model), name), name, patience)
    info = client.info()
    files = {key: bytes(value.numpy()) for key, value in client.fetch("/files").items()}
    digest = blake2b(b"".join(key.encode() + value for key, value in sorted(files.items())), digest_size=16).hexdigest()
    folder = cache_folder() / "teachers" / digest
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new_folder(folder) as partial:
                for key, value in files.items():
                    (partial / Path(key).name).write_bytes(value)
        except FileExistsError:  # another process was faster
            pass
    return client, info, folder


def load_served(
    model: str | Path,
    name: str,
    *,
    device: str,
    patience: Patience,
    trust_remote_code: bool = False,
    image_processor: dict | None = None,
) -> ServedPolicy:
    """Policy of a served teacher. Raises PolicyError, ConfigError or UnavailableError if the servers do not fit."""
    client, info, folder = connect(model, name, patience)
    options = {"trust_remote_code": trust_remote_code}
    processor, _ = load_model_processor(folder, name, image_processor=image_processor, **options)
    config = AutoConfig.from_pretrained(folder, **options)
    with torch.device("meta"):
        meta = auto_class(config).from_config(config, dtype=DTYPES[info["dtype"]], **options)
    policy = ServedPolicy(meta.eval(), processor, name, client, info, device)
    policy.source, policy.image_options = model, image_processor or {}
    return policy


def load_served_encoder(
    model: str | Path, name: str, *, patience: Patience, image_processor: dict | None = None, **options: Any
) -> PromptEncoder:
    """What encodes prompts for a served teacher."""
    _, info, folder = connect(model, name, patience)
    processor, _ = load_model_processor(folder, name, image_processor=image_processor, **options)
    return PromptEncoder(processor, max_prompt_length=info["context_length"])
