"""Processors from folders and hub names, also of families whose processors want torchvision for videos alone.

Qwen-VL, InternVL, LLaVA-OneVision and SmolVLM come with a video processor, which transformers has for torchvision only. Where
that is absent, a processor is built of the family's own class without its video part: chat template, expansion of image
tokens and the image processor (on Pillow) are the family's own code, and what is saved with a checkpoint keeps the settings
of the video part. Where torchvision is present, the official processor is used whole.
"""

import functools
import inspect
import sys
from pathlib import Path

from transformers import (
    PROCESSOR_MAPPING,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    ProcessorMixin,
)
from transformers.models.auto.video_processing_auto import get_video_processor_config

from workbench.policies.templates import adopt_template

VIDEO = "video_processor"


def load_processor(path: str | Path, config: PretrainedConfig, **options) -> object:
    """The processor that belongs to a model; its `config` names the family.

    Raises: OSError, ValueError, KeyError or ImportError, as AutoProcessor does.
    """
    try:
        processor = AutoProcessor.from_pretrained(path, **options)
    except ImportError:
        official = PROCESSOR_MAPPING.get(type(config), None)
        if official is None or VIDEO not in official.get_attributes():
            raise
        processor = load_images_only(official, path, **options)
    adopt_template(processor)
    return processor


def has_video_part(processor: object) -> bool:
    """Whether the official class has one, so that AutoProcessor loads what is saved only where torchvision is."""
    return isinstance(processor, ProcessorMixin) and VIDEO in processor.get_attributes()


@functools.cache
def images_only(official: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The official class without its video part, under the official name, which checkpoints record."""
    module = sys.modules[official.__module__]
    if getattr(module, "num2words", True) is None:  # SmolVLM spells the number of a video's frames, and asks beforehand
        module.num2words = _no_videos
    return type(official.__name__, (_ImagesOnly, official), {"__module__": official.__module__})


def load_images_only(official: type[ProcessorMixin], path: str | Path, **options) -> ProcessorMixin:
    """A saved processor of a family with a video part, without that part."""
    settings, _ = official.get_processor_dict(path, **options)
    parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    known_names = inspect.signature(official.__init__).parameters.keys() - {"kwargs", VIDEO, *parts}
    return images_only(official)(
        **{name: kind.from_pretrained(path, **options) for name, kind in parts.items()},
        video_processor=VideoSettings(settings.get(VIDEO) or get_video_processor_config(path)),
        **{name: value for name, value in settings.items() if name in known_names},
    )


class _ImagesOnly:
    """Goes before an official class: takes settings where that takes a video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type | tuple[type, ...]:
        if argument_name == VIDEO:
            return VideoSettings
        return super().check_argument_for_proper_class(argument_name, argument)

    def to_dict(self) -> dict:
        settings = super().to_dict()
        return {name: value for name, value in settings.items() if name != VIDEO or value}


class VideoSettings(dict):
    """What the video processor would be told: kept for saving, and read by a template that asks before it needs to."""

    _auto_class = None  # asked by save_pretrained: no code of its own is saved

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # copying asks for these
            raise AttributeError(name)
        return self.get(name)


def _no_videos(*_) -> None:
    raise ImportError("videos need the packages torchvision and num2words")
