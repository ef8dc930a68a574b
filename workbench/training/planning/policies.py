"""Policies of a plan: the run's own passes over a model without numbers."""

import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.policies.heads import output_layer
from workbench.policies.passes import Passes
from workbench.policies.view_output import Head, ViewOutput
from workbench.training.planning.dry_run import CACHE, DryRun
from workbench.training.planning.models import ModelSpec
from workbench.training.planning.prompts import PlannedEncoder
from workbench.types import Prompt


class PlannedCache(DynamicCache):
    """A cache whose tensors are counted as such."""

    def __init__(self, run: DryRun, **options: Any) -> None:
        super().__init__(**options)
        self._run = run

    def update(self, *args: Any, **options: Any) -> Any:
        with self._run.counted_as(CACHE):
            return super().update(*args, **options)

    def batch_select_indices(self, indices: Tensor) -> None:
        with self._run.counted_as(CACHE):
            super().batch_select_indices(indices)

    def grow(self, count: int) -> None:
        """Make room for `count` more tokens in every layer that keeps keys; a window keeps its size."""
        with self._run.counted_as(CACHE):
            for layer in self.layers:
                keys = getattr(layer, "keys", None)
                if not isinstance(keys, Tensor) or keys.ndim != 4:
                    continue
                length = keys.shape[-2] + count
                if window := getattr(layer, "sliding_window", None):
                    length = min(length, max(window - 1, keys.shape[-2]))
                    layer.cumulative_length += count
                for name in ("keys", "values"):
                    rows, heads, _, width = getattr(layer, name).shape
                    setattr(layer, name, getattr(layer, name).new_empty(rows, heads, length, width))


class PlannedPolicy(Passes):
    """Passes of a policy over a model without numbers. All shortcuts that the model's signature allows are taken."""

    def __init__(
        self,
        spec: ModelSpec,
        model: nn.Module,
        name: str,
        encoder: PlannedEncoder,
        run: DryRun,
        *,
        sharded: bool = False,
    ) -> None:
        super().__init__(model, encoder, "off" if name in spec.without_adapter else None)
        self.spec, self.name, self.run = spec, name, run
        self.planned_prompts = encoder.by_context
        layer = output_layer(model)
        self.head = Head(getattr(layer, "base_layer", layer) if self.adapter else layer)
        self.vocabulary = layer.weight.shape[0]
        if sharded:  # passes with gradient then process each answer with its own prompt and pictures
            self.shards = self
            model.below_head = MethodType(_below_head, model)
        self._newest: weakref.ref[PlannedCache] | None = None  # weak, so that a pass frees its cache as in the run

    @property
    def layers(self) -> list[nn.Module]:
        """Layers of the decoder."""
        return list(getattr(self.model.get_decoder(), "layers", None) or ())

    def make_pass(self, forward: Callable[[], Tensor]) -> Tensor:
        """As FsdpModel.make_pass, without communication."""
        return forward()

    def _new_cache(self) -> PlannedCache:
        cache = PlannedCache(self.run, config=self.model.config)
        self._newest = weakref.ref(cache)
        return cache

    def forward(self, prompts: list[Prompt], completions: list[tuple[int, ...]], *_: object) -> ViewOutput:
        """As AutoregressivePolicy.forward."""
        return ViewOutput.of(self.completion_states(prompts, completions), self.head, self.vocabulary)

    def received(self, count: int) -> ViewOutput:
        """What a server sends: hidden states of `count` positions."""
        hidden = torch.empty(count, self.head.linear.in_features, dtype=self.head.linear.weight.dtype)
        return ViewOutput.of(hidden, self.head, self.vocabulary)

    def first_and_last_token(self, prompts: list[Prompt], length: int) -> Iterator[Tensor]:
        """Hidden states (B, D) that predict the first token of each row, then those of token number `length`."""
        states = self.states(prompts)
        yield next(states)
        if length == 1:
            return
        if not self.shortcuts.cache:
            yield self._forward_rows(prompts, [(1,) * length] * len(prompts))[:, -1]
            return
        cache = self._newest()
        before = cache.get_seq_length()
        cache.grow(length - 2)
        ids = torch.ones(len(prompts), 1, dtype=torch.long)
        mask = torch.ones(len(prompts), before + length - 1, dtype=torch.long)
        yield self._extend({"input_ids": ids, "attention_mask": mask}, cache)[:, -1]


def _below_head(model: nn.Module, **inputs: object) -> Tensor:
    return model.base_model(**inputs).last_hidden_state
