"""Hugging Face image-text-to-text and causal language models as policies.

Positions: a prompt is padded on the left, its completion on the right, so the completion of every row starts in the same
column P. The hidden state of column P - 1 + t predicts completion token t. Views whose prompts differ in length (a crop
adds image tokens) therefore agree on completion positions and on nothing else.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from workbench.errors import DataError, PolicyError
from workbench.losses import Head, Readout
from workbench.policies import SamplingOptions, Written
from workbench.policies.drawing import draw_by_chunks, uniform
from workbench.policies.encoding import IMAGE_INPUTS, Encoded, PromptEncoder, append, collate, distinct
from workbench.policies.engine import Engine, Request, check_same_prompt, weights_of
from workbench.policies.image_features import Eyes, remembers
from workbench.policies.weights import load_model
from workbench.types import Denoising, Prompt


class AutoregressivePolicy:
    """A model with its processor: samples completions and reads them.

    adapter  None: the model as it is. "off": LoRA adapters switched off while reading (student@start under LoRA)
    """

    def __init__(
        self, model: nn.Module, processor, name: str, *, vocabulary: int | None = None, adapter: str | None = None
    ) -> None:
        self.name, self.model, self.processor, self.adapter = name, model, processor, adapter
        self.encoder = PromptEncoder(processor, max_prompt_length=_context_length(model))
        self.tokenizer = self.encoder.tokenizer
        self._token_texts: dict[int, str] = {}
        self.head = _head(model)
        self.vocabulary = vocabulary or model.get_output_embeddings().weight.shape[0]
        self.stop_ids = stop_ids(model, self.tokenizer)
        if not self.stop_ids:
            raise PolicyError(
                f"{name}: neither the tokenizer nor generation_config names an end token, so an answer would never stop. "
                "Set eos_token_id in the model's generation_config.json."
            )
        # placeholders of images stand for features; one written by the student would stand for an image that is not there
        tokens = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
        self._placeholders = [token for token in tokens if isinstance(token, int) and token < self.vocabulary]
        self._shares_images = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        self._eyes = Eyes(getattr(model.config, "image_token_id", -1))
        self.engine: Engine | None = None  # what writes instead of the model itself
        self.shards = None  # of the model, if each process of the run holds a part (workbench.sharding)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def head_width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def copy(self, name: str) -> "AutoregressivePolicy":
        """An own copy of the weights, frozen; processor and kept prompts are shared."""
        model = copy.deepcopy(self.model).requires_grad_(False).eval()
        twin = type(self)(model, self.processor, name, vocabulary=self.vocabulary)
        twin.encoder = self.encoder
        return twin

    def without_adapter(self, name: str) -> "AutoregressivePolicy":
        """The same weights read with LoRA adapters switched off."""
        twin = copy.copy(self)
        twin.name, twin.adapter = name, "off"
        return twin

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises DataError or PolicyError if the prompt's images cannot be read or it is too long."""
        self.encoder.encode(prompt)

    @torch.no_grad()
    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Written]]:
        """Completions, one per seed of each prompt; each depends on its own seed and prompt, not on its neighbours.

        The prompt's key-value cache is made once and repeated for its completions. With an engine, that writes.
        """
        if self.engine is not None:
            return self._sample_by(self.engine, prompts, seeds, options)
        rows = torch.tensor([row for row, own in enumerate(seeds) for _ in own], device=self.device)
        cache = DynamicCache(config=self.model.config)
        with self._evaluation():
            encoded = self._encoded(prompts)
            mask = encoded["attention_mask"]
            hidden = self._begin(encoded, cache)[:, -1]
            if rows.numel() > len(prompts):
                self._repeat(cache, rows)
                hidden, mask = hidden[rows], mask[rows]
            written = iter(self._continue(hidden, mask, cache, [seed for own in seeds for seed in own], options))
            return [[next(written) for _ in own] for own in seeds]

    def _sample_by(
        self, engine: Engine, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions
    ) -> list[list[Written]]:
        """Raises PolicyError if the engine reads another prompt than the student."""
        requests = [Request(*self.encoder.request(prompt)) for prompt in prompts]
        padding = range(self.vocabulary, self.model.get_output_embeddings().weight.shape[0])  # stands for no token
        with torch.autocast(self.device.type, enabled=False):  # an engine in this process has a precision of its own
            engine.load(weights_of(self.model))
            sampled = engine.generate(requests, seeds, options, self.stop_ids, [*self._placeholders, *padding])
        for prompt, own in zip(prompts, sampled, strict=True):
            shown = tuple(self.encoder.encode(prompt)["input_ids"][0].tolist())
            for one in own:
                check_same_prompt(one.prompt_ids, shown, prompt.key)
        return [[self._cut(one.ids, one.logprobs) for one in own] for own in sampled]

    def _continue(
        self, hidden: Float[Tensor, "B D"], mask: Int[Tensor, "B P"], cache, seeds: list[int], options: SamplingOptions
    ) -> list[Written]:
        stop = torch.tensor(sorted(self.stop_ids), device=self.device)
        placeholders = torch.tensor(self._placeholders, dtype=torch.long, device=self.device)
        numbers = torch.stack([uniform(seed, options.max_completion_length) for seed in seeds]).to(self.device)
        ids_BT, logprobs_BT = [], []
        ended = torch.zeros(len(seeds), dtype=torch.bool, device=self.device)
        ones = torch.ones(len(seeds), 1, dtype=mask.dtype, device=self.device)
        for column in range(options.max_completion_length):
            ids, logprobs = draw_by_chunks(
                self.head, hidden, self.vocabulary, placeholders, numbers[:, column], options
            )
            ids_BT.append(ids)
            logprobs_BT.append(logprobs)
            ended = ended | torch.isin(ids, stop)
            if bool(ended.all()) or column + 1 == options.max_completion_length:
                break
            mask = torch.cat((mask, ones), -1)
            hidden = self._go_on({"input_ids": ids.unsqueeze(-1), "attention_mask": mask}, cache)[:, -1]
        ids_BT, logprobs_BT = torch.stack(ids_BT, -1).tolist(), torch.stack(logprobs_BT, -1).tolist()
        return [self._cut(*row) for row in zip(ids_BT, logprobs_BT, strict=True)]

    def _cut(self, ids: Sequence[int], logprobs: Sequence[float]) -> Written:
        """Ends a completion at its first end token, written as the one that stands for all."""
        for length, token in enumerate(ids, start=1):
            if token in self.stop_ids:
                end = self.head.ends[0] if self.head.ends else token
                return Written((*ids[: length - 1], end), tuple(logprobs[:length]), True)
        return Written(tuple(ids), tuple(logprobs), False)

    def order_of(self, ids: tuple[int, ...]) -> Denoising | None:
        """None: from left to right, token by token."""
        return None

    def read(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[Denoising | None] | None = None,
    ) -> Readout:
        """Hidden states of all completion positions, row after row; with gradient unless it is switched off outside.

        A prompt that occurs in several rows (several answers to one question) passes the model once: its key-value
        cache is repeated for its rows, and its gradient is the sum of theirs.
        """
        lengths = torch.tensor([len(ids) for ids in completions])
        longest = int(lengths.max()) if completions else 0
        if longest == 0:
            return Readout(torch.zeros(0, self.head_width, device=self.device), self.head, self.vocabulary)
        if len({id(prompt) for prompt in prompts}) < len(prompts) and self._shares_prompts:
            hidden = self._read_after_shared_prompts(prompts, completions)
        else:
            inputs, start, _ = self.model_inputs(prompts, completions)
            # columns P - 1 .. P - 2 + longest predict completion tokens 0 .. longest - 1
            hidden = self._hidden(inputs | {"use_cache": False})[:, start - 1 : start - 1 + longest]
        valid = torch.arange(longest) < lengths.unsqueeze(-1)
        return Readout(hidden[valid.to(hidden.device)], self.head, self.vocabulary)

    @property
    def _shares_prompts(self) -> bool:
        """Not while activations are recomputed, which goes without a cache."""
        recomputes = self.model.training and getattr(self.model, "is_activation_checkpointing", False)
        return not recomputes and not self._in_step

    @property
    def _in_step(self) -> bool:
        """Whether a pass must be one call of the whole model, as it is in the processes that hold the other parts."""
        return self.shards is not None and torch.is_grad_enabled()

    def _read_after_shared_prompts(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]]
    ) -> Float[Tensor, "B T D"]:
        unique, rows = distinct(prompts)
        encoded, cache = self._encoded(unique), DynamicCache(config=self.model.config)
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

    def model_inputs(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]]
    ) -> tuple[dict, int, Int[Tensor, " B"]]:
        """What the model is given, the column where completions start, and their lengths."""
        unique, rows = distinct(prompts)
        if len(unique) < len(prompts) and self._shares_images and not self._in_step:
            inputs = self._with_shared_images(unique, rows)
        else:
            inputs = self._encoded([unique[row] for row in rows])
        prompt_length = inputs["input_ids"].shape[1]
        lengths = torch.tensor([len(ids) for ids in completions])
        token_type = 1 if self.model.config.model_type == "paligemma" else 0  # its 0 is read in both directions
        return append(inputs, completions, self.encoder.pad_id, token_type), prompt_length, lengths

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer given as text, as the model would have written it: its tokens and the end token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in ids:
            if token in self._placeholders or token in self.stop_ids:
                special = self.token_text(token)
                raise DataError(f'answer {text[:80]!r} contains the special token "{special}" as text: remove it.')
        return (*ids, self.end_id)

    @property
    def end_id(self) -> int:
        """The token that an answer given as text ends with: where several are one action, the one that stands for all."""
        own = self.head.ends[0] if self.head.ends else self.tokenizer.eos_token_id
        return min(self.stop_ids) if own is None else own

    def is_special(self, token_id: int) -> bool:
        """Whether an entry of the vocabulary is a mark of the model's and no text, or no token at all."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.get(token_id)
        is_text = token_id < len(tokenizer) and not (added and added.special)
        return token_id in tokenizer.all_special_ids or not is_text

    def text(self, ids: tuple[int, ...]) -> str:
        """The completion as text, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """One entry of the vocabulary as text."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self._decode([token_id])
        return self._token_texts[token_id]

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        """Each token's own text; bytes of an unfinished character stay with the token that finishes it."""
        texts, whole = [self.token_text(token_id) for token_id in ids], self._decode(ids)
        if "".join(texts) == whole and "\ufffd" not in whole:
            return texts
        # a token's text may depend on what is before it: each is decoded after the last finished ones
        texts, start, done = [], 0, 0
        for stop in range(1, len(ids) + 1):
            before, so_far = self._decode(ids[start:done]), self._decode(ids[start:stop])
            complete = not so_far.endswith("\ufffd") or stop == len(ids)
            texts.append(so_far[len(before) :] if complete and so_far.startswith(before) else "")
            if complete:
                start, done = done, stop
        return texts

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _encoded(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """What the model is given of some prompts; features instead of pictures where those may be kept."""
        if self._shares_images and remembers():
            return self._with_shared_images(prompts, list(range(len(prompts))))
        return self._to_device(self.encoder.batch(prompts))

    def _with_shared_images(self, prompts: list[Prompt], rows: list[int]) -> dict[str, Tensor]:
        """Model inputs of rows that share prompts, with every image encoded once."""
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        per_token = [{key: value for key, value in one.items() if key not in IMAGE_INPUTS} for one in encoded]
        row_idx = torch.tensor(rows, device=self.device)
        unique = self._to_device(collate(per_token, self.encoder.pad_id))
        inputs = {name: value[row_idx] for name, value in unique.items()}
        if not any(name in encoded[row] for row in rows for name in IMAGE_INPUTS):
            return inputs
        return inputs | self._eyes.inputs(prompts, encoded, rows, self._look, (id(self.model), self.adapter))

    def _look(self, pictures: Encoded) -> BaseModelOutputWithPooling:
        with self._adapter_state():
            return self.model.get_image_features(**self._to_device(pictures), return_dict=True)

    def _begin(self, encoded: dict, cache: DynamicCache) -> Float[Tensor, "B T D"]:
        """Hidden states of prompts, whose keys and values fill an empty cache."""
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = None  # of the prompts before
        return self._hidden(encoded | {"past_key_values": cache, "use_cache": True})

    def _repeat(self, cache: DynamicCache, rows: Int[Tensor, " B"]) -> None:
        """Have the prompts that a cache holds once for each of its completions, whatever the model keeps of them."""
        cache.batch_select_indices(rows)
        deltas = getattr(self.model.base_model, "rope_deltas", None)
        if deltas is not None:
            self.model.base_model.rope_deltas = deltas[rows]

    def _go_on(self, inputs: dict, cache: DynamicCache) -> Float[Tensor, "B T D"]:
        """Hidden states of tokens that come after what a cache holds.

        Under M-RoPE (Qwen-VL) an image takes fewer positions than it has tokens: rope_deltas is that difference.
        """
        deltas = getattr(self.model.base_model, "rope_deltas", None)
        if deltas is not None:
            places = inputs["attention_mask"].cumsum(-1)[:, -inputs["input_ids"].shape[1] :] - 1
            inputs = inputs | {"position_ids": (places + deltas).expand(3, -1, -1)}
        return self._hidden(inputs | {"past_key_values": cache, "use_cache": True})

    def _hidden(self, inputs: dict) -> Float[Tensor, "B T D"]:
        """Last hidden states of the model without its head."""
        with self._adapter_state():
            if self.shards is not None:
                return self.model.below_head(**inputs)
            return self.model.base_model(**inputs).last_hidden_state

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
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


def load_policy(path: str | Path, name: str, **options) -> AutoregressivePolicy:
    """A model that writes from left to right, frozen and in evaluation mode; options are those of load_model."""
    return AutoregressivePolicy(*load_model(path, name, **options), name)


def stop_ids(model: nn.Module, tokenizer) -> frozenset[int]:
    """Every token that ends an answer: the generation config's and the tokenizer's."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)  # masked LMs have none
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    return frozenset(int(token) for token in [*declared, tokenizer.eos_token_id] if token is not None)


def _context_length(model: nn.Module) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _head(model: nn.Module) -> Head:
    """The output layer and what the family does after it: a scale (Cohere, Granite) and a soft cap (Gemma)."""
    config = model.config.get_text_config()
    scale = 1.0
    if model.config.model_type in ("cohere", "cohere2", "aya_vision", "cohere2_vision"):
        scale = float(getattr(config, "logit_scale", None) or 1.0)
    if getattr(config, "logits_scaling", None):
        scale = 1.0 / float(config.logits_scaling)
    return Head(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))
