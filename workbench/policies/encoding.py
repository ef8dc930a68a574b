"""Prompts to tensors: the one place that knows processors and chat templates.

Each prompt is encoded alone and kept; a batch is put together from the kept pieces. So a batch can be cut anywhere
without cutting an image in two, whatever way a family packs its pixels:

    ids and masks        padded on the left to the longest prompt
    everything else      laid along the first axis; other axes padded with zeros to the largest (families with one row
                         per prompt pad the number of images or patches so)
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from workbench.data.images import open_image
from workbench.errors import PolicyError
from workbench.policies.templates import TEXT, content_form
from workbench.types import Prompt, Turn

CACHE_BYTES = 2**30  # of encoded prompts per policy family; oldest go first
RECENT_PICTURES = 8  # sets of pictures that are kept prepared
GRID = "image_grid_thw"
POOLING = "image_token_pooling"  # of Molmo 2: for each image token, which of its prompt's patches it is made of
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

Encoded = dict[str, Tensor]

VISION_START = "<|vision_start|>"  # of Qwen's families


class PromptEncoder:
    """Encodes prompts with a Hugging Face processor (or a tokenizer alone, for models without images)."""

    def __init__(self, processor: Callable, *, max_prompt_length: int | None = None) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.max_prompt_length = max_prompt_length
        self.context_length = max_prompt_length  # of prompt and completion together
        self._content = content_form(processor) if getattr(processor, "chat_template", None) is not None else None
        self._kept: OrderedDict[str, tuple[Prompt, Encoded]] = OrderedDict()
        self._kept_bytes = 0
        self._pictures: OrderedDict[tuple, _ImageInputs] = OrderedDict()  # of the prompts before
        added = self.tokenizer.added_tokens_decoder.values()  # not all are in the list of roles: placeholders of images
        special = dict.fromkeys(
            [*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)]
        )
        self._special = tuple(token for token in special if token.strip())
        self._first_signs = {token[0] for token in self._special}

    def encodes_as(self, other: "PromptEncoder") -> bool:
        """Whether both make the same of every prompt: processors of one kind, with the same settings, words and template."""
        if type(self.processor) is not type(other.processor) or self.max_prompt_length != other.max_prompt_length:
            return False
        settings, other_settings = (_settings(encoder.processor, encoder.tokenizer) for encoder in (self, other))
        return settings is not None and settings == other_settings

    def encode(self, prompt: Prompt) -> Encoded:
        """One prompt, ids of shape (1, T). Raises PolicyError for special tokens in its text or too long a prompt."""
        cached_prompt, kept = self._kept.get(prompt.key, (None, None))
        if cached_prompt == prompt:  # text, turns and pictures: an example may have been changed and kept its name
            self._kept.move_to_end(prompt.key)
            return kept
        encoded = self._encode(prompt)
        length = encoded["input_ids"].shape[1]
        if self.max_prompt_length is not None and length > self.max_prompt_length:
            raise PolicyError(
                f'prompt "{prompt.key}" has {length} tokens (images included), the model takes {self.max_prompt_length} '
                "beside the completion. Use smaller images, a shorter text, or a smaller sampling.max_completion_length."
            )
        if prompt.key:
            self._keep(prompt, encoded)
        return encoded

    def special_in(self, text: str) -> str | None:
        """A special token that stands in the text as words; None if there is none, as in nearly every text."""
        if self._first_signs.isdisjoint(text):
            return None
        return next((token for token in self._special if token in text), None)

    def batch(self, prompts: list[Prompt]) -> Encoded:
        """Several prompts, ids padded on the left to (B, T)."""
        return collate([self.encode(prompt) for prompt in prompts], self.pad_id)

    @property
    def pad_id(self) -> int:
        """What fills a row up; masked, so any text token will do."""
        return next(
            (token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if token is not None), 0
        )

    def _encode(self, prompt: Prompt) -> Encoded:
        for text in (prompt.text, *(turn.text for turn in prompt.history)):
            token = self.special_in(text)
            if token is not None:
                raise PolicyError(
                    f'prompt "{prompt.key}" contains the special token "{token}" as text, which the model would '
                    "read as a command. Remove it from the question; images are placed by the workbench."
                )
        if prompt.all_images and self.processor is self.tokenizer:
            raise PolicyError(
                f'prompt "{prompt.key}" has {len(prompt.all_images)} image(s), but this model has no image processor. '
                "Choose a vision-language model, or contexts and data without images."
            )
        pictures = self._opened(prompt.all_images)
        try:
            return self._process(prompt, pictures)
        except (ValueError, TypeError, TemplateError) as error:
            raise PolicyError(
                f'prompt "{prompt.key}" cannot be encoded: the model\'s processor or chat template says '
                f"{str(error) or type(error).__name__!r}. Change the question, its earlier turns or its images, or drop the row."
            ) from error

    def _opened(self, sources: tuple) -> "_ImageInputs":
        """A prompt's pictures, opened and prepared once for all prompts in a row that show them."""
        key = tuple(source if isinstance(source, Path) else id(source) for source in sources)
        pictures = self._pictures.pop(key, None) or _ImageInputs(sources, [open_image(source) for source in sources])
        self._pictures[key] = pictures
        while len(self._pictures) > RECENT_PICTURES:
            self._pictures.popitem(last=False)
        return pictures

    def _process(self, prompt: Prompt, pictures: "_ImageInputs") -> Encoded:
        processor = self.processor
        if pictures.opened:
            processor = copy.copy(processor)
            processor.image_processor = pictures.preparing(processor.image_processor)
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
        )
        return _inputs(encoded)

    def request(self, prompt: Prompt) -> tuple[str, tuple[int, ...], tuple[Image.Image, ...]]:
        """What a rollout engine is given: the prompt as text with one placeholder an image, its tokens, and its images."""
        images, begins = [open_image(image) for image in prompt.all_images], False
        if getattr(self.processor, "chat_template", None) is None:
            text = self._plain_text(prompt)
        else:
            text = self._templated(prompt)
            begins = self.processor is self.tokenizer or self._begins(text)
        ids = self.tokenizer(text, add_special_tokens=not begins)["input_ids"]
        return text, tuple(ids), tuple(images)

    def _templated(self, prompt: Prompt) -> str:
        messages = self._messages(prompt, [open_image(image) for image in prompt.all_images])
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _begins(self, text: str) -> bool:
        """Whether the template writes the start token, which is then not added again (as transformers decides it)."""
        return text.startswith(self.tokenizer.bos_token or "\0")

    def _messages(self, prompt: Prompt, images: list[Image.Image]) -> list[dict]:
        remaining, messages = iter(images), []
        for turn in (*prompt.history, Turn("user", prompt.text, prompt.images)):
            if self._content == TEXT:
                messages.append({"role": turn.role, "content": self._image_tokens(len(turn.images)) + turn.text})
                continue
            parts = [{"type": "image", "image": next(remaining)} for _ in turn.images]
            messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
        return messages

    def _plain_text(self, prompt: Prompt) -> str:
        """Without a chat template: image tokens, then the text."""
        if prompt.history:
            raise PolicyError(
                f'prompt "{prompt.key}" has earlier turns, but the model\'s processor has no chat template for them. '
                "Save a chat template with the processor, or use single questions."
            )
        return self._image_tokens(len(prompt.all_images)) + prompt.text

    def _image_tokens(self, count: int) -> str:
        """What stands for pictures where no chat template places them."""
        if count and VISION_START in self.tokenizer.get_vocab():
            raise PolicyError(
                f"the model's processor has no chat template that places pictures, and they stand between {VISION_START} and "
                "another token that only the template writes. Put the model's chat_template.jinja into its folder."
            )
        return getattr(self.processor, "image_token", "<image>") * count

    def _keep(self, prompt: Prompt, encoded: Encoded) -> None:
        if prompt.key in self._kept:
            self._kept_bytes -= _num_bytes(*self._kept.pop(prompt.key))
        self._kept[prompt.key] = prompt, encoded
        self._kept_bytes += _num_bytes(prompt, encoded)
        while self._kept_bytes > CACHE_BYTES:
            self._kept_bytes -= _num_bytes(*self._kept.popitem(last=False)[1])


@dataclass
class _ImageInputs:
    """Pictures of a prompt, and what the family's image processor has made of them: the same for every text beside them."""

    sources: tuple  # themselves, so that no other object gets their identity
    opened: list[Image.Image]
    prepared: dict[str, Mapping] = field(default_factory=dict)

    def preparing(self, image_processor: Callable) -> "_ImageProcessorProxy":
        return _ImageProcessorProxy(image_processor, self.prepared)


class _ImageProcessorProxy:
    """Stands for an image processor while one prompt is encoded, and gives again what it gave for the same pictures."""

    def __init__(self, image_processor: Callable, prepared: dict[str, Mapping]) -> None:
        self._image_processor, self._prepared, self._calls = image_processor, prepared, 0

    def __call__(self, *images: object, **options: object) -> Mapping:
        self._calls += 1  # a family may prepare a prompt's pictures one after the other
        key = f"{self._calls} { {name: value for name, value in options.items() if name != 'images'} }"
        if key not in self._prepared:
            self._prepared[key] = self._image_processor(*images, **options)
        return copy.copy(self._prepared[key])  # processors take things out of it

    def __getattr__(self, name: str) -> object:
        return getattr(self._image_processor, name)


def _settings(processor: Callable, tokenizer: Callable) -> tuple | None:
    """All that decides what a processor makes of a prompt; None for tokenizers that do not tell."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    template = getattr(processor, "chat_template", None)
    whole = None if processor is tokenizer else processor.to_json_string()
    rules = backend.to_str().partition('"added_tokens"')[2]  # before it: how the last call padded, which is no rule
    return rules, tokenizer.special_tokens_map, tokenizer.padding_side, template, whole


def _inputs(encoded: Mapping[str, object]) -> Encoded:
    """What the model is given; some processors add labels, which would make it compute a loss of its own."""
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor) and name != "labels"}


def collate(encoded: list[Encoded], pad_id: int) -> Encoded:
    """Encoded prompts as one batch, ids and masks padded on the left."""
    batch = {}
    names = dict.fromkeys(name for inputs in encoded for name in inputs)
    longest = max(inputs["input_ids"].shape[1] for inputs in encoded)
    for name in names:
        if name in _PER_TOKEN:
            fill = pad_id if name == "input_ids" else 0
            # some families give token types only to prompts with images; 0 is text
            values = [inputs[name] if name in inputs else torch.zeros_like(inputs["input_ids"]) for inputs in encoded]
            rows = [F.pad(ids, (longest - ids.shape[1], 0), value=fill) for ids in values]
            batch[name] = torch.cat(rows)
        else:
            batch[name] = _joined(encoded, name)
    return batch


def collate_pictures(encoded: list[Encoded]) -> Encoded:
    """What a vision tower is given of several prompts, or of several pictures of a prompt."""
    names = dict.fromkeys(name for inputs in encoded for name in image_inputs(inputs))
    return {name: _joined(encoded, name) for name in names}


def image_inputs(encoded: Encoded) -> Encoded:
    """What of an encoded prompt is about its pictures: all that is not about its tokens."""
    return {name: value for name, value in encoded.items() if name not in _PER_TOKEN}


def _joined(encoded: list[Encoded], name: str) -> Tensor:
    """An input about pictures, of prompts one after the other; indices go on counting where the prompt before ended."""
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
    """What a prompt's vision tower is given, apart for each of its `count` pictures; None where it cannot be told apart:
    pictures cut into tiles, and families that read one among several otherwise than one alone."""
    inputs = image_inputs(encoded)
    if count == 1:
        return [inputs]
    if {"num_crops", "batch_num_images", POOLING} & inputs.keys():
        return None
    if GRID in inputs and len(inputs[GRID]) == count:  # packed: as many rows as the picture has patches
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
    """Completions to the right of the prompts, padded on the right; masks and token types follow."""
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
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            appended[name] = torch.cat((inputs[name], torch.full_like(ids, token_type)), -1)
    return appended


def distinct(prompts: list[Prompt]) -> tuple[list[Prompt], list[int]]:
    """The different prompts, and which of them each row has."""
    row_of: dict[int, int] = {}
    rows = [row_of.setdefault(id(prompt), len(row_of)) for prompt in prompts]
    return list({id(prompt): prompt for prompt in prompts}.values()), rows
