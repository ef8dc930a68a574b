"""A policy that is a table of logits: tests and explanations without a model.

Its logits depend on the context, the position in the completion, and nothing else. `sample` and `read` keep every
promise of the Protocol, so all methods run on it.
"""

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.policies import Completion, SamplingOptions
from workbench.policies.row_sizes import RowSize, padded_tokens
from workbench.policies.sampling import count_kept
from workbench.policies.view_output import Head, ViewOutput
from workbench.types import DenoisingTrace, Prompt

END = 0  # the end token


class LogitTablePolicy:
    """tables: by context ("plain", "boxes", ...), logits of shape (T, V); later positions use the last row."""

    def __init__(self, name: str, tables: dict[str, Float[Tensor, "T V"]], *, learns: bool = False) -> None:
        self.name = name
        self.tables = nn.ParameterDict(
            {key: nn.Parameter(table.clone(), requires_grad=learns) for key, table in tables.items()}
        )
        self.vocabulary = next(iter(tables.values())).shape[1]
        self._head = Head(nn.Identity())
        self.device = torch.device("cpu")

    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        return [
            [self._write(prompt, seed, options) for seed in values]
            for prompt, values in zip(prompts, seeds, strict=True)
        ]

    def denoising_schedule(self, ids: tuple[int, ...]) -> None:
        return None

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        rows = [self._rows(prompt, len(ids)) for prompt, ids in zip(prompts, completions, strict=True)]
        return ViewOutput.of(torch.cat(rows), self._head, self.vocabulary)

    def row_sizes(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> list[RowSize]:
        return [RowSize(id(prompt), 1, len(ids)) for prompt, ids in zip(prompts, completions, strict=True)]

    def pass_tokens(self, rows: list[RowSize]) -> int:
        return padded_tokens(rows)

    context_length = None

    def check_prompt(self, prompt: Prompt, completion_length: int = 0) -> None:
        self._table(prompt)

    @property
    def answer_prefix(self) -> str:
        return ""

    def special_in(self, text: str) -> None:
        return None

    def text(self, ids: tuple[int, ...]) -> str:
        return " ".join(str(token) for token in ids if token != END)

    def token_text(self, token_id: int) -> str:
        return "." if token_id == END else f"{token_id} "

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        return [self.token_text(token) for token in ids]

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*(int(word) for word in text.split()), END)

    def _table(self, prompt: Prompt) -> Float[Tensor, "T V"]:
        context = re.sub(r":[\d.]+", "", prompt.key.rpartition("|")[2])  # future:0.25 is read as future
        return self.tables[context or "plain"]

    def _rows(self, prompt: Prompt, length: int) -> Float[Tensor, "L V"]:
        table = self._table(prompt)
        return table[torch.arange(length).clamp(max=table.shape[0] - 1)]

    @torch.no_grad()
    def _write(self, prompt: Prompt, seed: int, options: SamplingOptions) -> Completion:
        generator = torch.Generator().manual_seed(seed)
        logprobs = self._rows(prompt, options.max_completion_length).log_softmax(-1)
        ids: list[int] = []
        for row in logprobs:
            ids.append(int(torch.multinomial(_drawn_from(row, options), 1, generator=generator)))
            if ids[-1] == END:
                break
        chosen = logprobs[torch.arange(len(ids)), torch.tensor(ids)]
        return Completion(tuple(ids), tuple(chosen.tolist()), ids[-1] == END)


def _drawn_from(logprob: Float[Tensor, " V"], options: SamplingOptions) -> Float[Tensor, " V"]:
    """Probabilities at the temperature, those that are cut set to zero."""
    if options.temperature == 0.0:
        return torch.nn.functional.one_hot(logprob.argmax(), logprob.numel()).float()
    probability, ids = (logprob / options.temperature).softmax(-1).sort(descending=True, stable=True)
    kept = int(count_kept(probability.unsqueeze(0), options))
    return torch.zeros_like(logprob).scatter(-1, ids[:kept], probability[:kept])
