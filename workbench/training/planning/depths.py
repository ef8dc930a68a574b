"""Depths: a plan runs a deep model in two small depths, and extends what it measures to the model's own.

Memory and operations of equal layers are affine in their number, as long as the peak of a segment stays at its place.
A model with several kinds of layers, and a shallow one, is run as it is.
"""

import copy
import re
from dataclasses import dataclass

from transformers import PretrainedConfig

SHALLOW = 6  # layers up to which a model is run as it is
_TEXT, _VISION = 3, 3  # layers that are run of a deeper one; features of each vision layer reach a text layer
_DEPTH_KEYS = ("num_hidden_layers", "depth")


@dataclass(frozen=True)
class Depths:
    """Numbers of layers of the text decoder and of the vision tower; 0 = as the configuration says."""

    text: int = 0
    vision: int = 0


def own_depths(config: PretrainedConfig) -> Depths:
    """Numbers of layers that stand for more of their kind; 0 for parts that are run as they are."""
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    text_depth = 0 if len(kinds) > 1 or experts else _depth(text)
    vision_depth = 0 if vision is None else _depth(vision)
    return Depths(*(depth if depth > SHALLOW else 0 for depth in (text_depth, vision_depth)))


def shallow(depths: Depths, *, text: int = 0, vision: int = 0) -> Depths:
    """Depths in which a model is run, with some layers more."""
    return Depths(_TEXT + text if depths.text else 0, _VISION + vision if depths.vision else 0)


def with_depths(config: PretrainedConfig, depths: Depths) -> PretrainedConfig:
    """A copy of a configuration with these numbers of layers; lists of layers are cut to their first ones."""
    config = copy.deepcopy(config)
    if depths.text:
        _set_depth(config.get_text_config(), depths.text)
    if depths.vision:
        _set_depth(config.vision_config, depths.vision)
    return config


def _depth(config: PretrainedConfig) -> int:
    return next((value for key in _DEPTH_KEYS if isinstance(value := getattr(config, key, None), int)), 0)


def _set_depth(config: PretrainedConfig, depth: int) -> None:
    before = _depth(config)
    for key, value in list(config.to_dict().items()):
        if key in _DEPTH_KEYS:
            setattr(config, key, depth)
        elif isinstance(value, list) and len(value) == before:
            setattr(config, key, value[:depth])
        elif isinstance(value, list) and re.search(r"index", key):
            # every layer attends fully where some attend in windows: as much memory, a few operations more
            setattr(config, key, list(range(depth if "fullatt" in key else min(depth, len(value)))))
