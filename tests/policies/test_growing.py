"""Caches that grow in place hold what transformers' concatenation holds."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workbench.policies.growing import ROOM, GrowingLayer, growing


def states(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of two rows with three heads of four numbers."""
    return tuple(torch.randn(2, 2, 3, length, 4, generator=torch.Generator().manual_seed(seed)))


def test_growing_layer_without_gradient_holds_concatenation() -> None:
    grown, concatenated = GrowingLayer(), DynamicLayer()
    with torch.no_grad():
        for seed, length in enumerate([5, *[1] * (ROOM + 3), 2]):
            pairs = zip(grown.update(*states(length, seed)), concatenated.update(*states(length, seed)), strict=True)
            assert all(torch.equal(first, second) for first, second in pairs)
    assert grown.get_seq_length() == 5 + ROOM + 3 + 2


def test_growing_layer_keeps_its_memory_until_room_ends() -> None:
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*states(5, 0))
        starts = [layer.update(*states(1, seed))[0].data_ptr() for seed in range(ROOM + 2)]
    assert len(set(starts[: ROOM + 1])) == 1
    assert starts[ROOM + 1] != starts[0]


def test_growing_layer_after_selection_of_rows_continues_with_them() -> None:
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*states(5, 0))
        before = layer.update(*states(1, 1))[0].clone()
        layer.batch_select_indices(torch.tensor([1, 1, 0]))
        added = torch.ones(3, 3, 1, 4)
        keys, values = layer.update(added, 2 * added)
    assert torch.equal(keys, torch.cat((before[[1, 1, 0]], added), -2))
    assert bool((values[..., -1, :] == 2).all())


def test_growing_layer_with_gradient_concatenates() -> None:
    layer = GrowingLayer()
    keys, values = (tensor.requires_grad_() for tensor in states(5, 0))
    layer.update(keys, values)
    all_keys, _ = layer.update(2 * keys[..., :1, :], values[..., :1, :])
    all_keys.sum().backward()
    assert keys.grad[0, 0, :, 0].tolist() == [3, 1, 1, 1, 1]


def test_growing_replaces_full_attention_alone() -> None:
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4)]
    assert [type(layer) for layer in growing(cache).layers] == [GrowingLayer, DynamicSlidingWindowLayer]
