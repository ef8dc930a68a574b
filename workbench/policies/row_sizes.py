"""Sizes of rows in tokens, from which the size of a padded forward pass follows before it is made."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class RowSize(NamedTuple):
    """Tokens of one row. Rows with an equal `prompt` share one pass of that prompt."""

    prompt: Hashable
    prompt_length: int  # image tokens included
    completion_length: int

    @property
    def length(self) -> int:
        return self.prompt_length + self.completion_length


def num_tokens(rows: Sequence[RowSize]) -> int:
    """Tokens of some rows; a prompt that several of them share counts once."""
    prompts = {row.prompt: row.prompt_length for row in rows}
    return sum(prompts.values()) + sum(row.completion_length for row in rows)


def padded_tokens(rows: Sequence[RowSize]) -> int:
    """Positions of one padded pass: distinct prompts x the longest of them, and rows x the longest completion."""
    prompts = len({row.prompt for row in rows}) * max(row.prompt_length for row in rows)
    return prompts + len(rows) * max(row.completion_length for row in rows)
