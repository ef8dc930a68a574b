"""The model behind a server of `workbench teacher`, by transformers: what a run asks about it, and reads of answers."""

import copy
import logging
import tempfile
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import PolicyError, PromptTooLongError
from workbench.policies import Completion
from workbench.policies.adapters import has_adapter, merged_weights
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.heads import output_layer
from workbench.policies.image_features import cached_image_features
from workbench.policies.image_size import set_image_options
from workbench.policies.loading import load_policy
from workbench.policies.serving.wire import PROTOCOL, SAMPLER, TEACHER, Pin, ReadRequest, SampleRequest, pin
from workbench.types import Prompt

_SAMPLES = 256  # numbers of each weight in a fingerprint
NAME = "teacher"

log = logging.getLogger("workbench")


class TransformersEngine:
    """A frozen model that scores and samples answers. Use it from one thread at a time.

    files  what encodes prompts: configuration, tokenizer, processor, chat template; by name
    """

    kind = TEACHER

    def __init__(self, policy: AutoregressivePolicy) -> None:
        if isinstance(policy, DiffusionPolicy):
            raise PolicyError(
                f"{policy.source} is a masked diffusion model, which needs several passes for each answer. Expected a "
                "model that answers from left to right. Set models.teacher to its folder instead."
            )
        self.policy, self._template = policy, {}
        self._image_processor = getattr(policy.processor, "image_processor", None)
        proof = policy.prove()
        for sentence in (*proof.sentences, *proof.differs):
            log.warning("%s: %s", policy.source, sentence)
        self._require_linear_head()
        self.files = _files_of(policy)
        self.fingerprint = fingerprint(policy.model)

    @classmethod
    def load(cls, model: str | Path, *, dtype: str, device: str, **options: Any) -> "TransformersEngine":
        """Load a model folder or hub name; options as in load_policy. Pictures are read as runs send them."""
        return cls(load_policy(model, NAME, dtype=dtype, device=device, max_pixels=None, **options))

    @property
    def info(self) -> dict[str, Any]:
        """Facts for a run, in JSON types."""
        policy, proof = self.policy, self.policy.prove()
        return {
            "service": self.kind,
            "protocol": PROTOCOL,
            "model": str(policy.source),
            "class": type(policy.model).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "engine": "transformers",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "fingerprint": self.fingerprint,
            "vocabulary": policy.vocabulary,
            "width": policy.head_width,
            "context_length": policy.context_length,
            "stop_ids": sorted(policy.stop_ids),
            "has_head": proof.shortcuts.head,
            "head": proof.head,
            "differs": list(proof.differs),
        }

    @property
    def dtype(self) -> torch.dtype:
        return next(self.policy.model.parameters()).dtype

    @property
    def head(self) -> dict[str, Tensor]:
        """Weight, and bias if there is one, of the output layer; empty if hidden states are logits already."""
        if not self.policy.shortcuts.head:
            return {}
        layer = output_layer(self.policy.model)
        return {name: value.detach().cpu() for name, value in layer.named_parameters()}

    @torch.no_grad()
    def read(self, request: ReadRequest) -> tuple[Float[Tensor, "N D"], list[Pin]]:
        """Hidden states that predict each answer token, row after row, and how each prompt was read.

        Raises: PolicyError or DataError for a prompt that cannot be encoded or is too long with its answer, and for
        token ids outside of the vocabulary.
        """
        self._set_template(request.template)
        encoder = self.policy.encoder
        pins = [
            pin(encoder.encode(prompt), prompt.all_images, pixels=request.pixels)  # type: ignore[arg-type]
            for prompt in request.prompts
        ]
        self._check_answers(request, pins)
        lengths = [len(ids) for ids in request.completions]
        by_row: list[Tensor] = [torch.empty(0)] * len(lengths)
        with cached_image_features():
            for rows in request.passes:
                prompts: list[Prompt] = [request.prompts[request.rows[row]] for row in rows]
                hidden = self.policy.forward(prompts, [request.completions[row] for row in rows]).hidden.cpu()
                for row, states in zip(rows, hidden.split([lengths[row] for row in rows]), strict=True):
                    by_row[row] = states
        empty = torch.zeros(0, self.policy.head_width, dtype=self.dtype)
        return torch.cat([empty, *(states for states in by_row if len(states))]), pins

    def sample(self, request: SampleRequest) -> tuple[list[list[Completion]], list[Pin]]:
        """Answers to each prompt, one for each of its seeds, and how each prompt was read."""
        self._set_template(request.template)
        policy, decoding = copy.copy(self.policy), request.decoding  # the original keeps its vocabulary
        policy.vocabulary, policy.placeholders = decoding["vocabulary"], list(decoding["never"])
        policy.stop_ids = frozenset(decoding["stop_ids"])
        policy.head = replace(policy.head, eos_ids=tuple(decoding["eos_ids"]))
        pins = [pin(policy.encoder.encode(prompt), prompt.all_images, pixels=False) for prompt in request.prompts]
        return policy.sample(request.prompts, request.seeds, request.options), pins

    def _set_template(self, template: dict[str, Any]) -> None:
        """Encode as a run does: its system prompt, arguments of the chat template, options of the image processor."""
        if template == self._template:
            return
        encoder, self._template = self.policy.encoder, {}
        encoder.forget()
        if self._image_processor is not None:
            encoder.processor.image_processor = self._image_processor
        set_image_options(encoder.processor, template["image_processor"], NAME)
        encoder.set_template(template["system_prompt"], template["chat_template_kwargs"], NAME)
        self._template = template

    def _check_answers(self, request: ReadRequest, pins: list[Pin]) -> None:
        longest, size = self.policy.context_length, self.policy.vocabulary
        for row, ids in zip(request.rows, request.completions, strict=True):
            if longest is not None and pins[row].length + len(ids) > longest:
                raise PromptTooLongError(
                    f'prompt "{request.prompts[row].key}" has {pins[row].length} tokens and its answer {len(ids)}. '
                    f"Expected at most {longest} together. Shorten one of them, or use smaller pictures."
                )
            if not all(0 <= token < size for token in ids):
                raise PolicyError(
                    f'an answer to "{request.prompts[row].key}" has token ids from {min(ids)} to {max(ids)}. Expected '
                    f"0 to {size - 1}, the vocabulary of {self.policy.source}. Choose models of one family."
                )

    def _require_linear_head(self) -> None:
        layer = output_layer(self.policy.model)
        if self.policy.shortcuts.head and type(layer) is not nn.Linear:
            raise PolicyError(
                f"the output layer of {self.policy.source} is {type(layer).__name__}, which runs cannot apply. "
                "Expected a linear layer. Merge an adapter into its model, or choose a model that is not quantized."
            )


class SamplerEngine(TransformersEngine):
    """A model whose weights runs replace by those of their student, to have it sample.

    version  of the weights, as their run names them; "" = those of the start, or replaced in part
    """

    kind = SAMPLER

    def __init__(self, policy: AutoregressivePolicy) -> None:
        super().__init__(policy)
        self.version = self._loading = ""
        self._loaded: set[str] = set()

    def sample(self, request: SampleRequest) -> tuple[list[list[Completion]], list[Pin]]:
        """As for a teacher. Raises: OtherWeights if the weights are not those of the request."""
        if request.version != self.version:
            raise OtherWeights(f"the weights are of version {self.version!r}, not {request.version!r}")
        return super().sample(request)

    @torch.no_grad()
    def load_part(self, weights: dict[str, Tensor], version: str, *, last: bool) -> None:
        """Copy some of a version's weights. Raises PolicyError for those of another model, or if some are missing."""
        if version != self._loading:
            self._loading, self._loaded, self.version = version, set(), ""
        mine = unique_weights(self.policy.model)
        for name, value in weights.items():
            if name not in mine or mine[name].shape != value.shape:
                shape = list(mine[name].shape) if name in mine else "no such weight"
                raise PolicyError(
                    f"weight {name} has shape {list(value.shape)}, and here {shape}. Start the sampler with the model "
                    "that the run starts from."
                )
            mine[name].copy_(value)
        self._loaded |= weights.keys()
        if last and self._loaded != mine.keys():
            missing = sorted(mine.keys() - self._loaded)
            raise PolicyError(f"{len(missing)} weights are missing ({', '.join(missing[:3])}). Send all of a version.")
        if last:
            self.version, self._loading = version, ""


class OtherWeights(PolicyError):
    """A sampler has other weights than a request asks for."""


def unique_weights(model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights and buffers by name, adapters merged; of tied ones the first. weights: of some modules; None = all."""
    weights = model.state_dict() if weights is None else weights
    merged = merged_weights(model, weights) if has_adapter(model) else weights
    unique: dict[int, str] = {}
    for name, value in merged.items():
        unique.setdefault(value.data_ptr() if value.numel() else id(value), name)
    return {name: merged[name] for name in unique.values()}


def fingerprint(model: nn.Module) -> str:
    """Digest of all weights' names, types, shapes and of some numbers of each."""
    digest = blake2b(digest_size=16)
    for name, value in model.named_parameters():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        digest.update(flat[:: max(1, flat.numel() // _SAMPLES)].cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _files_of(policy: AutoregressivePolicy) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        policy.processor.save_pretrained(name)
        policy.model.config.save_pretrained(name)
        return {file.name: file.read_bytes() for file in sorted(Path(name).iterdir()) if file.is_file()}
