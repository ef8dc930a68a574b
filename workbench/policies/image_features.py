"""Pictures that one set of weights has looked at: not looked at again while the weights stay as they are.

In one step the student answers under one context and reads under another that shows the same pictures (boxes, caption, hint),
and so does a teacher that several views ask. Without gradient, features of the same pictures under the same weights are the
same numbers. They are kept for the length of a step and no longer, so that a resumed run computes what the first one did.
"""

import contextlib
from collections.abc import Hashable, Iterator
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.types import Prompt

Kept = dict[
    Hashable, tuple[tuple, Float[Tensor, "T W"]]
]  # with the pictures, so that no other object gets their identity
_kept: ContextVar[Kept | None] = ContextVar("image features", default=None)


@contextlib.contextmanager
def remembered_images(enabled: bool = True) -> Iterator[None]:
    """Inside, policies keep the features of pictures that they read without gradient. No weight may change inside."""
    token = _kept.set({} if enabled else None)
    try:
        yield
    finally:
        _kept.reset(token)


def remembers() -> bool:
    """Whether features are kept and used here: only without gradient, which would have to flow to the picture's encoder."""
    return _kept.get() is not None and not torch.is_grad_enabled()


def find(weights: Hashable, prompt: Prompt) -> Float[Tensor, "T W"] | None:
    """Features of all pictures of a prompt, if these weights have looked at just these; T image tokens of width W."""
    _, features = _kept.get().get(_key(weights, prompt), (None, None))
    return features


def keep(weights: Hashable, prompt: Prompt, features: Float[Tensor, "T W"]) -> None:
    _kept.get()[_key(weights, prompt)] = (prompt.all_images, features)


def _key(weights: Hashable, prompt: Prompt) -> Hashable:
    return (
        weights,
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        tuple(map(id, prompt.all_images)),
    )
