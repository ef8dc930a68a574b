"""Packing: several sequences end to end in one row, so that little or no padding passes the model.

Position ids start again at 0 with every sequence. transformers takes that as the sign of packed sequences when there is
no attention mask: its masks then keep sequences apart (eager, SDPA, flex attention), and flash attention uses its
kernel for sequences of several lengths. Whether a model does so is measured when it is loaded (proof.py).

SDPA and eager attention compute every pair of positions of a row, so rows are hardly longer than the longest sequence.
Flash attention finds sequences in a single row only, and skips pairs of different sequences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.policies.encoding import Encoded, is_per_token
from workbench.policies.row_sizes import RowSize


def pack(lengths: Sequence[int], *, single_row: bool = False) -> list[list[int]]:
    """Indices of the sequences of each row: as many rows as the tokens fill at the length of the longest, or one more.

    Of the two numbers of rows the one with fewer positions is taken.
    """
    fits = max(1, sum(lengths) // max(lengths))
    candidates = (1,) if single_row else (fits, fits + 1)
    return min((_balanced(lengths, count) for count in candidates), key=lambda rows: num_positions(lengths, rows))


def num_positions(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """Positions of packed rows, padded to the longest of them."""
    return len(rows) * max(sum(lengths[idx] for idx in row) for row in rows)


def _balanced(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Longest first, each into the row that has least."""
    rows: list[list[int]] = [[] for _ in range(min(count, len(lengths)))]
    totals = [0] * len(rows)
    for idx in sorted(range(len(lengths)), key=lambda idx: -lengths[idx]):
        row = totals.index(min(totals))
        rows[row].append(idx)
        totals[row] += lengths[idx]
    return rows


def packed_tokens(rows: Sequence[RowSize], *, single_row: bool = False) -> int:
    """Positions of one packed pass, each row with its own prompt."""
    lengths = [row.length for row in rows]
    return num_positions(lengths, pack(lengths, single_row=single_row))


class Packed(NamedTuple):
    """Model inputs of packed rows, and where each token of the padded rows went.

    inputs     without an attention mask; position ids (R, C), or (4, R, C) with M-RoPE
    index      index of each token in (R, C), flattened, for the valid tokens of the padded rows in order
    """

    inputs: Encoded
    index: Int[Tensor, " N"]


def pack_inputs(
    inputs: Encoded, rows: Sequence[int], *, pad_id: int, positions: Int[Tensor, "3 B L"] | None = None
) -> Packed:
    """Pack padded model inputs of B sequences.

    rows       number of sequences in each packed row, in their order
    positions  M-RoPE's position ids of the padded inputs
    """
    valid: Bool[Tensor, "B L"] = inputs["attention_mask"].bool()
    lengths = valid.sum(-1)
    device = valid.device
    row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows)).to(device)
    totals = torch.zeros(len(rows), dtype=lengths.dtype, device=device).index_add(0, row_of, lengths)
    width = int(totals.max())
    start = lengths.cumsum(0) - lengths  # of each sequence, among all tokens
    offset = start - (totals.cumsum(0) - totals)[row_of]  # of each sequence, in its row
    within = (valid.cumsum(-1) - 1)[valid]  # of each token, in its sequence
    index = torch.repeat_interleave(row_of * width + offset, lengths) + within
    column = torch.arange(width, device=device).expand(len(rows), width)
    counted = _scattered(within, index, (column - totals[:, None]).clamp(min=0))  # padding is a sequence of its own
    packed = {name: value for name, value in inputs.items() if not is_per_token(inputs, name)}
    for name in inputs.keys() - packed.keys() - {"attention_mask", "position_ids"}:
        value = inputs[name]
        fill = torch.full((len(rows), width, *value.shape[2:]), pad_id if name == "input_ids" else 0).to(value)
        packed[name] = _scattered(value[valid], index, fill)
    if positions is None:
        packed["position_ids"] = counted
    else:
        spatial = [_scattered(axis[valid], index, counted) for axis in positions]
        packed["position_ids"] = torch.stack([counted, *spatial])  # transformers finds the sequences by the first
    return Packed(packed, index)


def _scattered(values: Tensor, index: Int[Tensor, " N"], into: Tensor) -> Tensor:
    """Copy of `into` (R, C, ...) with the values at flat indices."""
    return into.flatten(0, 1).index_copy(0, index, values.to(into)).view(into.shape)
