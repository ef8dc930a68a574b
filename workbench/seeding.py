"""Random seeds derived from names and numbers, so that no generator state has to be saved."""

import hashlib

import torch


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from the parts."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_uniform(*parts: object) -> float:
    """Derive a number in [0, 1) from the parts."""
    return derive_seed(*parts) / 2**63


class EpochOrder:
    """Order of the examples: a new permutation each epoch, the same for the same seed."""

    def __init__(self, num_examples: int, seed: int) -> None:
        self.num_examples, self.seed = num_examples, seed
        self._epoch, self._permutation = -1, []

    def batch(self, step: int, size: int) -> list[int]:
        """Example indices of a step; steps count from 1."""
        return [self.index(idx) for idx in range((step - 1) * size, step * size)]

    def index(self, idx: int) -> int:
        """Example index at position `idx` of the order, counted from 0 over all epochs."""
        epoch, offset = divmod(idx, self.num_examples)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self.num_examples, generator=generator).tolist()
        return self._permutation[offset]
