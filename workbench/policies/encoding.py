"""Prompt encoding with processors and chat templates.

Each prompt is encoded alone and cached; a batch is collated from cached prompts. So a batch can be split at any row,
however a family packs its pixels:

    ids and masks        padded on the left to the longest prompt
    everything else      concatenated along the first axis; other axes zero-padded to the largest (families with one row
                         per prompt pad the number of images or patches)
"""

import copy
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from workbench.data.images import note, open_image
from workbench.errors import ConfigError, PolicyError, PromptTooLongError
from workbench.policies.image_size import MAX_PIXELS, reduce
from workbench.policies.templates import PROBE, TEXT, check_system_prompt, check_template_kwargs, content_form
from workbench.types import Prompt, Turn

CACHE_BYTES = 2**30  # of encoded prompts per encoder; least recently used are evicted
RECENT_PICTURES = 8  # cached sets of processed images
GRID = "image_grid_thw"
POOLING = "image_token_pooling"  # Molmo 2: patch indices of each image token
MODALITIES = "mm_token_type_ids"

Encoded = dict[str, Tensor]

VISION_START = "<|vision_start|>"  # Qwen families


class PromptEncoder:
    """Encodes prompts with a Hugging Face processor (or a tokenizer alone, for models without images).

    max_pixels  larger images are reduced before the processor sees them; None = no limit
    limit_key   configuration key of max_pixels, for messages
    """

    def __init__(self, processor: Any, *, max_prompt_length: int | None = None) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.max_prompt_length = max_prompt_length
        self.context_length = max_prompt_length  # of prompt and completion together
        self.max_pixels: int | None = MAX_PIXELS
        self.limit_key = "models.max_pixels"
        self.system_prompt: str | None = None  # of prompts without a system turn
        self.chat_template_kwargs: dict[str, Any] = {}
        self._content = content_form(processor) if getattr(processor, "chat_template", None) is not None else None
        declares = self.processor is not self.tokenizer and MODALITIES in processor.model_input_names
        self.processor_options = {"processor_kwargs": {f"return_{MODALITIES}": True}} if declares else {}
        self._kept: OrderedDict[str, tuple[Prompt, Encoded]] = OrderedDict()
        self._kept_bytes = 0
        self._pictures: OrderedDict[tuple, _ImageInputs] = OrderedDict()  # of recent prompts
        added = self.tokenizer.added_tokens_decoder.values()  # includes image placeholders, which have no role
        special = dict.fromkeys(
            [*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)]
        )
        self._special = tuple(token for token in special if token.strip())
        self._first_signs = {token[0] for token in self._special}

    def encodes_as(self, other: "PromptEncoder") -> bool:
        """Return whether both encode every prompt equally: same limits, processor, settings, vocabulary, template."""
        if type(self.processor) is not type(other.processor):
            return False
        if self._limits() != other._limits():
            return False
        settings, other_settings = (_settings(encoder.processor, encoder.tokenizer) for encoder in (self, other))
        return settings is not None and settings == other_settings

    def _limits(self) -> tuple:
        return self.max_prompt_length, self.max_pixels, self.system_prompt, self.chat_template_kwargs

    def set_template(self, system_prompt: str | None, chat_template_kwargs: dict[str, Any], name: str) -> None:
        """Set the system prompt and the arguments of the chat template.

        Raises: ConfigError with the policy's name if the template does not use them.
        """
        check_template_kwargs(self.processor, chat_template_kwargs, name)
        if system_prompt is not None:
            if token := self.special_in(system_prompt):
                raise ConfigError(f'{name}: models.system_prompt has the special token "{token}". Remove it.')
            check_system_prompt(self.processor, self._content, system_prompt, name)
        self.__dict__.pop("answer_prefix", None)
        self.system_prompt, self.chat_template_kwargs = system_prompt, dict(chat_template_kwargs)

    @functools.cached_property
    def answer_prefix(self) -> str:
        """Text that the chat template puts between a question and its answer; "" without a template."""
        if self._content is None:
            return ""
        return self._templated(Prompt((), PROBE)).rpartition(PROBE)[2]

    def encode(self, prompt: Prompt) -> Encoded:
        """Encode one prompt, ids (1, T). Raises PolicyError for special tokens in its text or a too long prompt."""
        cached_prompt, kept = self._kept.get(prompt.key, (None, None))
        if cached_prompt == prompt:  # compares text, turns and images, since an example with the same key can change
            self._kept.move_to_end(prompt.key)
            return kept
        encoded = self._encode(prompt)
        length = encoded["input_ids"].shape[1]
        if self.max_prompt_length is not None and length > self.max_prompt_length:
            raise PromptTooLongError(
                f'prompt "{prompt.key}" has {length} tokens (images included). Expected at most '
                f"{self.max_prompt_length}, beside the completion. Use smaller images ({self.limit_key}), a shorter "
                "text, a larger data.max_prompt_length if it is set, or a smaller sampling.max_completion_length."
            )
        if prompt.key:
            self._keep(prompt, encoded)
        return encoded

    def forget(self) -> None:
        """Forget encoded prompts and pictures, after a change of the template or of the image processor."""
        self._kept.clear()
        self._pictures.clear()
        self._kept_bytes = 0

    def picture_tokens(self, prompt: Prompt) -> int:
        """Number of tokens that the images of a prompt cost, without their marks under a processor that takes no prompt
        without images. Raises PolicyError as `encode`.
        """
        ids = self.encode(prompt)["input_ids"]
        bare = tuple(dataclasses.replace(turn, images=()) for turn in prompt.history)
        try:
            texts = self.encode(dataclasses.replace(prompt, key="", images=(), history=bare))["input_ids"]
        except PolicyError:  # PaliGemma's
            return int((ids == self.processor.image_token_id).sum())
        return ids.shape[1] - texts.shape[1]

    def open(self, source: Image.Image | Path) -> Image.Image:
        """Open an image as the processor gets it: upright, as RGB, of at most max_pixels pixels."""
        image = open_image(source)
        reduced = reduce(image, self.max_pixels)
        if reduced is not image:
            name = str(source) if isinstance(source, Path) else f"of {image.width} x {image.height} pixels, in memory,"
            note(f"more than {self.max_pixels:,} pixels ({self.limit_key}), reduced for the model", name)
        return reduced

    def special_in(self, text: str) -> str | None:
        """Return a special token that occurs in the text; None if none does."""
        if self._first_signs.isdisjoint(text):
            return None
        return next((token for token in self._special if token in text), None)

    def batch(self, prompts: list[Prompt]) -> Encoded:
        """Encode several prompts, ids padded on the left to (B, T)."""
        return collate([self.encode(prompt) for prompt in prompts], self.pad_id)

    @property
    def pad_id(self) -> int:
        """Padding token; masked, so any text token works."""
        return next(
            (token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if token is not None), 0
        )

    def _encode(self, prompt: Prompt) -> Encoded:
        for text in (prompt.text, *(turn.text for turn in prompt.history)):
            token = self.special_in(text)
            if token is not None:
                raise PolicyError(
                    f'prompt "{prompt.key}" contains the special token "{token}" as text. Remove it from the question; '
                    "the workbench places images itself."
                )
        if prompt.all_images and self.processor is self.tokenizer:
            raise PolicyError(
                f'prompt "{prompt.key}" has {len(prompt.all_images)} image(s), and the model has no image processor. '
                "Choose a vision-language model, or contexts and data without images."
            )
        pictures = self._opened(prompt.all_images)
        try:
            return self._process(prompt, pictures)
        except (ValueError, TypeError, TemplateError) as error:
            raise PolicyError(
                f'cannot encode prompt "{prompt.key}": the processor or chat template raises '
                f"{str(error) or type(error).__name__!r}. Change the question, its earlier turns or its images, or "
                "drop the row."
            ) from error

    def _opened(self, sources: tuple) -> "_ImageInputs":
        """Open the images of a prompt, cached for the next prompts with the same images."""
        key = tuple(source if isinstance(source, Path) else id(source) for source in sources)
        pictures = self._pictures.pop(key, None)
        if pictures is None:
            pictures = _ImageInputs(sources, [self.open(source) for source in sources], {})
        self._pictures[key] = pictures
        while len(self._pictures) > RECENT_PICTURES:
            self._pictures.popitem(last=False)
        return pictures

    def _process(self, prompt: Prompt, pictures: "_ImageInputs") -> Encoded:
        processor = self.processor
        if pictures.opened:
            processor = copy.copy(processor)
            processor.image_processor = _ImageProcessorProxy(processor.image_processor, pictures.outputs)
        if getattr(processor, "chat_template", None) is None:
            images = {"images": [pictures.opened]} if pictures.opened else {}
            return _inputs(processor(text=[self._plain_text(prompt)], **images, return_tensors="pt"))
        if self._content == TEXT and self.processor is not self.tokenizer:
            text = self._templated(prompt)
            images = {"images": [pictures.opened]} if pictures.opened else {}
            return _inputs(
                processor(text=[text], **images, add_special_tokens=not self._begins(text), return_tensors="pt")
            )
        encoded = processor.apply_chat_template(
            [self._messages(prompt, pictures.opened)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **self.processor_options,
            **self.chat_template_kwargs,
        )
        return _inputs(encoded)

    def request(self, prompt: Prompt) -> tuple[str, tuple[int, ...], tuple[Image.Image, ...]]:
        """Prompt for a rollout engine: text with one placeholder per image, its tokens, and the images."""
        images, begins = [self.open(image) for image in prompt.all_images], False
        if getattr(self.processor, "chat_template", None) is None:
            text = self._plain_text(prompt)
        else:
            text = self._templated(prompt)
            begins = self.processor is self.tokenizer or self._begins(text)
        ids = self.tokenizer(text, add_special_tokens=not begins)["input_ids"]
        return text, tuple(ids), tuple(images)

    def _templated(self, prompt: Prompt) -> str:
        messages = self._messages(prompt, [self.open(image) for image in prompt.all_images])
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self.chat_template_kwargs
        )

    def _begins(self, text: str) -> bool:
        """Return whether the template adds the start token, which is then not added again (as in transformers)."""
        return text.startswith(self.tokenizer.bos_token or "\0")

    def _messages(self, prompt: Prompt, images: list[Image.Image]) -> list[dict]:
        remaining = iter(images)
        messages: list[dict] = []
        for turn in (*self._history(prompt), Turn("user", prompt.text, prompt.images)):
            if self._content == TEXT:
                messages.append({"role": turn.role, "content": self._image_tokens(len(turn.images)) + turn.text})
                continue
            parts = [{"type": "image", "image": next(remaining)} for _ in turn.images]
            messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
        return messages

    def _history(self, prompt: Prompt) -> tuple[Turn, ...]:
        """Earlier turns, after the system prompt unless they have a system turn of their own."""
        if self.system_prompt is None or any(turn.role == "system" for turn in prompt.history):
            return prompt.history
        return (Turn("system", self.system_prompt), *prompt.history)

    def _plain_text(self, prompt: Prompt) -> str:
        """Prompt without a chat template: image tokens, then the text."""
        if prompt.history:
            raise PolicyError(
                f'prompt "{prompt.key}" has earlier turns, and the model\'s processor has no chat template. Save a '
                "chat "
                "template with the processor, or use single questions."
            )
        return self._image_tokens(len(prompt.all_images)) + prompt.text

    def _image_tokens(self, count: int) -> str:
        """Placeholders of images, for prompts where the chat template does not insert them."""
        if count and VISION_START in self.tokenizer.get_vocab():
            raise PolicyError(
                f"the model's processor has no chat template, which must put images between {VISION_START} and an end "
                "token. Put the model's chat_template.jinja into its folder."
            )
        return getattr(self.processor, "image_token", "<image>") * count

    def _keep(self, prompt: Prompt, encoded: Encoded) -> None:
        if prompt.key in self._kept:
            self._kept_bytes -= _num_bytes(*self._kept.pop(prompt.key))
        self._kept[prompt.key] = prompt, encoded
        self._kept_bytes += _num_bytes(prompt, encoded)
        while self._kept_bytes > CACHE_BYTES:
            self._kept_bytes -= _num_bytes(*self._kept.popitem(last=False)[1])


class _ImageInputs(NamedTuple):
    """Images of a prompt, and the outputs of the image processor, which do not depend on the text."""

    sources: tuple  # references, so that their ids stay unique
    opened: list[Image.Image]
    outputs: dict[str, Mapping]


class _ImageProcessorProxy:
    """Image processor of one prompt that returns cached outputs for the same images."""

    def __init__(self, image_processor: Any, outputs: dict[str, Mapping]) -> None:
        self._image_processor, self._outputs, self._calls = image_processor, outputs, 0

    def __call__(self, *images: object, **options: Any) -> Mapping:
        self._calls += 1  # some families process the images of a prompt one by one
        key = f"{self._calls} { {name: value for name, value in options.items() if name != 'images'} }"
        if key not in self._outputs:
            self._outputs[key] = self._image_processor(*images, **options)
        return copy.copy(self._outputs[key])  # processors pop items from it

    def __getattr__(self, name: str) -> object:
        return getattr(self._image_processor, name)


def _settings(processor: Any, tokenizer: Any) -> tuple | None:
    """All settings that determine the encoding of a prompt; None for tokenizers that do not expose them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    template = getattr(processor, "chat_template", None)
    whole = None if processor is tokenizer else processor.to_json_string()
    rules = backend.to_str().partition('"added_tokens"')[2]  # the part before it is the padding state of the last call
    return rules, tokenizer.special_tokens_map, tokenizer.padding_side, template, whole


def _inputs(encoded: Mapping[str, object]) -> Encoded:
    """Model inputs, without the labels that some processors add and that would make the model compute a loss."""
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor) and name != "labels"}


def collate(encoded: list[Encoded], pad_id: int) -> Encoded:
    """Collate encoded prompts to one batch, ids and masks padded on the left."""
    batch = {}
    names = dict.fromkeys(name for inputs in encoded for name in inputs)
    longest = max(inputs["input_ids"].shape[1] for inputs in encoded)
    for name in names:
        if any(is_per_token(inputs, name) for inputs in encoded):
            fill = pad_id if name == "input_ids" else 0  # 0 is text, of which some families give no types
            values = [inputs[name] if name in inputs else torch.zeros_like(inputs["input_ids"]) for inputs in encoded]
            batch[name] = _end_to_end([_padded_left(value, longest, fill) for value in values])
        else:
            batch[name] = _joined(encoded, name)
    return batch


def collate_pictures(encoded: list[Encoded]) -> Encoded:
    """Collate the vision tower's inputs of several prompts, or of several images of one prompt."""
    names = dict.fromkeys(name for inputs in encoded for name in image_inputs(inputs))
    return {name: _joined(encoded, name) for name in names}


def image_inputs(encoded: Encoded) -> Encoded:
    """Image inputs of an encoded prompt: all inputs that are not per token."""
    return {name: value for name, value in encoded.items() if not is_per_token(encoded, name)}


def is_per_token(encoded: Encoded, name: str) -> bool:
    """Return whether an input has a value, or several, for each token: masks, token types, images that a token sees."""
    ids, value = encoded.get("input_ids"), encoded.get(name)
    return ids is not None and isinstance(value, Tensor) and value.shape[:2] == ids.shape


def _padded_left(value: Tensor, length: int, fill: int) -> Tensor:
    """Pad an input with a value per token to a number of tokens."""
    return F.pad(value, (0, 0) * (value.ndim - 2) + (length - value.shape[1], 0), value=fill)


def _joined(encoded: list[Encoded], name: str) -> Tensor:
    """Concatenate an image input over prompts; patch indices are offset by the patches of earlier prompts."""
    having = [inputs for inputs in encoded if name in inputs]
    values = [inputs[name] for inputs in having]
    if name != POOLING:
        return _end_to_end(values)
    largest, before = max(value.shape[-1] for value in values), 0
    counted = []
    for inputs, value in zip(having, values, strict=True):
        padded = F.pad(value, (0, largest - value.shape[-1]), value=-1)
        counted.append(torch.where(padded >= 0, padded + before, padded))
        before += inputs["pixel_values"].shape[:2].numel()
    return torch.cat(counted)


def picture_by_picture(encoded: Encoded, count: int) -> list[Encoded] | None:
    """Split the image inputs of a prompt by its `count` images.

    None if that is not possible: for images cut into tiles, and families that encode an image differently among
    several.
    """
    inputs = image_inputs(encoded)
    if count == 1:
        return [inputs]
    if {"num_crops", "batch_num_images", POOLING} & inputs.keys():
        return None
    if GRID in inputs and len(inputs[GRID]) == count:  # packed: one row per patch
        parts = {"pixel_values": inputs.pop("pixel_values").split(inputs[GRID].prod(-1).tolist())}
    else:
        parts = {}
    nested = all(value.shape[:2] == (1, count) for value in inputs.values())
    if not nested and any(len(value) != count for value in inputs.values()):
        return None
    parts |= {name: value.split(1, 1 if nested else 0) for name, value in inputs.items()}
    return [{name: values[idx] for name, values in parts.items()} for idx in range(count)]


def _end_to_end(rows: list[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(row.shape[1:] for row in rows), strict=True)]
    return torch.cat([_pad_to(row, largest) for row in rows])


def _pad_to(value: Tensor, sizes: list[int]) -> Tensor:
    padding = []
    for have, want in zip(reversed(value.shape[1:]), reversed(sizes), strict=True):
        padding += [0, want - have]
    return F.pad(value, padding) if any(padding) else value


def _num_bytes(prompt: Prompt, encoded: Encoded) -> int:
    pictures = sum(3 * image.width * image.height for image in prompt.all_images if isinstance(image, Image.Image))
    return pictures + sum(value.numel() * value.element_size() for value in encoded.values())


def append(inputs: dict, completions: list[tuple[int, ...]], pad_id: int, token_type: int) -> dict:
    """Append completions to prompts, padded on the right; other values per token repeat those of the last token.

    token_type  token type of completions, where the processor gives types; others repeat: a text token follows a text
                token, and sees the images that it saw
    """
    device, longest = inputs["input_ids"].device, max(len(ids) for ids in completions)
    ids = torch.full((len(completions), longest), pad_id)
    mask = torch.zeros((len(completions), longest), dtype=torch.long)
    for row, completion in enumerate(completions):
        ids[row, : len(completion)] = torch.tensor(completion, dtype=torch.long)
        mask[row, : len(completion)] = 1
    ids, mask = ids.to(device), mask.to(device)
    appended = dict(inputs)
    appended["input_ids"] = torch.cat((inputs["input_ids"], ids), -1)
    appended["attention_mask"] = torch.cat((inputs["attention_mask"], mask), -1)
    for name in inputs.keys() - {"input_ids", "attention_mask"}:
        if is_per_token(inputs, name):
            last = inputs[name][:, -1:]
            last = torch.full_like(last, token_type) if name in ("token_type_ids", MODALITIES) else last
            appended[name] = torch.cat((inputs[name], last.repeat(1, longest, *[1] * (last.ndim - 2))), 1)
    return appended


def distinct(prompts: list[Prompt]) -> tuple[list[Prompt], list[int]]:
    """Distinct prompts, and the index of each row's prompt."""
    row_of: dict[int, int] = {}
    rows = [row_of.setdefault(id(prompt), len(row_of)) for prompt in prompts]
    return list({id(prompt): prompt for prompt in prompts}.values()), rows
