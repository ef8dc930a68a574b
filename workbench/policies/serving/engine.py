"""What computes behind a server: the interface of an engine, and transformers as one."""

import copy
import logging
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import PolicyError
from workbench.policies import Completion
from workbench.policies.adapters import has_adapter, merged_weights
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.heads import output_layer
from workbench.policies.image_features import cached_image_features
from workbench.policies.loading import load_policy
from workbench.policies.serving.wire import ReadRequest, SampleRequest

_SAMPLES = 256  # numbers of each weight in a fingerprint
NAME = "teacher"

log = logging.getLogger("workbench")


class DeadEngineError(PolicyError):
    """An engine that cannot compute any more: its server ends itself."""


@runtime_checkable
class Engine(Protocol):
    """A model that computes. Use it from one thread at a time, but for `fault` and `close`.

    name         as in `workbench teacher --engine NAME`
    versions     of its packages
    policy       what encodes prompts, and the operations after the head; only transformers computes with its weights
    head         weight, and bias if there is one, of the output layer; empty if hidden states are logits already
    dtype        of hidden states
    fingerprint  of the weights at the start
    samples      whether it can sample
    """

    name: str
    versions: dict[str, str]
    policy: AutoregressivePolicy
    head: dict[str, Tensor]
    dtype: torch.dtype
    fingerprint: str
    samples: bool

    def hidden_states(self, request: ReadRequest) -> list[Float[Tensor, "T D"]]:
        """Hidden states that predict each answer token, by row. Raises: PolicyError if it reads other tokens."""

    def sample(self, request: SampleRequest) -> list[list[Completion]]:
        """Answers to each prompt, one for each of its seeds."""

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of all weights by name, of tied ones the first."""

    def dtypes(self) -> dict[str, torch.dtype]:
        """Data types in which it keeps the weights that `shapes` names; a wider one is converted when it is loaded."""

    def load(self, weights: dict[str, Tensor], *, last: bool) -> None:
        """Take some of the weights that `shapes` names. All have come with the last."""

    def fault(self) -> str:
        """Why it cannot compute any more; "" while it can."""

    def close(self) -> None:
        """End the processes that it started."""


class TransformersEngine:
    """The model by transformers, in this process."""

    name, samples = "transformers", True

    def __init__(self, policy: AutoregressivePolicy) -> None:
        refuse_diffusion(policy)
        self.policy = policy
        proof = policy.prove()
        for sentence in (*proof.sentences, *proof.differs):
            log.warning("%s: %s", policy.source, sentence)
        self.head = head_weights(policy)
        self.dtype = next(policy.model.parameters()).dtype
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.fingerprint = fingerprint(policy.model)

    @classmethod
    def start(cls, model: str | Path, **options: Any) -> "TransformersEngine":
        """Load a model folder or hub name; options as in load_policy. Pictures are read as runs send them."""
        return cls(load_policy(model, NAME, max_pixels=None, **options))

    def hidden_states(self, request: ReadRequest) -> list[Float[Tensor, "T D"]]:
        lengths = [len(ids) for ids in request.completions]
        by_row: list[Tensor] = [torch.empty(0)] * len(lengths)
        with cached_image_features():
            for rows in request.passes:
                prompts = [request.prompts[request.rows[row]] for row in rows]
                hidden = self.policy.forward(prompts, [request.completions[row] for row in rows]).hidden.cpu()
                for row, states in zip(rows, hidden.split([lengths[row] for row in rows]), strict=True):
                    by_row[row] = states
        return by_row

    def sample(self, request: SampleRequest) -> list[list[Completion]]:
        return with_decoding(self.policy, request).sample(request.prompts, request.seeds, request.options)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in unique_weights(self.policy.model).items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: value.dtype for name, value in unique_weights(self.policy.model).items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], *, last: bool) -> None:
        mine = unique_weights(self.policy.model)
        for name, value in weights.items():
            mine[name].copy_(value)

    def fault(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing: it has no process of its own."""


def refuse_diffusion(policy: AutoregressivePolicy) -> None:
    """Raise PolicyError for a model whose answers take several passes each."""
    if isinstance(policy, DiffusionPolicy):
        raise PolicyError(
            f"{policy.source} is a masked diffusion model, which needs several passes for each answer. Expected a "
            "model that answers from left to right. Set models.teacher to its folder instead."
        )


def head_weights(policy: AutoregressivePolicy) -> dict[str, Tensor]:
    """Weight and bias of a proven policy's output layer, in host memory; empty if its hidden states are logits.

    Raises: PolicyError for an output layer that is not linear.
    """
    if not policy.shortcuts.head:
        return {}
    layer = output_layer(policy.model)
    if type(layer) is not nn.Linear:
        raise PolicyError(
            f"the output layer of {policy.source} is {type(layer).__name__}, which runs cannot apply. Expected a "
            "linear layer. Merge an adapter into its model, or choose a model that is not quantized."
        )
    return {name: value.detach().cpu() for name, value in layer.named_parameters()}


def with_decoding(policy: AutoregressivePolicy, request: SampleRequest) -> AutoregressivePolicy:
    """The policy with a run's vocabulary and end tokens; the original keeps its own."""
    policy, decoding = copy.copy(policy), request.decoding
    policy.vocabulary, policy.placeholders = decoding["vocabulary"], list(decoding["never"])
    policy.stop_ids = frozenset(decoding["stop_ids"])
    policy.head = replace(policy.head, eos_ids=tuple(decoding["eos_ids"]))
    return policy


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
