"""Savings in calling a model: each gives the numbers of the model's own forward pass, or is switched off for that model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcuts:
    """Which savings a policy uses.

    head       logits are computed of hidden states, a chunk at a time; off: the model's own logits of a whole pass are held
    rows       rows of several lengths are padded into one batch; off: each passes alone
    positions  no saving: the model is given positions that leave padding out; off: it counts them itself
    cache      sampling keeps keys, values and states of what has passed; off: each token passes its whole row again
    prompts    a prompt passes once for all its answers; off: once for each
    pictures   pictures are encoded apart, and once for all rows that show them; off: with each row
    """

    head: bool = True
    rows: bool = True
    positions: bool = False
    cache: bool = True
    prompts: bool = True
    pictures: bool = True
