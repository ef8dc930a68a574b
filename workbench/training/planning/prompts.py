"""Prompts of a planned step: real ones where the model's folder has a processor, otherwise ids and patches as many."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoConfig, PretrainedConfig

from workbench.config.schema import RunConfig
from workbench.data.contexts import build_prompt, dummy_rollout, parse_context, user_turns
from workbench.data.counterparts import WRONG
from workbench.data.examples import split_by_evidence
from workbench.data.mixture import load_mixture
from workbench.errors import ConfigError, DataError, PolicyError
from workbench.policies.adapters import base_of
from workbench.policies.encoding import GRID, MODALITIES, Encoded, PromptEncoder, collate
from workbench.policies.image_size import MAX_PIXELS, reduced_size
from workbench.policies.loading import load_encoder
from workbench.types import Box, Evidence, Example, Prompt

EXAMPLES = 16  # rows of data.train of which the longest prompt is planned
TEXT_TOKENS = 256  # of a question with its template, where no row says how many
EVIDENCE_TOKENS = 64  # of each piece of evidence that is text
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class PromptSize:
    """Size of planned prompts that no data gives. picture: width and height in pixels, None = models.max_pixels."""

    text_tokens: int = TEXT_TOKENS
    picture: tuple[int, int] | None = None


class Sized(NamedTuple):
    """An encoded prompt, its number of pictures, and how many of its tokens are theirs."""

    encoded: Encoded
    pictures: int
    picture_tokens: int

    @property
    def tokens(self) -> int:
        return self.encoded["input_ids"].shape[1]


class PlannedEncoder(PromptEncoder):
    """Stands for a PromptEncoder: the encoding of a prompt is looked up by its context, which is its text."""

    def __init__(self, by_context: dict[str, Sized]) -> None:
        self.by_context = by_context
        self.processor_options: dict[str, Any] = {}

    @property
    def pad_id(self) -> int:
        return 0

    def encode(self, prompt: Prompt) -> Encoded:
        return self.by_context[prompt.text].encoded

    def batch(self, prompts: list[Prompt]) -> Encoded:
        return collate([self.encode(prompt) for prompt in prompts], self.pad_id)


def has_processor(path: str | Path) -> bool:
    """Whether a folder can encode prompts; a name on a hub is taken to."""
    base = Path(base_of(path))
    return not base.is_dir() or any((base / name).is_file() for name in _PROCESSOR_FILES)


def planned_examples(config: RunConfig, contexts: list[str], size: PromptSize | None) -> list[Example]:
    """Rows whose longest prompts are planned: the first usable ones of the data, or one of a given size."""
    if size is not None:
        return [_example(size, config.models.max_pixels or MAX_PIXELS, contexts)]
    rows = load_mixture(config.data.train_sources, max_examples=EXAMPLES)
    usable, lacking = split_by_evidence(rows, contexts)
    if not usable:
        raise DataError(
            f"none of the first {len(rows)} rows of {config.data.train_text} has what the contexts "
            f"{', '.join(contexts)} need; the first has no {lacking[0][1]}. Give --picture "
            "WIDTHxHEIGHT to plan without data."
        )
    return usable


def real_prompts(
    config: RunConfig, path: str, name: str, contexts: list[str], examples: list[Example]
) -> dict[str, Sized]:
    """The longest prompt of each context, by the model's own processor."""
    models = config.models
    options = models.student_options | (models.teacher_options if name.startswith("teacher") else {})
    options.pop("patience", None)  # of servers
    encoder = load_encoder(path, name, **{key: value for key, value in options.items() if key != "dtype"})
    by_context = {}
    for context in contexts:
        encoded = [_encode(encoder, example, context, config.sampling.max_completion_length) for example in examples]
        by_context[context] = max(encoded, key=lambda sized: sized.tokens)
    return by_context


def _encode(encoder: PromptEncoder, example: Example, context: str, completion: int) -> Sized:
    answer = "word " * completion  # feedback and replies are taken to be as long as an answer may be
    rollout = replace(dummy_rollout(example), feedback=answer, replies=(answer,) * (len(user_turns(example)) - 1))
    prompt = build_prompt(example, context, rollout)
    encoded = encoder.encode(replace(prompt, key=""))
    bare = encoder.encode(replace(prompt, key="", images=(), history=())) if prompt.all_images else encoded
    tokens = encoded["input_ids"].shape[1] - bare["input_ids"].shape[1] if not prompt.history else 0
    return Sized(encoded, len(prompt.all_images), tokens)


def _example(size: PromptSize, max_pixels: int, contexts: list[str]) -> Example:
    width, height = size.picture or _square(max_pixels)
    picture, text = Image.new("RGB", (width, height)), "word " * EVIDENCE_TOKENS
    evidence = Evidence((Box(0, 0, width, height, "region"),), crops=(picture.copy(),), caption=text, hint=text)
    question = "word " * size.text_tokens + "? A fact."
    example = Example("planned", question, (picture,), answer=text, reference=text, evidence=evidence)
    usable, lacking = split_by_evidence([example], contexts)
    if not usable:
        raise ConfigError(
            f"a plan without data cannot show the contexts {', '.join(contexts)}: {lacking[0][1]}. Leave out --picture "
            "and --text-tokens, so that rows of data.train are planned."
        )
    return usable[0]


def sized_prompts(config: RunConfig, path: str, name: str, contexts: list[str], size: PromptSize) -> dict[str, Sized]:
    """Prompts of a model whose folder has no processor: text, and packed patches as Qwen-VL takes them.

    Raises: PolicyError for a model whose pictures are not packed by a grid.
    """
    settings = AutoConfig.from_pretrained(path)
    vision = getattr(settings, "vision_config", None)
    if vision is not None and not hasattr(vision, "spatial_merge_size"):
        raise PolicyError(
            f"{name}: the folder has no processor, so the number of a picture's tokens is not known for "
            f"{settings.model_type}. Copy the processor's files beside config.json."
        )
    models = config.models
    limit = models.teacher_max_pixels if name.startswith("teacher") and models.teacher_max_pixels else models.max_pixels
    width, height = reduced_size(*(size.picture or _square(limit or MAX_PIXELS)), limit)
    return {
        context: _sized(
            settings,
            _num_pictures(context) if vision is not None else 0,
            _num_text_tokens(context, size.text_tokens, config.sampling.max_completion_length),
            (width, height),
        )
        for context in contexts
    }


def _sized(config: PretrainedConfig, pictures: int, text_tokens: int, picture: tuple[int, int]) -> Sized:
    text = [1] * text_tokens
    if not pictures:
        ids = torch.tensor([text])
        return Sized({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 0, 0)
    vision, merge = config.vision_config, config.vision_config.spatial_merge_size
    unit = vision.patch_size * merge
    columns, rows = (max(1, round(edge / unit)) for edge in picture)
    begin, end = (getattr(config, f"vision_{side}_token_id", 1) for side in ("start", "end"))
    image_ids = [begin, *[config.image_token_id] * (columns * rows), end] * pictures
    ids = torch.tensor([image_ids + text])
    patches = pictures * columns * rows * merge**2
    width = getattr(vision, "in_channels", 3) * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
    encoded = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 1).expand(patches, width),
        GRID: torch.tensor([[1, rows * merge, columns * merge]] * pictures),
        MODALITIES: (ids == config.image_token_id).int(),
    }
    return Sized(encoded, pictures, len(image_ids))


def _square(pixels: int) -> tuple[int, int]:
    edge = int(pixels**0.5)
    return edge, edge


def _num_pictures(context: str) -> int:
    """Pictures in the prompt of an example with one."""
    return 1 + sum(part in ("crop", "wrong_crop") for part in parse_context(context))


def _num_text_tokens(context: str, tokens: int, completion: int) -> int:
    """Tokens of text; feedback, replies and references are taken to be as long as an answer may be."""
    for part in parse_context(context):
        if part in ("feedback", "turns", "reference"):
            tokens += completion
        elif WRONG.get(part, part) in ("boxes", "caption", "hint", "answer"):
            tokens += EVIDENCE_TOKENS
    return tokens
