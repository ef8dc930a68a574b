"""Pictures that one set of weights has looked at: not looked at again while the weights stay as they are.

In one step the student answers under one context and reads under another that shows the same pictures (boxes, caption, hint) or
one more (the crop), and so does a teacher that several views ask. Without gradient, features of the same picture under the same
weights are the same numbers. They are kept for the length of a step and no longer, so that a resumed run computes what the
first one did.
"""

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from workbench.policies.encoding import GRID, Encoded, collate_pictures, picture_by_picture
from workbench.types import Prompt

Features = tuple[Float[Tensor, "T W"], ...]  # T image tokens; behind the first, what goes to deeper layers (Qwen3-VL)


@dataclass(frozen=True)
class _ImageBatch:
    """What a model looks at in one go: a picture, or all of a prompt's."""

    pictures: tuple  # themselves, so that no other object gets their identity
    inputs: Encoded
    tokens: int  # that stand for them; of one picture among several: not known

    @property
    def key(self) -> Hashable:
        return tuple(map(id, self.pictures))

    def same_as(self, other: "_ImageBatch") -> bool:
        return self.inputs.keys() == other.inputs.keys() and all(
            torch.equal(value, other.inputs[name]) for name, value in self.inputs.items()
        )


_kept: ContextVar[dict[Hashable, tuple[_ImageBatch, Features]] | None] = ContextVar("image features", default=None)


@contextlib.contextmanager
def cached_image_features(enabled: bool = True) -> Iterator[None]:
    """Inside, policies keep the features of pictures that they read without gradient. No weight may change inside."""
    token = _kept.set({} if enabled else None)
    try:
        yield
    finally:
        _kept.reset(token)


def caching_enabled() -> bool:
    """Whether features are kept and used here: only without gradient, which would have to flow to the picture's encoder."""
    return _kept.get() is not None and not torch.is_grad_enabled()


class ImageFeatureCache:
    """Asks a model for features of pictures, and finds out from the first in what form its family gives them.

    image_token  that stands for features in a prompt
    """

    def __init__(self, image_token: int) -> None:
        self._image_token = image_token
        self._apart = True  # whether pictures of one prompt can be told apart
        self._output, self._one_tensor = BaseModelOutputWithPooling, True

    def inputs(
        self, prompts: list[Prompt], encoded: list[Encoded], rows: list[int], look: Callable, weights: Hashable
    ) -> dict:
        """Model inputs that stand for the pictures of rows, each of a prompt; a picture is looked at once.

        look     image inputs -> what the model's `get_image_features` returns
        weights  what tells one set of weights from another
        """
        per_prompt = self._features(prompts, encoded, look, weights)
        layers = list(zip(*(features for row in rows for features in per_prompt[row]), strict=True))
        pooled = torch.cat(layers[0]) if self._one_tensor else list(layers[0])  # families take back what they gave
        deeper = {"deepstack_features": [list(layer) for layer in layers[1:]]} if len(layers) > 1 else {}
        grids = [encoded[row][GRID] for row in rows if GRID in encoded[row]]  # M-RoPE: where image tokens are
        shared = {"mm_encoder_outputs": {"image": self._output(pooler_output=pooled, **deeper)}}
        return shared | ({GRID: torch.cat(grids).to(pooled[0].device)} if grids else {})

    def _features(
        self, prompts: list[Prompt], encoded: list[Encoded], look: Callable, weights: Hashable
    ) -> list[list[Features]]:
        looks = self._looks(prompts, encoded)
        cache = _kept.get() if caching_enabled() else {}
        state = weights, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        todo: dict[Hashable, _ImageBatch] = {}
        for batch in itertools.chain.from_iterable(looks):
            cached, _ = cache.get((state, batch.key), (None, None))
            if cached is None or not cached.same_as(batch):
                todo[state, batch.key] = batch
        if todo:
            features = self._encode_images(list(todo.values()), look)
            if features is None:
                self._apart = False
                return self._features(prompts, encoded, look, weights)
            cache.update(zip(todo, zip(todo.values(), features, strict=True), strict=True))
        return [[cache[state, batch.key][1] for batch in batches] for batches in looks]

    def _looks(self, prompts: list[Prompt], encoded: list[Encoded]) -> list[list[_ImageBatch]]:
        """Of each prompt, picture by picture if that can be done with all."""
        pairs = [(prompt.all_images, inputs) for prompt, inputs in zip(prompts, encoded, strict=True)]
        apart = [picture_by_picture(inputs, len(images)) if images else [] for images, inputs in pairs]
        if not self._apart or None in apart:
            apart = [picture_by_picture(inputs, 1) if images else [] for images, inputs in pairs]
        looks = []
        for (images, inputs), parts in zip(pairs, apart, strict=True):
            if len(parts) == 1:
                num_tokens = int((inputs["input_ids"] == self._image_token).sum())
                looks.append([_ImageBatch(images, parts[0], num_tokens)])
            else:
                looks.append([_ImageBatch(images[idx : idx + 1], part, 0) for idx, part in enumerate(parts)])
        return looks

    def _encode_images(self, looks: list[_ImageBatch], look: Callable) -> list[Features] | None:
        """None if the family's features do not tell pictures of one prompt apart."""
        features = look(collate_pictures([batch.inputs for batch in looks]))
        self._output, self._one_tensor = type(features), isinstance(features.pooler_output, Tensor)
        layers = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
        flat = [torch.cat([image.reshape(-1, layer[0].shape[-1]) for image in layer]) for layer in layers]
        counts = [batch.tokens for batch in looks]
        if not all(counts):
            if len(features.pooler_output) != len(looks):
                return None
            counts = [image.numel() // flat[0].shape[-1] for image in features.pooler_output]
        return list(zip(*(layer.split(counts) for layer in flat), strict=True))
