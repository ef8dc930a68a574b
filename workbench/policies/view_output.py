"""View output: the hidden states that predict each token, and the head that maps them to logits.

Logits of a whole batch are never in memory: `ViewOutput.logits` computes those of some positions, one chunk at a time.
"""

from dataclasses import dataclass, replace
from typing import Any

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


@dataclass(frozen=True)
class ViewOutput:
    """Output of one view at N positions: the hidden states that predict each token, and the head."""

    hidden: Float[Tensor, "N D"]
    head: Head
    vocabulary: int  # V, entries shared by learner and targets; a longer (padded) head is truncated
    is_scored: Bool[Tensor, " N"] | None = None  # mask of scored positions, None = all; the others have no hidden state

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def logits(self, index: Int[Tensor, " M"]) -> Float[Tensor, "M V"]:
        return cut(self.head(self.hidden[index]), self.vocabulary)

    def part(self, positions: slice | Int[Tensor, " M"]) -> "ViewOutput":
        """Select some positions."""
        is_scored = None if self.is_scored is None else self.is_scored[positions]
        return replace(self, hidden=self.hidden[positions], is_scored=is_scored)

    def spread(self, is_scored: Bool[Tensor, " M"]) -> "ViewOutput":
        """Scatter the positions, in order, to those of the mask `is_scored`; the others are not scored."""
        hidden = self.hidden.new_full((is_scored.numel(), self.hidden.shape[1]), torch.nan)
        hidden[is_scored] = self.hidden
        return replace(self, hidden=hidden, is_scored=is_scored)


@dataclass(frozen=True)
class MixedViewOutput:
    """Outputs of several policies, each for its own positions: position n is row `row[n]` of `parts[which[n]]`."""

    parts: tuple[ViewOutput, ...]
    which: Int[Tensor, " N"]
    row: Int[Tensor, " N"]
    is_scored: Bool[Tensor, " N"] | None = None  # as in ViewOutput

    @property
    def device(self) -> torch.device:
        return self.which.device

    @property
    def vocabulary(self) -> int:
        return min(part.vocabulary for part in self.parts)

    def logits(self, index: Int[Tensor, " M"]) -> Float[Tensor, "M V"]:
        which, row = self.which[index], self.row[index]
        logits = torch.empty(index.numel(), self.vocabulary, device=self.device)
        for part_idx, part in enumerate(self.parts):
            positions = (which == part_idx).nonzero().squeeze(-1)
            if positions.numel():
                logits[positions] = part.logits(row[positions])
        return logits

    def part(self, positions: slice | Int[Tensor, " M"]) -> "MixedViewOutput":
        """Select some positions."""
        is_scored = None if self.is_scored is None else self.is_scored[positions]
        return replace(self, which=self.which[positions], row=self.row[positions], is_scored=is_scored)

    def spread(self, is_scored: Bool[Tensor, " M"]) -> "MixedViewOutput":
        """Scatter the positions, in order, to those of the mask `is_scored`; the others are not scored."""
        which, row = torch.full((2, is_scored.numel()), -1, device=self.device)
        which[is_scored], row[is_scored] = self.which, self.row
        return replace(self, which=which, row=row, is_scored=is_scored)


def mix_outputs(pieces: list[tuple[ViewOutput, Tensor]]) -> MixedViewOutput:
    """Merge outputs with their positions, which together are 0 .. N - 1; outputs of one head become one part."""
    by_head: dict[int, list[tuple[ViewOutput, Tensor]]] = {}
    for piece in pieces:
        by_head.setdefault(id(piece[0].head), []).append(piece)
    parts = []
    num_positions = sum(len(positions) for _, positions in pieces)
    which, row = torch.empty(2, num_positions, dtype=torch.long, device=pieces[0][0].device)
    for part_idx, group in enumerate(by_head.values()):
        positions = torch.cat([piece_positions for _, piece_positions in group]).to(which.device)
        which[positions] = part_idx
        row[positions] = torch.arange(positions.numel(), device=which.device)
        parts.append(replace(group[0][0], hidden=torch.cat([output.hidden for output, _ in group])))
    return MixedViewOutput(tuple(parts), which, row)


def join_outputs(outputs: list[Any]) -> ViewOutput | MixedViewOutput:
    """Concatenate outputs of one policy."""
    if isinstance(outputs[0], ViewOutput):
        return replace(outputs[0], hidden=torch.cat([output.hidden for output in outputs]))
    pieces, start = [], 0
    for output in outputs:
        for part_idx, part in enumerate(output.parts):
            positions = (output.which == part_idx).nonzero().squeeze(-1)
            pieces.append((part, start + positions[output.row[positions].argsort()]))
        start += output.which.numel()
    return mix_outputs(pieces)


def chunk_size(vocabulary: int) -> int:
    """Positions per chunk, such that its fp32 logits take CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def cut(logits: Tensor, vocabulary: int) -> Tensor:
    """The first `vocabulary` entries; without a slice if nothing is cut, since its gradient would be a copy."""
    return logits if logits.shape[-1] == vocabulary else logits[:, :vocabulary]


def entropy_of(logprobs: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    """Entropy of each distribution, in nats; changes `logprobs` in place."""
    # an entry at minus infinity has no mass and must not give 0 * inf
    return logprobs.clamp_(min=_NOTHING).exp().mul_(logprobs).sum(-1).neg_().clamp_(min=0.0)
