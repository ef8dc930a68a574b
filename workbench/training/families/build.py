"""Build a small random model of a model type, with tokenizer, processor and chat template, and save it."""

import functools
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from workbench.policies.models import auto_class
from workbench.training.families.corrections import CORRECTIONS, Correction
from workbench.training.families.processors import COUNTS, build_processor, patch_size, pinpoints, processor_class
from workbench.training.families.sizes import is_vocabulary, shrink, sub_configs
from workbench.training.families.tokenizer import small_tokenizer
from workbench.training.pretraining.tokenizer import CHAT_TEMPLATE

STD = 0.1  # of initial weights: at the usual small ones, all answers look the same
_ENDS = ("pad", "bos", "eos")
_SMALL = 64  # numbers below are of layers and axes, if their key does not name a token


def save_family(folder: Path, model_type: str, seed: int = 0) -> Path:
    """Save a small model of a model type with its processor, as save_pretrained leaves them.

    Raises: ImportError, ValueError and others of transformers, for a model type that it cannot build from its default
    configuration.
    """
    model, processor = build_family(model_type, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_family(model_type: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """Build a small model of a model type, and its processor (a tokenizer for one without images)."""
    correction = CORRECTIONS.get(model_type, Correction())
    takes_images = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    official = processor_class(model_type, correction) if takes_images else None
    takes_images = official is not None  # Mistral 4 alone is mapped without a processor
    tokenizer = small_tokenizer(official, correction.tokens, correction.literals)
    config = shrink(_default(model_type), len(tokenizer))  # _set_tokens may add tokens
    for values in sub_configs(config):
        if "image_grid_pinpoints" in values:
            values["image_grid_pinpoints"] = pinpoints(patch_size(config))
    for key, value in correction.config.items():
        _set(config, key, value)
    processor = build_processor(model_type, config, tokenizer, correction) if takes_images else tokenizer
    if not takes_images:
        tokenizer.chat_template = CHAT_TEMPLATE
    _set_tokens(config, processor, correction)
    config.pop("model_type")
    built = AutoConfig.for_model(model_type, **config)
    model = _random(built, seed)
    if takes_images and COUNTS & inspect.signature(official.__init__).parameters.keys():
        count = _count_tokens(model, processor)
        if count:
            processor = build_processor(model_type, config, tokenizer, correction, count)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _ENDS}
    model.generation_config = GenerationConfig(**ends)
    return model, processor


def _default(model_type: str) -> dict[str, Any]:
    """Default configuration of a model type, with those of its parts."""
    config = AutoConfig.for_model(model_type)
    values = config.to_dict() | {"model_type": model_type}
    for name, part in config.sub_configs.items():
        if values.get(name) is None and "vision" in name:  # some types have no vision tower by default
            values[name] = part().to_dict()
    return values


def _random(config: PretrainedConfig, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # in a deep tower of small kernels nothing of the image would be left at STD
            nn.init.normal_(parameter, std=max(STD, parameter[0].numel() ** -0.5) if parameter.ndim == 4 else STD)
        elif not parameter.any():
            # of a zero gate nothing would pass, and a shortcut could hold for a zero scale alone
            nn.init.constant_(parameter, 0.5) if parameter.numel() == 1 else nn.init.normal_(parameter, std=STD)
    return model


@torch.no_grad()
def _count_tokens(model: nn.Module, processor: Any) -> int | None:
    """Image tokens that a model makes of one image or tile; None if it does not tell."""
    inputs = processor.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")
    shows = model if hasattr(model, "get_image_features") else model.base_model
    taken = inspect.signature(shows.get_image_features).parameters
    inputs = {name: value for name, value in inputs.items() if name in taken}
    try:
        features = shows.eval().get_image_features(**inputs, return_dict=True).pooler_output
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    return features[0].shape[-2] if features[0].ndim > 1 else None


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        config = config[parent]
    if value is None:
        config.pop(name, None)
    else:
        config[name] = value


def _set_tokens(config: dict[str, Any], processor: Any, correction: Correction) -> None:
    """Set the token ids of a configuration to those of the tokenizer, and sizes of vocabularies to its size.

    A token that neither processor nor tokenizer names becomes a new special token.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    id_of = functools.partial(_token_id, processor, tokenizer, correction)
    for values in sub_configs(config):
        for key, value in [item for item in values.items() if isinstance(item[0], str)]:
            match = re.fullmatch(r"(\w+?)(?:_token)?_(?:id|index)|(\w+)_token", key)
            name = str(match[1] or match[2]) if match else ""
            is_id = isinstance(value, int) and not isinstance(value, bool) and ("token" in key or value > _SMALL)
            if name in _ENDS or (match and is_id) or (name == "image" and value is None):
                values[key] = id_of(key, name)
    if "vocabulary_map" in config:  # an image is words of the vocabulary
        config["vocabulary_map"] = tokenizer.get_vocab()
    for values in sub_configs(config):
        values |= dict.fromkeys([key for key in values if is_vocabulary(key)], _padded(len(tokenizer)))


def _image_id(processor: Any) -> int | None:
    """The token that fills an image's place in a prompt: the most frequent special one; None if that does not tell."""
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "red"}]
    try:
        encoded = processor.apply_chat_template(
            [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, return_tensors="pt"
        )
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None
    special = set(processor.tokenizer.added_tokens_decoder)
    counts = Counter(token for token in encoded["input_ids"][0].tolist() if token in special)
    token_id, count = counts.most_common(1)[0]
    return token_id if count > 1 else None


def _padded(count: int) -> int:
    """Rows of a head: more than tokens, as heads of real models have."""
    return (count // 64 + 1) * 64


def _token_id(processor: Any, tokenizer: PreTrainedTokenizerFast, correction: Correction, key: str, name: str) -> int:
    if key in correction.tokens:
        return tokenizer.convert_tokens_to_ids(correction.tokens[key])
    if name == "image" and processor is not tokenizer:
        token_id = _image_id(processor)
        if token_id is not None:
            return token_id
    for holder in (processor, tokenizer):
        token = getattr(holder, f"{name}_token", None)
        if isinstance(token, str):
            return tokenizer.convert_tokens_to_ids(token)
    token = f"<|{name}|>"
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(token)
