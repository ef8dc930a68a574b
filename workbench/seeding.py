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
    """Order of the examples: a new permutation each epoch, the same for the same seed.

    shuffle  False = in their own order in every epoch
    """

    def __init__(self, num_examples: int, seed: int, *, shuffle: bool = True) -> None:
        self.num_examples, self.seed, self.shuffle = num_examples, seed, shuffle
        self._epoch, self._permutation = -1, []

    def batch(self, step: int, size: int) -> list[int]:
        """Example indices of a step; steps count from 1."""
        return [self.index(idx) for idx in range((step - 1) * size, step * size)]

    def index(self, idx: int) -> int:
        """Example index at position `idx` of the order, counted from 0 over all epochs."""
        epoch, offset = divmod(idx, self.num_examples)
        if not self.shuffle:
            return offset
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self.num_examples, generator=generator).tolist()
        return self._permutation[offset]

    def first_pass(self) -> list[int]:
        """Every example index once, in the order of the first epoch."""
        return [self.index(idx) for idx in range(self.num_examples)]


class MixedOrder:
    """Order of the examples of several sources, drawn in proportion to weights; each source has epochs of its own.

    The next draw goes to the source with the smallest (draws so far + 1/2) / weight, the divisors of Sainte-Lague. So
    the counts of any stretch are as near to the weights as whole numbers can be, and no random state is kept.

    groups  example indices of each source, none empty
    """

    def __init__(self, groups: list[list[int]], weights: list[float], seed: int, *, shuffle: bool = True) -> None:
        self.groups, self.weights = groups, weights
        self.num_examples = sum(map(len, groups))
        self._orders = [
            EpochOrder(len(group), derive_seed("source order", seed, idx), shuffle=shuffle)
            for idx, group in enumerate(groups)
        ]
        self._draws = [0] * len(groups)
        self._drawn: list[tuple[int, int]] = []  # source and its draw, by position

    def batch(self, step: int, size: int) -> list[int]:
        """Example indices of a step; steps count from 1."""
        return [self.index(idx) for idx in range((step - 1) * size, step * size)]

    def index(self, idx: int) -> int:
        """Example index at position `idx` of the order, counted from 0."""
        while len(self._drawn) <= idx:
            ratios = [(draws + 0.5) / weight for draws, weight in zip(self._draws, self.weights, strict=True)]
            source = ratios.index(min(ratios))
            self._drawn.append((source, self._draws[source]))
            self._draws[source] += 1
        source, draw = self._drawn[idx]
        return self.groups[source][self._orders[source].index(draw)]

    def first_pass(self) -> list[int]:
        """Every example index once: by their draws among the first `num_examples`, then those not drawn in these."""
        drawn = dict.fromkeys(self.index(idx) for idx in range(self.num_examples))
        return [*drawn, *(idx for group in self.groups for idx in group if idx not in drawn)]
