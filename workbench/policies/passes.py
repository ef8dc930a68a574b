"""Passes of a model: what it is given of prompts and completions, with the savings that hold for it (Shortcuts).

Positions: a prompt is padded on the left, its completion on the right, so the completion of every row starts in the same
column P. The hidden state of column P - 1 + t predicts completion token t.
"""

import contextlib
import inspect
from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from workbench.policies.encoding import Encoded, PromptEncoder, append, collate, distinct, image_inputs
from workbench.policies.image_features import ImageFeatureCache, caching_enabled
from workbench.policies.shortcuts import Shortcuts
from workbench.types import Prompt


class Sent(NamedTuple):
    """The next token of each row that goes on, and which of the rows so far those are (None: all)."""

    ids: Int[Tensor, " B"]
    staying: Int[Tensor, " B"] | None = None


States = Generator[Float[Tensor, "B D"], Sent, None]  # what predicts each row's next token; is sent that token


class Passes:
    """A model with its encoder, and how it is called.

    adapter  None: the model as it is. "off": LoRA adapters switched off (student@start under LoRA)
    """

    def __init__(self, model: nn.Module, encoder: PromptEncoder, adapter: str | None = None) -> None:
        self.model, self.encoder, self.adapter = model, encoder, adapter
        self.shards = None  # of the model, if each process of the run holds a part (workbench.policies.fsdp)
        self._can_share_pictures = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        self._eyes = ImageFeatureCache(getattr(model.config, "image_token_id", -1))
        self._cache_argument = _cache_argument(model)
        self.shortcuts = _plausible(model, self._cache_argument)
        takes = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self.takes_positions = takes and not hasattr(model.base_model, "rope_deltas")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _shares_prompts(self) -> bool:
        """Not while activations are recomputed, which goes without a cache."""
        recomputes = self.model.training and getattr(self.model, "is_activation_checkpointing", False)
        return self.shortcuts.prompts and not recomputes and not self._in_step

    @property
    def shares_pictures(self) -> bool:
        return self._can_share_pictures and self.shortcuts.pictures

    @property
    def _in_step(self) -> bool:
        """Whether a pass must be one call of the whole model, as it is in the processes that hold the other parts."""
        return self.shards is not None and torch.is_grad_enabled()

    def model_inputs(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]]
    ) -> tuple[dict, int, Int[Tensor, " B"]]:
        """What the model is given, the column where completions start, and their lengths."""
        inputs = self._rows(prompts)
        prompt_length = inputs["input_ids"].shape[1]
        lengths = torch.tensor([len(ids) for ids in completions])
        return self._append(inputs, completions), prompt_length, lengths

    def _read_rows(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> Float[Tensor, "B T D"]:
        """Hidden states that predict the completions, T the longest of them, at least 1; each row with its own prompt."""
        longest = max(map(len, completions))
        inputs, start, _ = self.model_inputs(prompts, completions)
        return self._hidden(inputs | {"use_cache": False})[:, start - 1 : start - 1 + longest]

    def _read_after_shared_prompts(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]]
    ) -> Float[Tensor, "B T D"]:
        """As _read_rows; a prompt that occurs in several rows passes once."""
        unique, rows = distinct(prompts)
        encoded, cache = self._encoded(unique), self._new_cache()
        row_idx = torch.tensor(rows, device=self.device)
        first = self._begin(encoded, cache)[row_idx, -1:]
        self._repeat(cache, row_idx)
        rest = [ids[:-1] for ids in completions]  # what follows a last token is not asked
        if not any(rest):
            return first
        inputs = {name: encoded[name][row_idx] for name in ("input_ids", "attention_mask")}
        start = inputs["input_ids"].shape[1]
        inputs = append(inputs, rest, self.encoder.pad_id, 0)
        inputs["input_ids"] = inputs["input_ids"][:, start:]
        return torch.cat((first, self._go_on(inputs, cache)), 1)

    def parts(self, prompts: list[Prompt]) -> list[list[int]]:
        """Which rows pass together: all, or only those that are as long as each other before their answers."""
        if self.shortcuts.rows:
            return [list(range(len(prompts)))]
        unique, rows = distinct(prompts)
        if not self._shares_prompts:
            return [[row] for row in range(len(prompts))]
        return [[row for row, prompt_idx in enumerate(rows) if prompt_idx == which] for which in range(len(unique))]

    def read_states(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> Float[Tensor, "N D"]:
        """Hidden states that predict the completions' tokens, row after row; none of the completions may be without any."""
        if not self.shortcuts.rows and len(parts := self.parts(prompts)) > 1:
            hidden_states: list[Tensor] = [torch.empty(0)] * len(prompts)
            for part in parts:
                part_completions = [completions[row] for row in part]
                states = self._read_together([prompts[row] for row in part], part_completions)
                for row, piece in zip(part, states.split([len(ids) for ids in part_completions]), strict=True):
                    hidden_states[row] = piece
            return torch.cat(hidden_states)
        return self._read_together(prompts, completions)

    def _read_together(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> Float[Tensor, "N D"]:
        if len({id(prompt) for prompt in prompts}) < len(prompts) and self._shares_prompts:
            hidden = self._read_after_shared_prompts(prompts, completions)
        else:
            hidden = self._read_rows(prompts, completions)
        lengths = torch.tensor([len(ids) for ids in completions])
        valid = torch.arange(hidden.shape[1]) < lengths.unsqueeze(-1)
        return hidden[valid.to(hidden.device)]

    def plain_logits(self, prompt: Prompt, completion: tuple[int, ...]) -> Float[Tensor, "T V"]:
        """What the model's own forward pass says of a completion's tokens, its row alone and nothing saved."""
        encoded = self._to_device(self.encoder.batch([prompt]))
        inputs = self._append(encoded, [completion]) | {"use_cache": False}
        with self._adapter_state():
            return self.model(**inputs).logits[0, -1 - len(completion) : -1]

    @property
    def rows_can_leave(self) -> bool:
        """Whether rows may stop before others while tokens are sampled."""
        return self.shortcuts.cache and self.shortcuts.prompts

    def states(self, prompts: list[Prompt]) -> States:
        """Hidden states that predict each row's next token, for as long as tokens are sent."""
        if not self.shortcuts.cache:
            yield from self._states_without_cache(prompts)
        cache = self._new_cache()
        if self.shortcuts.prompts:
            unique, rows = distinct(prompts)
            encoded = self._encoded(unique)
            hidden, mask = self._begin(encoded, cache)[:, -1], encoded["attention_mask"]
            if len(rows) > len(unique):
                row_idx = torch.tensor(rows, device=self.device)
                self._repeat(cache, row_idx)
                hidden, mask = hidden[row_idx], mask[row_idx]
        else:
            encoded = self._rows(prompts)
            hidden, mask = self._begin(encoded, cache)[:, -1], encoded["attention_mask"]
        while True:
            ids, staying = yield hidden
            if staying is not None:
                self._repeat(cache, staying)
                mask = mask[staying]
            mask = F.pad(mask, (0, 1), value=1)
            hidden = self._go_on({"input_ids": ids.unsqueeze(-1), "attention_mask": mask}, cache)[:, -1]

    def _states_without_cache(self, prompts: list[Prompt]) -> States:
        inputs = self._rows(prompts)
        while True:
            ids, _ = yield self._hidden(inputs | {"use_cache": False})[:, -1]
            inputs = self._append(inputs, [(token,) for token in ids.tolist()])

    def _append(self, inputs: dict, completions: list[tuple[int, ...]]) -> dict:
        token_type = 1 if self.model.config.model_type == "paligemma" else 0  # its 0 is read in both directions
        return append(inputs, completions, self.encoder.pad_id, token_type)

    def _rows(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """What the model is given of prompts, of which several may be the same; its pictures are then encoded once."""
        unique, rows = distinct(prompts)
        if len(unique) < len(prompts) and self.shares_pictures and not self._in_step:
            return self._with_shared_pictures(unique, rows)
        return self._encoded(prompts)

    def _encoded(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """What the model is given of some prompts; features instead of pictures where those may be kept."""
        if self.shares_pictures and caching_enabled():
            return self._with_shared_pictures(prompts, list(range(len(prompts))))
        return self._to_device(self.encoder.batch(prompts))

    def _with_shared_pictures(self, prompts: list[Prompt], rows: list[int]) -> dict[str, Tensor]:
        """Model inputs of rows that share prompts, with every image encoded once."""
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        per_token = [{key: row[key] for key in row.keys() - image_inputs(row).keys()} for row in encoded]
        row_idx = torch.tensor(rows, device=self.device)
        unique = self._to_device(collate(per_token, self.encoder.pad_id))
        inputs = {name: value[row_idx] for name, value in unique.items()}
        if not any(image_inputs(encoded[row]) for row in rows):
            return inputs
        return inputs | self._eyes.inputs(prompts, encoded, rows, self._look, (id(self.model), self.adapter))

    def _look(self, pictures: Encoded) -> BaseModelOutputWithPooling:
        shows = self.model if hasattr(self.model, "get_image_features") else self.model.base_model  # Emu3's: the latter
        taken = inspect.signature(shows.get_image_features).parameters
        inputs = {name: value for name, value in pictures.items() if name in taken}
        with self._adapter_state():
            return shows.get_image_features(**self._to_device(inputs), return_dict=True)

    def _new_cache(self) -> Cache:
        return DynamicCache(config=self.model.config)

    def _begin(self, encoded: dict, cache: Cache) -> Float[Tensor, "B T D"]:
        """Hidden states of prompts, whose keys and values fill an empty cache."""
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = None  # of the prompts before
        return self._hidden(encoded | {self._cache_argument: cache, "use_cache": True})

    def _repeat(self, cache: Cache, rows: Int[Tensor, " B"]) -> None:
        """Have a cache hold these of its rows: a prompt once for each of its completions, or those that go on."""
        cache.batch_select_indices(rows)
        deltas = getattr(self.model.base_model, "rope_deltas", None)
        if deltas is not None:
            self.model.base_model.rope_deltas = deltas[rows]

    def _go_on(self, inputs: dict, cache: Cache) -> Float[Tensor, "B T D"]:
        """Hidden states of tokens that come after what a cache holds.

        Under M-RoPE (Qwen-VL) an image takes fewer positions than it has tokens: rope_deltas is that difference.
        """
        deltas = getattr(self.model.base_model, "rope_deltas", None)
        if deltas is not None:
            places = _counted(inputs["attention_mask"], inputs["input_ids"].shape[1])
            inputs = inputs | {"position_ids": (places + deltas).expand(3, -1, -1)}
        if self._cache_argument == "cache_params":  # states alone, of which no mask is asked for what has passed
            inputs = inputs | {"attention_mask": inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :]}
        return self._hidden(inputs | {self._cache_argument: cache, "use_cache": True})

    def _hidden(self, inputs: dict) -> Float[Tensor, "B T D"]:
        """Last hidden states of the model without its head; with `shortcuts.head` off, its logits."""
        if self.shortcuts.positions and "position_ids" not in inputs:
            places = _counted(inputs["attention_mask"], inputs["input_ids"].shape[1])
            inputs = inputs | {"position_ids": places}
        with self._adapter_state():
            if not self.shortcuts.head:
                return self.model(**inputs).logits
            if self.shards is not None:
                return self.model.below_head(**inputs)
            return self.model.base_model(**inputs).last_hidden_state

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextlib.contextmanager
    def _adapter_state(self) -> Iterator[None]:
        if self.adapter != "off":
            yield
            return
        self.model.disable_adapters()
        try:
            yield
        finally:
            self.model.enable_adapters()

    def _to_device(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else None) for name, value in encoded.items()
        }


def _counted(mask: Int[Tensor, "B P"], count: int) -> Int[Tensor, "B T"]:
    """Positions of the last `count` columns, counted from each row's first token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -count:]


def _cache_argument(model: nn.Module) -> str | None:
    """Name of the argument by which the model takes a cache; None: it takes none of transformers' own."""
    parameters = inspect.signature(model.base_model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def _plausible(model: nn.Module, cache_argument: str | None) -> Shortcuts:
    """What a model's signature and the layers of its cache allow, before anything is computed.

    States of linear attention and of convolutions are written in place: they cannot be repeated for several answers with
    gradient, and transformers offers no way without.
    """
    if cache_argument is None:
        return Shortcuts(cache=False, prompts=False)
    layers = DynamicCache(config=model.config).layers
    repeats = not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    return Shortcuts(prompts=repeats)
