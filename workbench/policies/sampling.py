"""Token sampling with random numbers per row, so that an answer does not depend on the rest of its batch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.policies import SamplingOptions
from workbench.policies.view_output import CHUNK_BYTES, Head, entropy_of, row_slices

ROW_BYTES = 40  # per vocabulary entry and row: two arrays of logits and four fp64 arrays
BLOCK = 32  # tokens of a block of the head's weights
FEWEST_ROWS, FEWEST_TOKENS, FEWEST_WEIGHTS = 16, 16, 2**22  # for which blocks are made


class SampledTokens(NamedTuple):
    """Token ids, their log-probs and entropies (nats; None if not requested) over the whole vocabulary, per row."""

    ids: Int[Tensor, " B"]
    logprobs: Float[Tensor, " B"]
    entropies: Float[Tensor, " B"] | None


def uniform(seed: int, count: int) -> Float[Tensor, " T"]:
    """Uniform random numbers of one row, one for each of `count` tokens."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_blocks(head: Head, rows: int, tokens: int) -> Callable[[Float[Tensor, "M D"]], Float[Tensor, "M V"]]:
    """The head for sampling `tokens` tokens of each of `rows` rows; the head itself where blocks gain nothing.

    On a CPU a product of few rows mostly reads the weights. A copy in blocks of BLOCK tokens, each transposed, lies in
    memory in the order in which they are read: with 16 rows and 49,152 x 576 weights a product takes 15 instead of 25
    ms, with the same bits, and the copy 70. Fewer than FEWEST_ROWS rows would get other last bits, so the head itself
    maps them.
    """
    linear = head.linear
    if rows < FEWEST_ROWS or tokens < FEWEST_TOKENS or type(linear) is not nn.Linear or linear.bias is not None:
        return head
    weight = linear.weight
    is_plain = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    if weight.device.type != "cpu" or not is_plain or weight.numel() < FEWEST_WEIGHTS or len(weight) % BLOCK:
        return head
    blocks = weight.view(-1, BLOCK, weight.shape[1]).transpose(1, 2).contiguous()

    def logits_of(hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        if len(hidden) < FEWEST_ROWS:
            return head(hidden)
        return head.finish(torch.matmul(hidden, blocks).transpose(0, 1).reshape(len(hidden), -1))

    return logits_of


def sample_tokens(
    logits_of: Callable[[Float[Tensor, "M D"]], Float[Tensor, "M V"]],
    hidden: Float[Tensor, "B D"],
    vocabulary: int,
    never: Int[Tensor, " K"],
    uniform: Float[Tensor, " B"],
    options: SamplingOptions,
) -> SampledTokens:
    """Sample one token per row, none of `never`; log-probs and entropies are over the whole vocabulary.

    Logits are computed for as many rows at a time as fit in CHUNK_BYTES, so memory does not grow with rows x
    vocabulary.
    """
    ids, logprobs, entropies = [], [], []
    rows = max(1, CHUNK_BYTES // (ROW_BYTES * vocabulary))
    for states, numbers in zip(hidden.split(rows), uniform.split(rows), strict=True):
        logits_BV = logits_of(states)[:, :vocabulary]
        for part in row_slices(logits_BV):
            logits = logits_BV[part]
            ids.append(draw(logits.index_fill(-1, never, -math.inf), numbers[part], options))
            logprobs.append(logits.gather(-1, ids[-1].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1))
            if options.evaluates:
                entropies.append(entropy_of(logits.log_softmax(-1)))
    return SampledTokens(torch.cat(ids), torch.cat(logprobs), torch.cat(entropies) if entropies else None)


def draw(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], options: SamplingOptions) -> Int[Tensor, " B"]:
    """Sample one token per row by inverting the cumulative distribution at the row's uniform number.

    As in transformers: temperature, then the top_k most likely entries (with ties of the last), then the smallest set
    whose share of their mass reaches top_p.
    """
    if options.temperature == 0.0:
        return logits.argmax(-1)
    precise = logits.double()
    probability = (precise if options.temperature == 1.0 else precise / options.temperature).softmax(-1)
    if options.top_p == 1.0 and options.top_k == 0:
        cumulative = probability.cumsum(-1)
        return _entry_at(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:])
    probability, ids = probability.sort(dim=-1, descending=True, stable=True)
    kept = count_kept(probability, options)
    cumulative = probability.cumsum(-1)
    mass = uniform.unsqueeze(-1) * cumulative.gather(-1, kept - 1)
    return ids.gather(-1, _entry_at(cumulative, mass).unsqueeze(-1)).squeeze(-1)


def count_kept(probability: Float[Tensor, "B V"], options: SamplingOptions) -> Int[Tensor, "B 1"]:
    """Number of entries that top_k and then top_p keep, at least one; `probability` is in descending order."""
    kept = torch.full_like(probability[:, :1], probability.shape[-1], dtype=torch.long)
    if 0 < options.top_k < probability.shape[-1]:
        last = probability[:, options.top_k - 1 : options.top_k]
        kept = (probability >= last).sum(-1, keepdim=True)
    if options.top_p < 1.0:
        cumulative = probability.cumsum(-1)
        below = (cumulative < options.top_p * cumulative.gather(-1, kept - 1)).sum(-1, keepdim=True)
        kept = torch.minimum(kept, below + 1)
    return kept


def _entry_at(cumulative: Float[Tensor, "B V"], mass: Float[Tensor, "B 1"]) -> Int[Tensor, " B"]:
    """First entry whose cumulative mass exceeds `mass`; never one without mass."""
    return torch.searchsorted(cumulative, mass, right=True).squeeze(-1).clamp(max=cumulative.shape[-1] - 1)
