"""View output: the hidden states that predict each token, and the head that maps them to logits.

Logits of a whole batch are never in memory: `ViewOutput.logits` computes those of some positions, one chunk at a time.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

CHUNK_BYTES = 56 * 2**20  # of fp32 logits in one chunk
_NOTHING = -1e4  # logit of a token without probability; minus infinity would give 0 * inf in divergences


@dataclass(frozen=True)
class Head:
    """Maps hidden states to logits: a linear layer, then the model's scale and soft cap, if any.

    `linear.parameters()` includes those of an adapter inside it.
    """

    linear: nn.Module
    scale: float = 1.0
    soft_cap: float | None = None
    eos_ids: tuple[int, ...] = ()  # unified end tokens: the first gets the probability of all
    never: tuple[int, ...] = ()  # tokens without probability in the model's own forward pass

    def __call__(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        return self.finish(self.linear(hidden))

    def finish(self, raw: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
        """Apply the operations after the linear layer, in fp32."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        if self.never:
            logits = logits.index_fill(-1, torch.tensor(self.never, device=logits.device), _NOTHING)
        if len(self.eos_ids) > 1:
            ends = torch.tensor(self.eos_ids, device=logits.device)
            whole = logits[:, ends].logsumexp(-1, keepdim=True)
            nothing = torch.full((len(logits), len(self.eos_ids) - 1), _NOTHING, device=logits.device)
            logits = logits.index_copy(-1, ends, torch.cat((whole, nothing), -1))
        return logits


class Part(NamedTuple):
    """Hidden states of one policy, and the head that maps them to logits."""

    hidden: Float[Tensor, "M D"]
    head: Head


@dataclass(frozen=True)
class ViewOutput:
    """Output of one view at N positions: the hidden states that predict each token, with their heads.

    parts       one per policy; several if each domain has a teacher
    vocabulary  V, entries shared by learner and targets; a longer (padded) head is truncated
    row         row of each position in the parts, laid end to end; `num_rows` = not scored
    """

    parts: tuple[Part, ...]
    vocabulary: int
    row: Int[Tensor, " N"]

    @classmethod
    def of(cls, hidden: Float[Tensor, "N D"], head: Head, vocabulary: int) -> "ViewOutput":
        """Output of one policy, which scores every position."""
        return cls((Part(hidden, head),), vocabulary, torch.arange(len(hidden), device=hidden.device))

    @property
    def hidden(self) -> Float[Tensor, "M D"]:
        """Hidden states of the first policy; the only one of a learner."""
        return self.parts[0].hidden

    @property
    def device(self) -> torch.device:
        return self.row.device

    @property
    def num_rows(self) -> int:
        return sum(len(part.hidden) for part in self.parts)

    @property
    def is_scored(self) -> Bool[Tensor, " N"]:
        return self.row < self.num_rows

    def logits(self, index: Int[Tensor, " M"]) -> Float[Tensor, "M V"]:
        """Logits at scored positions."""
        rows, start = self.row[index], 0
        if len(self.parts) == 1:
            return cut(self.parts[0].head(self.hidden[rows]), self.vocabulary)
        logits = torch.full((len(rows), self.vocabulary), torch.nan, device=self.device)
        for hidden, head in self.parts:
            positions = ((rows >= start) & (rows < start + len(hidden))).nonzero().squeeze(-1)
            if len(positions):
                logits[positions] = cut(head(hidden[rows[positions] - start]), self.vocabulary)
            start += len(hidden)
        return logits

    def select(self, positions: slice | Int[Tensor, " M"]) -> "ViewOutput":
        """Select some positions."""
        return replace(self, row=self.row[positions])

    def spread(self, is_scored: Bool[Tensor, " M"]) -> "ViewOutput":
        """Scatter the positions, in order, to those of the mask `is_scored`; the others are not scored."""
        row = self.row.new_full(is_scored.shape, self.num_rows)
        row[is_scored] = self.row
        return replace(self, row=row)


def join_outputs(outputs: list[ViewOutput]) -> ViewOutput:
    """Concatenate outputs; parts with the same head become one part."""
    parts = [part for output in outputs for part in output.parts]
    heads = list({id(part.head): part.head for part in parts}.values())
    starts = itertools.accumulate((output.num_rows for output in outputs), initial=0)
    row = torch.cat([output.row + start for output, start in zip(outputs, starts, strict=False)])
    num_rows = [len(part.hidden) for part in parts]
    rows = torch.arange(sum(num_rows), device=row.device).split(num_rows)
    order = torch.cat([rows[idx] for head in heads for idx, part in enumerate(parts) if part.head is head])
    joined = (Part(torch.cat([part.hidden for part in parts if part.head is head]), head) for head in heads)
    return ViewOutput(tuple(joined), outputs[0].vocabulary, order.argsort()[row])


def chunk_size(vocabulary: int) -> int:
    """Positions per chunk, such that its fp32 logits take CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def row_slices(logits: Float[Tensor, "N V"]) -> Iterator[slice]:
    """Slices of a few positions, so that temporary arrays of a pass over (N, V) stay in the processor's cache; on
    another device all positions, where each operation costs a launch.
    """
    count = max(1, 2**20 // (4 * logits.shape[-1]) if logits.device.type == "cpu" else len(logits))
    return (slice(start, start + count) for start in range(0, logits.shape[0], count))


def cut(logits: Tensor, vocabulary: int) -> Tensor:
    """The first `vocabulary` entries; without a slice if nothing is cut, since its gradient would be a copy."""
    return logits if logits.shape[-1] == vocabulary else logits[:, :vocabulary]


def entropy_of(logprobs: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    """Entropy of each distribution, in nats; changes `logprobs` in place."""
    # an entry at minus infinity has no mass and must not give 0 * inf
    return logprobs.clamp_(min=_NOTHING).exp().mul_(logprobs).sum(-1).neg_().clamp_(min=0.0)
