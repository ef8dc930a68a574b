"""Load processors from folders and hub names, without torchvision also for families with a video processor.

Qwen-VL, InternVL, LLaVA-OneVision and SmolVLM have a video processor, which needs torchvision in transformers. Without
torchvision, the family's own class is built without its video part: chat template, image token expansion and the image
processor (on Pillow) are unchanged, and checkpoints keep the settings of the video part. With torchvision, the official
processor is used.
"""

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

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
    """Load the processor of a model; its `config` determines the family.

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
    """Return whether the official class has a video part, so that AutoProcessor needs torchvision."""
    return isinstance(processor, ProcessorMixin) and VIDEO in processor.get_attributes()


@functools.cache
def images_only(official: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Subclass of the official class without its video part, under the official name, which checkpoints store."""
    module: Any = sys.modules[official.__module__]
    if getattr(module, "num2words", True) is None:  # SmolVLM checks for it, to spell a video's number of frames
        module.num2words = _no_videos
    return type(official.__name__, (_ImagesOnly, official), {"__module__": official.__module__})


def load_images_only(official: Any, path: str | Path, **options) -> ProcessorMixin:
    """Load a saved processor without its video part."""
    settings, _ = official.get_processor_dict(path, **options)
    parts = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    known_names = inspect.signature(official.__init__).parameters.keys() - {"kwargs", VIDEO, *parts}
    return images_only(official)(
        **{name: kind.from_pretrained(path, **options) for name, kind in parts.items()},
        video_processor=VideoSettings(settings.get(VIDEO) or get_video_processor_config(path)),
        **{name: value for name, value in settings.items() if name in known_names},
    )


class _ImagesOnly:
    """Mixin before an official class that takes settings in place of a video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type | tuple[type, ...]:
        if argument_name == VIDEO:
            return VideoSettings
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]

    def to_dict(self) -> dict:
        settings = super().to_dict()  # type: ignore[misc]
        return {name: value for name, value in settings.items() if name != VIDEO or value}


class VideoSettings(dict):
    """Settings of the video processor, for saving and for templates that access it."""

    _auto_class = None  # save_pretrained reads it: no custom code

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # accessed by copy
            raise AttributeError(name)
        return self.get(name)


def _no_videos(*_) -> None:
    raise ImportError("videos need the packages torchvision and num2words. Install both.")
