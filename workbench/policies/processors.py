"""Load processors from folders and hub names; without their video and audio parts where these need a missing package.

Many families have a video processor, which needs torchvision in transformers, or a feature extractor of sounds. Where
such a package is missing, the family's own class is built with its image processor and tokenizer alone: chat template,
expansion of image tokens and image processor (on Pillow) are unchanged, and checkpoints keep the settings of the other
parts. With the packages, the official processor is used.
"""

import copy
import functools
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PretrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import get_video_processor_config

from workbench.policies.templates import adopt_template

VIDEO = "video_processor"
_WITHOUT_PART: dict[str, object] = {"model_input_names": [], "font": ""}  # ERNIE 4.5 VL saves a font of its videos
PARTS = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}


def load_processor(path: str | Path, config: PretrainedConfig, **options) -> Any:
    """Load the processor of a model; its `config` determines the family.

    Raises: OSError, ValueError, KeyError or ImportError, as AutoProcessor does.
    """
    try:
        processor = AutoProcessor.from_pretrained(path, **options)
    except (ImportError, OSError, ValueError) as error:  # a missing package, or a part that the folder lacks
        official = _official_of(path, config, **options)
        if official is None or not other_parts(official):
            raise
        try:
            processor = load_images_only(official, path, **options)
        except (ImportError, OSError, ValueError, KeyError) as second:
            raise (second if isinstance(second, ImportError) else error) from second
    adopt_template(processor)
    return processor


def _official_of(path: str | Path, config: PretrainedConfig, **options) -> type[ProcessorMixin] | None:
    try:
        settings, _ = ProcessorMixin.get_processor_dict(path, **options)
    except OSError:  # no processor_config.json
        settings = {}
    return official_class(settings.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(config.model_type))


def official_class(name: str | None) -> Any:
    """Processor class of transformers, also where it asks for packages that only some of its parts need."""
    placeholder = getattr(transformers, name or "", None)
    return None if placeholder is None else getattr(importlib.import_module(placeholder.__module__), name)


def has_video_part(processor: object) -> bool:
    """Return whether the official class has a video part, so that AutoProcessor needs torchvision."""
    return isinstance(processor, ProcessorMixin) and VIDEO in processor.get_attributes()


def other_parts(official: type[ProcessorMixin]) -> list[str]:
    """Parts of a processor class beside its image processor and tokenizer."""
    return [name for name in official.get_attributes() if name not in PARTS]


@functools.cache
def images_only(official: Any) -> type[ProcessorMixin]:
    """Subclass of the official class without its other parts, under the official name, which checkpoints store."""
    module: Any = sys.modules[official.__module__]
    if getattr(module, "num2words", True) is None:  # SmolVLM checks for it, to spell a video's number of frames
        module.num2words = _no_videos
    return type(official.__name__, (_ImagesOnly, official), {"__module__": official.__module__})


def load_images_only(official: Any, path: str | Path, **options) -> ProcessorMixin:
    """Load a saved processor with its image processor and tokenizer alone."""
    settings, _ = official.get_processor_dict(path, **options)
    others = {name: PartSettings(settings.get(name) or {}) for name in other_parts(official)}
    if VIDEO in others and not others[VIDEO]:
        others[VIDEO] = PartSettings(get_video_processor_config(path))
    known_names = inspect.signature(official.__init__).parameters.keys() - {"kwargs", *others, *PARTS}
    return images_only(official)(
        **{name: kind.from_pretrained(path, **options) for name, kind in PARTS.items()},
        **others,
        **{name: value for name, value in settings.items() if name in known_names},
    )


class _ImagesOnly:
    """Mixin before an official class that takes settings in place of its other parts."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type | tuple[type, ...]:
        if argument_name not in PARTS:
            return PartSettings
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]

    def to_dict(self) -> dict:
        settings, others = super().to_dict(), other_parts(type(self))  # type: ignore[misc, arg-type]
        return {name: value for name, value in settings.items() if name not in others or value}


class PartSettings(dict):
    """Settings of a part that is not built, for saving and for templates that access it."""

    _auto_class = None  # save_pretrained reads it: no custom code

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # accessed by copy
            raise AttributeError(name)
        return self.get(name, copy.copy(_WITHOUT_PART.get(name)))


def _no_videos(*_) -> None:
    raise ImportError("videos need the packages torchvision and num2words. Install both.")
