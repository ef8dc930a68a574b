"""Forward passes of a model over prompts and completions, with the shortcuts that are valid for it.

Positions: prompts are padded on the left and completions on the right, so the completion of every row starts in the
same column P. The hidden state of column P - 1 + t predicts completion token t.
"""

import contextlib
import inspect
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.utils import ModelOutput

from workbench.policies.encoding import (
    GRID,
    MODALITIES,
    Encoded,
    PromptEncoder,
    append,
    collate,
    distinct,
    image_inputs,
)
from workbench.policies.growing import growing
from workbench.policies.image_features import ImageFeatureCache, caching_enabled
from workbench.policies.packing import pack, pack_inputs, packed_tokens
from workbench.policies.pass_counts import add_pass, is_counting
from workbench.policies.row_sizes import RowSize, num_tokens, padded_tokens
from workbench.policies.shortcuts import Shortcuts
from workbench.types import Prompt


class Sent(NamedTuple):
    """Next token of each unfinished row, and the indices of these rows among the current ones (None = all)."""

    ids: Int[Tensor, " B"]
    staying: Int[Tensor, " B"] | None = None


States = Generator[
    Float[Tensor, "B D"], Sent, None
]  # yields the states that predict each row's next token; receives that token


class Passes:
    """A model with its encoder, and its forward passes.

    adapter  "off" disables LoRA adapters (student@start under LoRA); None leaves the model unchanged
    """

    def __init__(self, model: nn.Module, encoder: PromptEncoder, adapter: str | None = None) -> None:
        self.model, self.encoder, self.adapter = model, encoder, adapter
        self.shards: Any = None  # FsdpModel, if the weights are sharded
        if MODALITIES not in inspect.signature(model.forward).parameters:
            encoder.processor_options = {}  # the processor would return types that the model does not take
        self._can_share_pictures = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        self._feature_cache = ImageFeatureCache(getattr(model.config, "image_token_id", -1))
        self._cache_argument = _cache_argument(model)
        self.shortcuts = _plausible(model, self._cache_argument)
        takes = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self.takes_positions = takes and not hasattr(model.base_model, "rope_deltas")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _shares_prompts(self) -> bool:
        """Whether rows share prompts through the cache; gradient checkpointing has no cache."""
        recomputes = self.model.training and getattr(self.model, "is_activation_checkpointing", False)
        return self.shortcuts.prompts and not recomputes and not self._in_step

    @property
    def always_shares_prompts(self) -> bool:
        """Whether rows share prompts in every pass, also in those that recompute activations or run in lockstep."""
        recomputes = getattr(self.model, "is_activation_checkpointing", False)
        return self.shortcuts.prompts and not recomputes and self.shards is None

    @property
    def packs_single_row(self) -> bool:
        """Whether the attention finds packed sequences in a single row only."""
        return "flash" in str(getattr(self.model.config, "_attn_implementation", ""))

    def pass_tokens(self, rows: Sequence[RowSize]) -> int:
        """Positions of one forward pass of these rows, padding included."""
        if self.shortcuts.packing:
            return min(padded_tokens(rows), packed_tokens(rows, single_row=self.packs_single_row))
        return padded_tokens(rows)

    @property
    def shares_pictures(self) -> bool:
        return self._can_share_pictures and self.shortcuts.pictures

    @property
    def _in_step(self) -> bool:
        """Whether a pass must be one call of the whole model, in lockstep with the other ranks."""
        return self.shards is not None and torch.is_grad_enabled()

    def row_sizes(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]], *, shared: bool | None = None
    ) -> list[RowSize]:
        """Tokens of each row.

        shared  whether rows of one prompt share its pass; None: only where passes with gradient do so too
        """
        shared = self.always_shares_prompts if shared is None else shared
        lengths = {id(prompt): self.encoder.encode(prompt)["input_ids"].shape[1] for prompt in prompts}
        return [
            RowSize(id(prompt) if shared else object(), lengths[id(prompt)], len(ids))
            for prompt, ids in zip(prompts, completions, strict=True)
        ]

    def model_inputs(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]]
    ) -> tuple[dict, int, Int[Tensor, " B"]]:
        """Model inputs, the column where completions start, and their lengths."""
        inputs = self._rows(prompts)
        prompt_length = inputs["input_ids"].shape[1]
        lengths = torch.tensor([len(ids) for ids in completions])
        return self._append(inputs, completions), prompt_length, lengths

    def _forward_rows(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> Float[Tensor, "B T D"]:
        """Hidden states that predict the completions, T the longest of them, at least 1; every row has its prompt."""
        longest = max(map(len, completions))
        inputs, start, _ = self.model_inputs(prompts, completions)
        return self._hidden(inputs | {"use_cache": False})[:, start - 1 : start - 1 + longest]

    def _forward_after_shared_prompts(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]]
    ) -> Float[Tensor, "B T D"]:
        """As the pass over full rows, but a prompt of several rows passes once."""
        unique, rows = distinct(prompts)
        encoded, cache = self._encoded(unique), self._new_cache()
        row_idx = torch.tensor(rows, device=self.device)
        first = self._prefill(encoded, cache)[row_idx, -1:]
        self._repeat(cache, row_idx)
        rest = [ids[:-1] for ids in completions]  # the state after the last token is not needed
        if not any(rest):
            return first
        inputs = {name: encoded[name][row_idx] for name in ("input_ids", "attention_mask")}
        start = inputs["input_ids"].shape[1]
        inputs = append(inputs, rest, self.encoder.pad_id, 0)
        inputs["input_ids"] = inputs["input_ids"][:, start:]
        return torch.cat((first, self._extend(inputs, cache)), 1)

    def parts(self, prompts: list[Prompt]) -> list[list[int]]:
        """Split rows into batches: all together, or by prompt length."""
        if self.shortcuts.rows:
            return [list(range(len(prompts)))]
        unique, rows = distinct(prompts)
        if not self._shares_prompts:
            return [[row] for row in range(len(prompts))]
        return [[row for row, prompt_idx in enumerate(rows) if prompt_idx == idx] for idx in range(len(unique))]

    def completion_states(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> Float[Tensor, "N D"]:
        """Hidden states that predict the completions' tokens, row after row; no completion may be empty."""
        if not self.shortcuts.rows and len(parts := self.parts(prompts)) > 1:
            hidden_states: list[Tensor] = [torch.empty(0)] * len(prompts)
            for part in parts:
                part_completions = [completions[row] for row in part]
                states = self._forward_together([prompts[row] for row in part], part_completions)
                for row, piece in zip(part, states.split([len(ids) for ids in part_completions]), strict=True):
                    hidden_states[row] = piece
            return torch.cat(hidden_states)
        return self._forward_together(prompts, completions)

    def _forward_together(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> Float[Tensor, "N D"]:
        if self.shortcuts.packing and (rows := self._packed_rows(prompts, completions)) is not None:
            return self.packed_states(prompts, completions, rows)
        if len({id(prompt) for prompt in prompts}) < len(prompts) and self._shares_prompts:
            hidden = self._forward_after_shared_prompts(prompts, completions)
        else:
            hidden = self._forward_rows(prompts, completions)
        if is_counting():
            sizes = self.row_sizes(prompts, completions, shared=self._shares_prompts)
            used = num_tokens(sizes)
            add_pass(tokens=used, padding=padded_tokens(sizes) - used)
        lengths = torch.tensor([len(ids) for ids in completions])
        valid = torch.arange(hidden.shape[1]) < lengths.unsqueeze(-1)
        return hidden[valid.to(hidden.device)]

    def _packed_rows(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> list[list[int]] | None:
        """Sequences of each packed row; None where padded rows, which can share prompts, take fewer tokens."""
        sizes = self.row_sizes(prompts, completions, shared=self._shares_prompts)
        if packed_tokens(sizes, single_row=self.packs_single_row) >= padded_tokens(sizes):
            return None
        return pack([size.length for size in sizes], single_row=self.packs_single_row)

    def packed_states(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]], rows: list[list[int]]
    ) -> Float[Tensor, "N D"]:
        """As completion_states, with several sequences in a row. `rows`: indices of the sequences of each."""
        order = [idx for row in rows for idx in row]
        answers = [completions[idx] for idx in order]
        inputs, _, lengths = self.model_inputs([prompts[idx] for idx in order], answers)
        packed = pack_inputs(
            inputs, [len(row) for row in rows], pad_id=self.encoder.pad_id, positions=self._spatial_positions(inputs)
        )
        hidden = self._hidden(packed.inputs | {"use_cache": False}).flatten(0, 1)
        if is_counting():
            add_pass(tokens=len(packed.index), padding=len(hidden) - len(packed.index))
        ends = inputs["attention_mask"].sum(-1).cumsum(0).tolist()  # of each sequence, among all tokens
        by_idx = {
            idx: hidden[packed.index[end - 1 - length : end - 1]]
            for idx, end, length in zip(order, ends, lengths.tolist(), strict=True)
        }
        return torch.cat([by_idx[idx] for idx in range(len(order))])

    def _spatial_positions(self, inputs: dict) -> Int[Tensor, "3 B L"] | None:
        """M-RoPE's position ids of padded inputs; None for other models."""
        model = self.model.base_model
        if not hasattr(model, "rope_deltas"):
            return None
        if MODALITIES not in inputs or GRID not in inputs:
            return _counted(inputs["attention_mask"], inputs["input_ids"].shape[1]).expand(3, -1, -1)
        parameters = inspect.signature(model.get_rope_index).parameters
        return model.get_rope_index(**{name: value for name, value in inputs.items() if name in parameters})[0]

    def plain_logits(self, prompt: Prompt, completion: tuple[int, ...]) -> Float[Tensor, "T V"]:
        """Logits of the model's own forward pass for one row, without shortcuts."""
        encoded = self._to_device(self.encoder.batch([prompt]))
        inputs = self._append(encoded, [completion]) | {"use_cache": False}
        with self._adapter_state():
            return self.model(**inputs).logits[0, -1 - len(completion) : -1]

    @property
    def rows_can_leave(self) -> bool:
        """Whether finished rows can leave the batch while others are sampled."""
        return self.shortcuts.cache and self.shortcuts.prompts

    def states(self, prompts: list[Prompt]) -> States:
        """Yield the hidden states that predict each row's next token, and receive that token."""
        if not self.shortcuts.cache:
            yield from self._states_without_cache(prompts)
        cache = growing(self._new_cache())
        if self.shortcuts.prompts:
            unique, rows = distinct(prompts)
            encoded = self._encoded(unique)
            hidden, mask = self._prefill(encoded, cache)[:, -1], encoded["attention_mask"]
            if len(rows) > len(unique):
                row_idx = torch.tensor(rows, device=self.device)
                self._repeat(cache, row_idx)
                hidden, mask = hidden[row_idx], mask[row_idx]
        else:
            encoded = self._rows(prompts)
            hidden, mask = self._prefill(encoded, cache)[:, -1], encoded["attention_mask"]
        while True:
            ids, staying = yield hidden
            if staying is not None:
                self._repeat(cache, staying)
                mask = mask[staying]
            mask = F.pad(mask, (0, 1), value=1)
            hidden = self._extend({"input_ids": ids.unsqueeze(-1), "attention_mask": mask}, cache)[:, -1]

    def _states_without_cache(self, prompts: list[Prompt]) -> States:
        inputs = self._rows(prompts)
        while True:
            ids, _ = yield self._hidden(inputs | {"use_cache": False})[:, -1]
            inputs = self._append(inputs, [(token,) for token in ids.tolist()])

    def _append(self, inputs: dict, completions: list[tuple[int, ...]]) -> dict:
        token_type = 1 if self.model.config.model_type == "paligemma" else 0  # type 0 has bidirectional attention
        return append(inputs, completions, self.encoder.pad_id, token_type)

    def _rows(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """Model inputs of prompts; the images of equal prompts are encoded once."""
        unique, rows = distinct(prompts)
        if len(unique) < len(prompts) and self.shares_pictures and not self._in_step:
            return self._with_shared_pictures(unique, rows)
        return self._encoded(prompts)

    def _encoded(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """Model inputs of prompts, with cached image features if the cache is on."""
        if self.shares_pictures and caching_enabled():
            return self._with_shared_pictures(prompts, list(range(len(prompts))))
        return self._to_device(self.encoder.batch(prompts))

    def _with_shared_pictures(self, prompts: list[Prompt], rows: list[int]) -> dict[str, Tensor]:
        """Model inputs of rows that share prompts; every image is encoded once."""
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        per_token = [{key: row[key] for key in row.keys() - image_inputs(row).keys()} for row in encoded]
        row_idx = torch.tensor(rows, device=self.device)
        unique = self._to_device(collate(per_token, self.encoder.pad_id))
        inputs = {name: value[row_idx] for name, value in unique.items()}
        if not any(image_inputs(encoded[row]) for row in rows):
            return inputs
        return inputs | self._feature_cache.inputs(
            prompts, encoded, rows, self._image_features, (id(self.model), self.adapter)
        )

    def _image_features(self, pictures: Encoded) -> ModelOutput:
        model = self.model if hasattr(self.model, "get_image_features") else self.model.base_model  # the latter in Emu3
        parameters = inspect.signature(model.get_image_features).parameters
        inputs = {name: value for name, value in pictures.items() if name in parameters}
        with self._adapter_state():
            return model.get_image_features(**self._to_device(inputs), return_dict=True)

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def _prefill(self, encoded: dict, cache: Cache) -> Float[Tensor, "B T D"]:
        """Hidden states of prompts; fills an empty cache."""
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = None  # left from earlier prompts
        return self._hidden(encoded | {self._cache_argument: cache, "use_cache": True})

    def _repeat(self, cache: Cache, rows: Int[Tensor, " B"]) -> None:
        """Select rows of a cache: a prompt once per completion, or the unfinished rows."""
        cache.batch_select_indices(rows)
        deltas = getattr(self.model.base_model, "rope_deltas", None)
        if deltas is not None:
            self.model.base_model.rope_deltas = deltas[rows]

    def _extend(self, inputs: dict, cache: Cache) -> Float[Tensor, "B T D"]:
        """Hidden states of tokens that follow the cached ones.

        Under M-RoPE (Qwen-VL) an image has fewer positions than tokens; rope_deltas is the difference.
        """
        deltas = getattr(self.model.base_model, "rope_deltas", None)
        if deltas is not None:
            places = _counted(inputs["attention_mask"], inputs["input_ids"].shape[1])
            inputs = inputs | {"position_ids": (places + deltas).expand(3, -1, -1)}
        if self._cache_argument == "cache_params":  # recurrent states need no mask of earlier tokens
            inputs = inputs | {"attention_mask": inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :]}
        return self._hidden(inputs | {self._cache_argument: cache, "use_cache": True})

    def _hidden(self, inputs: dict) -> Float[Tensor, "B T D"]:
        """Last hidden states of the model without its head, or its logits if `shortcuts.head` is off."""
        if self.shortcuts.positions and "position_ids" not in inputs:
            places = _counted(inputs["attention_mask"], inputs["input_ids"].shape[1])
            inputs = inputs | {"position_ids": places}
        with self._adapter_state():
            if self.shards is not None:
                return self.shards.make_pass(lambda: self._pass(inputs))
            return self._pass(inputs)

    def _pass(self, inputs: dict) -> Float[Tensor, "B T D"]:
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
        learning = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self.model.disable_adapters()
        try:
            yield
        finally:
            self.model.enable_adapters()  # peft lets all adapters learn, also those that models.train leaves out
            for parameter, learns in learning:
                parameter.requires_grad_(learns)

    def _to_device(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return {
            name: value.to(self.device, dtype if value.is_floating_point() else None) for name, value in encoded.items()
        }


def _counted(mask: Int[Tensor, "B P"], count: int) -> Int[Tensor, "B T"]:
    """Position ids of the last `count` columns, counted from each row's first token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -count:]


def _cache_argument(model: nn.Module) -> str | None:
    """Name of the model's cache argument; None if it takes no cache of transformers."""
    parameters = inspect.signature(model.base_model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def _plausible(model: nn.Module, cache_argument: str | None) -> Shortcuts:
    """Shortcuts that the signature and the cache layers of a model allow, before any measurement.

    Linear attention and convolutions update their states in place, so these cannot be repeated for several answers with
    gradient.
    """
    if cache_argument is None:
        return Shortcuts(cache=False, prompts=False)
    layers = DynamicCache(config=model.config).layers
    repeats = not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    return Shortcuts(prompts=repeats)
