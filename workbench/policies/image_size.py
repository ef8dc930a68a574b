"""The size of images as models see them: a limit of ours for every family, and the options of a family's processor.

A processor decides how many tokens an image costs. Some reduce a large image themselves (Idefics3, Gemma), others read
it nearly whole: a photograph of 3000 x 2000 pixels is 7,597 tokens under Qwen2.5-VL's own limits. So an image of more
than `max_pixels` is reduced before its processor sees it, with its aspect kept. Crops are cut from the whole image
first. The settings of a processor itself (tiles, patches, edges) have other names in every family; `image_processor`
sets them by these names.
"""

import inspect
import math
from typing import Any

from PIL import Image

from workbench.errors import ConfigError, unknown

MAX_PIXELS = 1_003_520  # 1280 x 28 x 28: at most 1,280 image tokens of Qwen2.5-VL
_TRIED = (320, 240)  # image with which changed options are tried
_NOT_OF_SIZE = {"return_tensors", "data_format", "input_data_format", "device", "disable_grouping"}


def reduced_size(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Width and height of the largest image of the same aspect with at most `max_pixels` pixels, each at least 1.

    Returns the given size if it is within the limit, or if the limit is None.
    """
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    short = max(1, math.floor(min(width, height) * scale))
    long = min(math.floor(max(width, height) * scale), max_pixels // short)
    return (long, short) if width >= height else (short, long)


def reduce(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """Reduce an image to at most `max_pixels` pixels, antialiased; a smaller one is returned as it is."""
    size = reduced_size(image.width, image.height, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def image_options(image_processor: Any) -> tuple[str, ...]:
    """Names of the options that an image processor declares, without those of formats and devices."""
    declared = getattr(image_processor, "valid_kwargs", None)
    names = set(declared.__annotations__) if declared is not None else set(_parameters(image_processor))
    return tuple(sorted(names - _NOT_OF_SIZE))


def set_image_options(processor: Any, options: dict[str, Any], name: str) -> None:
    """Rebuild the image processor inside a processor with changed options, and try it; checkpoints then store them.

    name  of the policy, for messages

    Raises: ConfigError for a model without image processor, an option that it lacks, or a value that it refuses.
    """
    if not options:
        return
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise ConfigError(
            f"{name}: the image_processor options {', '.join(options)} are for models that take images, and this model "
            "has no image processor. Remove them."
        )
    allowed = image_options(image_processor)
    for key in options:
        if key not in allowed:
            kind = type(image_processor).__name__
            raise ConfigError(unknown(f"{name}: option of {kind}", key, allowed))
    try:
        processor.image_processor = type(image_processor)(**{**image_processor.to_dict(), **options})
        _check_limits(processor.image_processor)
        processor.image_processor(images=[Image.new("RGB", _TRIED)])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        before = {key: image_processor.to_dict().get(key) for key in options}
        raise ConfigError(
            f"{name}: {type(image_processor).__name__} refuses the image_processor options {options} ({error}). "
            f"Its values before were {before}. Correct the options, or remove them."
        ) from error


def _check_limits(image_processor: Any) -> None:
    """Raise ValueError if a lower limit of an image processor is above its upper one: then no image obeys both."""
    values = image_processor.to_dict()
    for limits in (values, *(nested for nested in values.values() if isinstance(nested, dict))):
        pairs = [(name, name.replace("min", "max", 1)) for name in limits if "min" in name]
        for low, high in (*pairs, ("shortest_edge", "longest_edge")):
            lowest, highest = limits.get(low), limits.get(high)
            if isinstance(lowest, int | float) and isinstance(highest, int | float) and lowest > highest:
                raise ValueError(f"{low}, {lowest:,}, is above {high}, {highest:,}")


def _parameters(image_processor: Any) -> list[str]:
    parameters = inspect.signature(type(image_processor).__init__).parameters.values()
    return [entry.name for entry in parameters if entry.kind == entry.KEYWORD_ONLY or entry.default is not entry.empty]
