"""Shortcuts of a forward pass: each gives the numbers of the model's own forward pass, or is switched off."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcuts:
    """Enabled shortcuts of a policy.

    head       compute logits from hidden states in chunks; off: keep the model's own logits of a whole pass
    rows       pad rows of several lengths to one batch; off: one pass per row
    positions  pass position ids without padding (not a shortcut); off: the model computes them
    cache      keep keys, values and states while sampling; off: every token passes its whole row again
    prompts    one pass of a prompt for all its answers; off: one pass per answer
    pictures   encode each image once for all rows; off: with each row
    packing    several sequences in a row, if training.packing asks for it; off: padded rows
    """

    head: bool = True
    rows: bool = True
    positions: bool = False
    cache: bool = True
    prompts: bool = True
    pictures: bool = True
    packing: bool = False
