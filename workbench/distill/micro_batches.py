"""Micro-batches by a budget of tokens: rows of similar length share a pass whose padded size is within the budget."""

from collections.abc import Callable, Sequence

from workbench.policies.row_sizes import RowSize, padded_tokens

PassTokens = Callable[[Sequence[RowSize]], int]  # positions of one forward pass of some rows


def split_by_tokens(sizes: Sequence[RowSize], budget: int, pass_tokens: PassTokens = padded_tokens) -> list[list[int]]:
    """Row indices of each micro-batch, at most `budget` tokens in each pass; ascending within a micro-batch.

    Rows are sorted by length, alone or with the rows that share their prompt, whichever gives fewer tokens. A row
    larger than the budget is a micro-batch of its own.
    """
    longest: dict[object, int] = {}  # row by prompt
    for row in sizes:
        longest[row.prompt] = max(row.length, longest.get(row.prompt, 0))
    rank = {prompt: idx for idx, prompt in enumerate(longest)}
    by_row = sorted(range(len(sizes)), key=lambda idx: sizes[idx].length)
    by_prompt = sorted(
        range(len(sizes)),
        key=lambda idx: (longest[sizes[idx].prompt], rank[sizes[idx].prompt], sizes[idx].length),
    )
    splits = [_split(sizes, order, budget, pass_tokens) for order in (by_row, by_prompt)]
    return min(splits, key=lambda split: (_total(sizes, split, pass_tokens), len(split)))


def _split(sizes: Sequence[RowSize], order: list[int], budget: int, pass_tokens: PassTokens) -> list[list[int]]:
    """Fill micro-batches in the given order; each closes where the next row would exceed the budget."""
    split: list[list[int]] = []
    for idx in order:
        if split and pass_tokens([sizes[row] for row in (*split[-1], idx)]) <= budget:
            split[-1].append(idx)
        else:
            split.append([idx])
    return [sorted(rows) for rows in split]


def _total(sizes: Sequence[RowSize], split: list[list[int]], pass_tokens: PassTokens) -> int:
    return sum(pass_tokens([sizes[row] for row in rows]) for rows in split)
