"""Policies: models that sample answers (`sample`) and compute hidden states of given answers (`forward`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch

from workbench.policies.row_sizes import RowSize
from workbench.policies.view_output import ViewOutput
from workbench.types import DenoisingTrace, Prompt


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    ids        tokens, with the end token if it was sampled
    logprobs   log-probs of the tokens at temperature 1 over the whole vocabulary
    denoising  order of the tokens, if not from left to right
    entropies  entropy of the distribution at each token, in nats, over the whole vocabulary; None if not requested or
               not available
    stop_string  one of SamplingOptions.stop_strings that ended it; "" otherwise
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    denoising: DenoisingTrace | None = None
    entropies: tuple[float, ...] | None = None
    stop_string: str = ""


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options. temperature 0 = the most likely token; top_p 1 and top_k 0 = the whole vocabulary.

    stop_strings  texts that end an answer; the token that completes one is its last
    evaluates  for evaluation only: record entropies, and drop finished rows from the batch. Training keeps them, since
               sums over fewer rows differ in their last digits
    """

    max_completion_length: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    evaluates: bool = False
    stop_strings: tuple[str, ...] = ()


@runtime_checkable
class Policy(Protocol):
    """Interface between models and the training loop."""

    name: str

    @property
    def device(self) -> torch.device:
        """Device of its weights and outputs."""

    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        """Sample one completion per seed of each prompt; it depends only on its prompt and seed."""

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens of prompt and completion together; None = no limit."""

    def check_prompt(self, prompt: Prompt, completion_length: int = 0) -> None:
        """Raise DataError or PolicyError if the prompt, with a completion of that length, cannot be encoded."""

    def special_in(self, text: str) -> str | None:
        """Return a special token that occurs in the text, where it would act as a command; None if none does."""

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Tokenize an answer, with an end token."""

    @property
    def answer_prefix(self) -> str:
        """Text that the prompt puts between a question and its answer, such as an opened thinking block."""

    def denoising_schedule(self, ids: tuple[int, ...]) -> DenoisingTrace | None:
        """Denoising schedule for a given answer; None = from left to right."""

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        """Compute the hidden states that predict each completion token, laid end to end.

        denoisings  order of the tokens of each completion; only diffusion policies use it
        """

    def row_sizes(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> list[RowSize]:
        """Tokens of each row, as `forward` passes them."""

    def pass_tokens(self, rows: Sequence[RowSize]) -> int:
        """Positions of one forward pass of these rows, padding included."""

    def text(self, ids: tuple[int, ...]) -> str:
        """Decode a completion without special tokens."""

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        """Decode each token, with special tokens; joined, the texts are the completion."""


class Sampler(Protocol):
    """Samples in a policy's place, with its weights, prompts and end tokens."""

    @property
    def precision(self) -> str:
        """Precision in which it samples."""

    def send_weights(self, student: Any) -> None:
        """Give it the policy's present weights, if it lacks them; all ranks of sharded weights take part."""

    def forget_sent(self) -> None:
        """Have them sent again, as it has others."""

    def prefetch(self, student: Any, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> None:
        """Begin what `sample` with the same arguments then waits for."""

    def sample(
        self, student: Any, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions
    ) -> list[list[Completion]]:
        """As Policy.sample, after `send_weights`."""

    def weights_changed(self) -> None:
        """Take the policy's weights anew before the next generation."""


@runtime_checkable
class Prefetching(Protocol):
    """A policy that may compute elsewhere (`prefetches`), and can begin before `forward` waits for the result."""

    prefetches: bool

    def prefetch(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]], passes: list[list[int]] | None = None
    ) -> None:
        """Begin to compute the rows of later calls of `forward`; `passes` are the rows of each call."""


def prefetches(policy: object) -> TypeGuard[Prefetching]:
    """Return whether a policy computes elsewhere."""
    return isinstance(policy, Prefetching) and policy.prefetches
