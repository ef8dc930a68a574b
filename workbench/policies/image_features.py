"""Image feature cache: each set of weights encodes an image once per step.

In one step the student samples under one context and scores under another with the same images (boxes, caption, hint)
or one more (the crop); a teacher can serve several views. Without gradient, equal weights give equal features. The
cache lives for one step, so that a resumed run computes the same numbers.
"""

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from workbench.policies.encoding import GRID, Encoded, collate_pictures, picture_by_picture
from workbench.types import Prompt

Features = tuple[Float[Tensor, "T W"], ...]  # T image tokens; further tensors are for deeper layers (Qwen3-VL)


@dataclass(frozen=True)
class _ImageBatch:
    """Image inputs of one encoder call: one image, or all of a prompt."""

    pictures: tuple  # references, so that their ids stay unique
    inputs: Encoded
    tokens: int  # number of image tokens; 0 = unknown, for one of several images

    @property
    def key(self) -> Hashable:
        return tuple(map(id, self.pictures))

    def same_as(self, other: "_ImageBatch") -> bool:
        return self.inputs.keys() == other.inputs.keys() and all(
            torch.equal(value, other.inputs[name]) for name, value in self.inputs.items()
        )


_kept: ContextVar[dict[Hashable, tuple[_ImageBatch, Features]] | None] = ContextVar("image features", default=None)


@contextlib.contextmanager
def cached_image_features() -> Iterator[None]:
    """Cache image features without gradient inside this context. No weight may change inside."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def caching_enabled() -> bool:
    """Return whether the cache is on: only without gradient, which would have to reach the image encoder."""
    return _kept.get() is not None and not torch.is_grad_enabled()


class ImageFeatureCache:
    """Encodes and caches the images of a model; the first call shows the form of the family's features.

    image_token  placeholder of image features in a prompt
    """

    def __init__(self, image_token: int) -> None:
        self._image_token = image_token
        self._apart = True  # whether the images of one prompt can be encoded separately
        self._output: type = BaseModelOutputWithPooling
        self._one_tensor = True

    def inputs(
        self, prompts: list[Prompt], encoded: list[Encoded], rows: list[int], encode: Callable, weights: Hashable
    ) -> dict:
        """Model inputs with image features in place of images, for rows that refer to prompts.

        encode   image inputs -> output of the model's `get_image_features`
        weights  key of the current weights
        """
        per_prompt = self._features(prompts, encoded, encode, weights)
        layers = list(zip(*(features for row in rows for features in per_prompt[row]), strict=True))
        pooled = torch.cat(layers[0]) if self._one_tensor else list(layers[0])  # in the family's form
        deeper = {"deepstack_features": [list(layer) for layer in layers[1:]]} if len(layers) > 1 else {}
        grids = [encoded[row][GRID] for row in rows if GRID in encoded[row]]  # M-RoPE needs them for positions
        required = {field.name: None for field in fields(self._output) if field.default is MISSING}  # of timm's towers
        shared = {"mm_encoder_outputs": {"image": self._output(**required | {"pooler_output": pooled} | deeper)}}
        return shared | ({GRID: torch.cat(grids).to(pooled[0].device)} if grids else {})

    def _features(
        self, prompts: list[Prompt], encoded: list[Encoded], encode: Callable, weights: Hashable
    ) -> list[list[Features]]:
        per_prompt = self._split(prompts, encoded)
        cache = _kept.get() if caching_enabled() else {}
        state = weights, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        todo: dict[Hashable, _ImageBatch] = {}
        for batch in itertools.chain.from_iterable(per_prompt):
            cached, _ = cache.get((state, batch.key), (None, None))
            if cached is None or not cached.same_as(batch):
                todo[state, batch.key] = batch
        if todo:
            features = self._encode_images(list(todo.values()), encode)
            if features is None:
                self._apart = False
                return self._features(prompts, encoded, encode, weights)
            cache.update(zip(todo, zip(todo.values(), features, strict=True), strict=True))
        return [[cache[state, batch.key][1] for batch in batches] for batches in per_prompt]

    def _split(self, prompts: list[Prompt], encoded: list[Encoded]) -> list[list[_ImageBatch]]:
        """Split the images of each prompt into single images, if that is possible for all prompts."""
        pairs = [(prompt.all_images, inputs) for prompt, inputs in zip(prompts, encoded, strict=True)]
        apart = [picture_by_picture(inputs, len(images)) if images else [] for images, inputs in pairs]
        if not self._apart or None in apart:
            apart = [picture_by_picture(inputs, 1) if images else [] for images, inputs in pairs]
        per_prompt = []
        for (images, inputs), parts in zip(pairs, apart, strict=True):
            if len(parts) == 1:
                num_tokens = int((inputs["input_ids"] == self._image_token).sum())
                per_prompt.append([_ImageBatch(images, parts[0], num_tokens)])
            else:
                per_prompt.append([_ImageBatch(images[idx : idx + 1], part, 0) for idx, part in enumerate(parts)])
        return per_prompt

    def _encode_images(self, batches: list[_ImageBatch], encode: Callable) -> list[Features] | None:
        """Encode images; None if the family's features cannot be split by image."""
        features = encode(collate_pictures([batch.inputs for batch in batches]))
        self._output, self._one_tensor = type(features), isinstance(features.pooler_output, Tensor)
        layers = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
        flat = [torch.cat([image.reshape(-1, layer[0].shape[-1]) for image in layer]) for layer in layers]
        counts = [batch.tokens for batch in batches]
        if not all(counts):
            if len(features.pooler_output) != len(batches):
                return None
            counts = [image.numel() // flat[0].shape[-1] for image in features.pooler_output]
        return list(zip(*(layer.split(counts) for layer in flat), strict=True))
