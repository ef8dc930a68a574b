"""Output of a view: the hidden states that predict each written token, and the head that makes logits of them.

Logits of a whole batch never exist: `Readout.logits` makes those of the positions asked for, a chunk at a time.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

CHUNK_BYTES = 56 * 2**20  # of one chunk's fp32 logits
_NOTHING = -1e4  # a logit without probability; at minus infinity, divergences would make 0 * inf


@dataclass(frozen=True)
class Head:
    """Makes logits of hidden states: a linear layer, then the model's own scale and soft cap, if it has them.

    Parameters that are not those of `linear` alone (an adapter inside it) are found by `linear.parameters()`.
    """

    linear: nn.Module
    scale: float = 1.0
    soft_cap: float | None = None
    ends: tuple[int, ...] = ()  # tokens that are one action, to stop: the first gets the probability of all
    never: tuple[int, ...] = ()  # tokens that the model's own forward pass gives no probability

    def __call__(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        return self.finish(self.linear(hidden))

    def finish(self, raw: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
        """What follows the linear layer, in fp32."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        if self.never:
            logits = logits.index_fill(-1, torch.tensor(self.never, device=logits.device), _NOTHING)
        if len(self.ends) > 1:
            ends = torch.tensor(self.ends, device=logits.device)
            whole = logits[:, ends].logsumexp(-1, keepdim=True)
            nothing = torch.full((len(logits), len(self.ends) - 1), _NOTHING, device=logits.device)
            logits = logits.index_copy(-1, ends, torch.cat((whole, nothing), -1))
        return logits


@dataclass(frozen=True)
class Readout:
    """What one view says at N positions: the hidden states that predict each written token, and the head."""

    hidden: Float[Tensor, "N D"]
    head: Head
    vocabulary: int  # V, entries that learner and target share; a longer (padded) head is cut to it
    read: Bool[Tensor, " N"] | None = None  # positions that the view read, None = all; the others have no hidden state

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def logits(self, index: Int[Tensor, " M"]) -> Float[Tensor, "M V"]:
        return cut(self.head(self.hidden[index]), self.vocabulary)

    def part(self, positions: slice | Int[Tensor, " M"]) -> "Readout":
        """What it says at some of its positions."""
        read = None if self.read is None else self.read[positions]
        return replace(self, hidden=self.hidden[positions], read=read)

    def spread(self, read: Bool[Tensor, " M"]) -> "Readout":
        """Its positions at the places that are `read`, in their order; the others have none."""
        hidden = self.hidden.new_full((read.numel(), self.hidden.shape[1]), torch.nan)
        hidden[read] = self.hidden
        return replace(self, hidden=hidden, read=read)


@dataclass(frozen=True)
class MixedReadout:
    """What several policies say, each at positions of its own: position n is row `row[n]` of `parts[which[n]]`."""

    parts: tuple[Readout, ...]
    which: Int[Tensor, " N"]
    row: Int[Tensor, " N"]
    read: Bool[Tensor, " N"] | None = None  # as Readout.read

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

    def part(self, positions: slice | Int[Tensor, " M"]) -> "MixedReadout":
        """What it says at some of its positions."""
        read = None if self.read is None else self.read[positions]
        return replace(self, which=self.which[positions], row=self.row[positions], read=read)

    def spread(self, read: Bool[Tensor, " M"]) -> "MixedReadout":
        """Its positions at the places that are `read`, in their order; the others have none."""
        which, row = torch.full((2, read.numel()), -1, device=self.device)
        which[read], row[read] = self.which, self.row
        return replace(self, which=which, row=row, read=read)


def mix(pieces: list[tuple[Readout, Tensor]]) -> MixedReadout:
    """Readouts with the positions that they are of, which together are 0 .. N - 1. Those of one head become one part."""
    by_head: dict[int, list[tuple[Readout, Tensor]]] = {}
    for piece in pieces:
        by_head.setdefault(id(piece[0].head), []).append(piece)
    parts = []
    num_positions = sum(len(positions) for _, positions in pieces)
    which, row = torch.empty(2, num_positions, dtype=torch.long, device=pieces[0][0].device)
    for part_idx, group in enumerate(by_head.values()):
        positions = torch.cat([piece_positions for _, piece_positions in group]).to(which.device)
        which[positions] = part_idx
        row[positions] = torch.arange(positions.numel(), device=which.device)
        parts.append(replace(group[0][0], hidden=torch.cat([readout.hidden for readout, _ in group])))
    return MixedReadout(tuple(parts), which, row)


def join(readouts: list[Readout] | list[MixedReadout]) -> Readout | MixedReadout:
    """Readouts of one policy, laid end to end."""
    if isinstance(readouts[0], Readout):
        return replace(readouts[0], hidden=torch.cat([readout.hidden for readout in readouts]))
    pieces, start = [], 0
    for readout in readouts:
        for part_idx, part in enumerate(readout.parts):
            positions = (readout.which == part_idx).nonzero().squeeze(-1)
            pieces.append((part, start + positions[readout.row[positions].argsort()]))
        start += readout.which.numel()
    return mix(pieces)


def chunk_size(vocabulary: int) -> int:
    """Positions per chunk, so that its fp32 logits take CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def cut(logits: Tensor, vocabulary: int) -> Tensor:
    """The first `vocabulary` entries; the gradient of a slice that cuts nothing off would still be a copy."""
    return logits if logits.shape[-1] == vocabulary else logits[:, :vocabulary]


def entropy_of(logprobs: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    """Entropy of each distribution, in nats; `logprobs` are changed in place."""
    # an entry at minus infinity has no mass and must not make 0 * inf
    return logprobs.clamp_(min=_NOTHING).exp().mul_(logprobs).sum(-1).neg_().clamp_(min=0.0)
