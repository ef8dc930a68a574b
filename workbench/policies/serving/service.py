"""What a server answers, with any engine: facts about its model, hidden states of answers, and samples."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import PolicyError, PromptTooLongError
from workbench.policies import Completion
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.image_size import set_image_options
from workbench.policies.serving.engine import NAME, Engine
from workbench.policies.serving.wire import (
    PROTOCOL,
    SAMPLER,
    TEACHER,
    Pin,
    ReadRequest,
    SampleRequest,
    encoding_digest,
    pin,
)


class TeacherService:
    """A frozen model that scores answers, and samples them if its engine can. Use it from one thread at a time.

    files  what encodes prompts: configuration, tokenizer, processor, chat template; by name
    """

    kind = TEACHER

    def __init__(self, engine: Engine) -> None:
        self.engine, self._template = engine, {}
        self._image_processor = getattr(engine.policy.processor, "image_processor", None)
        self.files = _files_of(engine.policy)
        self._files_digest = encoding_digest(self.files)

    @property
    def info(self) -> dict[str, Any]:
        """Facts for a run, in JSON types."""
        engine, policy, proof = self.engine, self.engine.policy, self.engine.policy.prove()
        return {
            "service": self.kind,
            "protocol": PROTOCOL,
            "model": str(policy.source),
            "class": type(policy.model).__name__,
            "dtype": short(engine.dtype),
            "engine": engine.name,
            "versions": engine.versions,
            "samples": engine.samples,
            "fingerprint": engine.fingerprint,
            "files": self._files_digest,
            "vocabulary": policy.vocabulary,
            "width": policy.head_width,
            "context_length": policy.context_length,
            "stop_ids": sorted(policy.stop_ids),
            "has_head": proof.shortcuts.head,
            "head": proof.head,
            "differs": list(proof.differs),
        }

    @torch.no_grad()
    def read(self, request: ReadRequest) -> tuple[Float[Tensor, "N D"], list[Pin]]:
        """Hidden states that predict each answer token, row after row, and how each prompt was read.

        Raises: PolicyError or DataError for a prompt that cannot be encoded or is too long with its answer, and for
        token ids outside of the vocabulary.
        """
        self._set_template(request.template)
        policy = self.engine.policy
        pins = [
            pin(policy.encoder.encode(prompt), prompt.all_images, pixels=request.pixels)  # type: ignore[arg-type]
            for prompt in request.prompts
        ]
        self._check_answers(request, pins)
        states = self.engine.hidden_states(request)
        empty = torch.zeros(0, policy.head_width, dtype=self.engine.dtype)
        return torch.cat([empty, *(rows for rows in states if len(rows))]), pins

    def sample(self, request: SampleRequest) -> tuple[list[list[Completion]], list[Pin]]:
        """Answers to each prompt, one for each of its seeds, and how each prompt was read."""
        self._set_template(request.template)
        encoder = self.engine.policy.encoder
        pins = [pin(encoder.encode(prompt), prompt.all_images, pixels=False) for prompt in request.prompts]
        return self.engine.sample(request), pins

    def _set_template(self, template: dict[str, Any]) -> None:
        """Encode as a run does: its system prompt, arguments of the chat template, options of the image processor."""
        if template == self._template:
            return
        encoder, self._template = self.engine.policy.encoder, {}
        encoder.forget()
        if self._image_processor is not None:
            encoder.processor.image_processor = self._image_processor
        set_image_options(encoder.processor, template["image_processor"], NAME)
        encoder.set_template(template["system_prompt"], template["chat_template_kwargs"], NAME)
        self._template = template

    def _check_answers(self, request: ReadRequest, pins: list[Pin]) -> None:
        policy = self.engine.policy
        longest, size = policy.context_length, policy.vocabulary
        for row, ids in zip(request.rows, request.completions, strict=True):
            if longest is not None and pins[row].length + len(ids) > longest:
                raise PromptTooLongError(
                    f'prompt "{request.prompts[row].key}" has {pins[row].length} tokens and its answer {len(ids)}. '
                    f"Expected at most {longest} together. Shorten one of them, or use smaller pictures."
                )
            if not all(0 <= token < size for token in ids):
                raise PolicyError(
                    f'an answer to "{request.prompts[row].key}" has token ids from {min(ids)} to {max(ids)}. Expected '
                    f"0 to {size - 1}, the vocabulary of {policy.source}. Choose models of one family."
                )


class SamplerService(TeacherService):
    """A model whose weights runs replace by those of their student, to have it sample.

    version  of the weights, as their run names them; "" = those of the start, or replaced in part
    """

    kind = SAMPLER

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.version = self._loading = ""
        self._loaded: set[str] = set()
        self._shapes, dtypes = engine.shapes(), engine.dtypes()
        self._precisions = {
            name: short(dtype) for name, dtype in dtypes.items() if dtype != engine.dtype and dtype.is_floating_point
        }

    @property
    def info(self) -> dict[str, Any]:
        """Facts for a run, in JSON types. precisions: of weights in another than `dtype`, by name."""
        return super().info | {"precisions": self._precisions}

    def sample(self, request: SampleRequest) -> tuple[list[list[Completion]], list[Pin]]:
        """As for a teacher. Raises: OtherWeights if the weights are not those of the request."""
        if request.version != self.version:
            raise OtherWeights(f"the weights are of version {self.version!r}, not {request.version!r}")
        return super().sample(request)

    def load_part(self, weights: dict[str, Tensor], version: str, *, last: bool) -> None:
        """Load some of a version's weights. Raises PolicyError for those of another model, or if some are missing."""
        if version != self._loading:
            self._loading, self._loaded, self.version = version, set(), ""
        for name, value in weights.items():
            if self._shapes.get(name) != value.shape:
                shape = list(self._shapes[name]) if name in self._shapes else "no such weight"
                raise PolicyError(
                    f"weight {name} has shape {list(value.shape)}, and here {shape}. Start the sampler with the model "
                    "that the run starts from."
                )
        self._loaded |= weights.keys()
        if last and self._loaded != self._shapes.keys():
            missing = sorted(self._shapes.keys() - self._loaded)
            raise PolicyError(f"{len(missing)} weights are missing ({', '.join(missing[:3])}). Send all of a version.")
        self.engine.load(weights, last=last)
        if last:
            self.version, self._loading = version, ""


class OtherWeights(PolicyError):
    """A sampler has other weights than a request asks for."""


def short(dtype: torch.dtype) -> str:
    """Name of a data type, as in configurations."""
    return str(dtype).removeprefix("torch.")


def _files_of(policy: AutoregressivePolicy) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        policy.processor.save_pretrained(name)
        policy.model.config.save_pretrained(name)
        return {file.name: file.read_bytes() for file in sorted(Path(name).iterdir()) if file.is_file()}
