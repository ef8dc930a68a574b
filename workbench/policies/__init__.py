"""Policies: what can write an answer (`sample`) and read one (`read`). Two verbs, one Protocol."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from workbench.policies.view_output import ViewOutput
from workbench.types import DenoisingTrace, Prompt


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    ids       tokens, the end token included if it was written
    logprobs  of each token under the policy itself, at temperature 1 and before any cut of the vocabulary
    denoising in which order, if not from left to right
    entropies of the policy's distribution at each token, in nats, before any cut; None if they were not asked for, or the
              sampler does not give them
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    denoising: DenoisingTrace | None = None
    entropies: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SamplingOptions:
    """How completions are drawn. temperature 0 = the most likely token; top_p 1 and top_k 0 = no cut.

    evaluates  nothing is learned from these completions: their entropies are asked for, and those that ended leave the
               batch. (Sums over fewer rows differ in their last digits, so that training does not do it.)
    """

    max_completion_length: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    evaluates: bool = False


@runtime_checkable
class Policy(Protocol):
    """What the loop needs of a model."""

    name: str

    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        """As many completions of each prompt as it has seeds; a completion depends on its own seed alone."""

    @property
    def context_length(self) -> int | None:
        """The most tokens that prompt and completion have together; None = no limit."""

    def check_prompt(self, prompt: Prompt, completion_length: int = 0) -> None:
        """Raises DataError or PolicyError if the policy cannot be shown this prompt, or not beside so long a completion."""

    def special_in(self, text: str) -> str | None:
        """A special token that stands in the text as words, and would be read as a command; None if there is none."""

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer given as text, as the policy would have written it: its tokens and the end token."""

    def denoising_schedule(self, ids: tuple[int, ...]) -> DenoisingTrace | None:
        """The order in which the policy would write a given answer; None: from left to right, token by token."""

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        """Hidden states that predict each completion token, laid end to end.

        denoisings  in which order each was written; a policy that reads from left to right has no use for it
        """

    def text(self, ids: tuple[int, ...]) -> str:
        """The completion as text, without special tokens."""

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        """Each token as text, special tokens included; joined, they are the whole completion."""
