"""Packing: several sequences end to end in one row, so that little or no padding passes the model.

Position ids start again at 0 with every sequence. transformers takes that as the sign of packed sequences when there is
no attention mask: its masks then keep sequences apart (eager, SDPA, flex attention), and flash attention uses its
kernel for sequences of several lengths. Whether a model does so is measured when it is loaded (proof.py).

SDPA and eager attention compute every pair of positions of a row, so rows are no longer than the longest sequence.
Flash attention finds sequences in a single row only, and skips pairs of different sequences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.policies.encoding import Encoded, is_per_token
from workbench.policies.row_sizes import RowSize


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the sequences of each row, at most `capacity` tokens in each: longest first, into the first row with
    room.
    """
    rows: list[list[int]] = []
    used: list[int] = []
    for idx in sorted(range(len(lengths)), key=lambda idx: -lengths[idx]):
        row = next((row for row, total in enumerate(used) if total + lengths[idx] <= capacity), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append(idx)
        used[row] += lengths[idx]
    return rows


def capacity(lengths: Sequence[int], *, single_row: bool) -> int:
    """Tokens of a row: all of them, or as many as the longest sequence has."""
    return sum(lengths) if single_row else max(lengths)


def packed_tokens(rows: Sequence[RowSize], *, single_row: bool = False) -> int:
    """Positions of one packed pass, each row with its own prompt."""
    lengths = [row.length for row in rows]
    limit = capacity(lengths, single_row=single_row)
    return len(pack(lengths, limit)) * limit


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
