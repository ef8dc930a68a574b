"""A key-value cache with room for more tokens, for sampling.

transformers concatenates the cached tokens and each new one, so every sampled token copies all earlier keys and values.
"""

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 32  # tokens for which a full layer makes room


class GrowingLayer(DynamicLayer):
    """A layer that writes new tokens behind the earlier ones. With gradient it concatenates, as its base class does."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []  # of keys and values, with room at the end
        self._views: tuple[Tensor, Tensor] | None = None  # their parts in use, as this class has set them

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add new keys and values; return all."""
        start = self.get_seq_length()
        if torch.is_grad_enabled() or start == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        stop = start + key_states.shape[-2]
        is_unchanged = self._views is not None and self.keys is self._views[0] and self.values is self._views[1]
        if not is_unchanged or stop > self._buffers[0].shape[-2]:
            self._buffers = [_with_room(tensor, stop + ROOM) for tensor in (self.keys, self.values)]
        for buffer, added in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = added
        self.keys, self.values = self._views = tuple(buffer[..., :stop, :] for buffer in self._buffers)
        return self.keys, self.values


def growing(cache: DynamicCache) -> DynamicCache:
    """Let the layers of an empty cache that keep all tokens grow in place; windows and recurrent states stay."""
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(tensor: Tensor, length: int) -> Tensor:
    """Copy of keys or values at the start of a longer tensor."""
    buffer = tensor.new_empty((*tensor.shape[:-2], length, tensor.shape[-1]))
    buffer[..., : tensor.shape[-2], :] = tensor
    return buffer
