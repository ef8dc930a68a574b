"""The official processor of a model type in its image-only form, for small images."""

import inspect
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from workbench.policies.processors import PartSettings, images_only, official_class, other_parts
from workbench.training.families.corrections import Correction
from workbench.training.families.sizes import SIDE, first_number, resized, sub_configs

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
COUNTS = {"image_seq_length", "image_seq_len", "num_image_tokens"}
_PIXELS = 10_000  # a size above is a number of pixels of an image, below of its side
_TYPES = {"video_processor": VIDEO_PROCESSOR_MAPPING_NAMES, "feature_extractor": FEATURE_EXTRACTOR_MAPPING_NAMES}


def processor_class(model_type: str, correction: Correction) -> Any:
    """Processor class of a model type; None if transformers names none."""
    name = correction.processor_of or model_type
    return official_class(PROCESSOR_MAPPING_NAMES.get(name, correction.processor_of))


def build_processor(
    model_type: str,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    correction: Correction,
    num_tokens: int = SIDE * SIDE,
) -> ProcessorMixin:
    """Build the processor of a model type for images of the size that its small configuration has.

    num_tokens  image tokens of one image or tile, for processors that must be given it

    Raises: ImportError for an image processor that needs a missing package.
    """
    official = processor_class(model_type, correction)
    patch = patch_size(config)
    image_processor = _image_processor(model_type, config, patch, correction)
    parameters = inspect.signature(official.__init__).parameters
    arguments: dict[str, Any] = {"image_processor": image_processor, "tokenizer": tokenizer}
    for name in other_parts(official):
        kind = _TYPES.get(name, {}).get(model_type)
        kind = kind if isinstance(kind, str) else next(iter(kind.values()), None) if kind else None
        arguments[name] = PartSettings({f"{name}_type": kind} if kind else {})
    shared: dict[str, Any] = {"patch_size": patch, "num_additional_image_tokens": 1}
    shared["vision_feature_select_strategy"] = config.get("vision_feature_select_strategy", "default")
    shared |= {"img_size": patch * SIDE, **dict.fromkeys(COUNTS, num_tokens)}
    arguments |= {name: value for name, value in shared.items() if name in parameters}
    for values in sub_configs(config):
        arguments |= {
            name: values[name]
            for name in parameters.keys() & values.keys() - arguments.keys()
            if isinstance(values[name], (int, float, str)) and not name.endswith("_token")
        }
    processor = images_only(official)(**{**arguments, **correction.processor})
    placeholder = image_token(processor) if correction.placeholder is None else correction.placeholder
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder)
    return processor


def image_token(processor: ProcessorMixin) -> str:
    """Text that the processor replaces by the tokens of an image."""
    for holder in (processor, processor.tokenizer):
        token = getattr(holder, "image_token", None)
        if token is not None:
            return str(token)
    return "<image>"


def patch_size(config: dict[str, Any]) -> int:
    """Patch size of the vision tower; that of CLIP where the configuration has none."""
    sizes = [first_number(values.get("patch_size")) for values in sub_configs(config)]
    return next((size for size in sizes[1:] + sizes[:1] if size), 14)


def _image_processor(model_type: str, config: dict[str, Any], patch: int, correction: Correction) -> object:
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(correction.image_processor_of or model_type) or {}
    name = names.get("torchvision" if is_torchvision_available() else "pil") or next(iter(names.values()))
    official = getattr(transformers, name)
    return official(**{**_small_images(official().to_dict(), patch), **correction.image_processor})


def _small_images(settings: dict[str, Any], patch: int) -> dict[str, Any]:
    """Settings of an image processor for images of SIDE patches a side."""
    side = patch * SIDE
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("size", "crop_size", "max_image_size", "video_size") and isinstance(value, dict):
            small[key] = {name: _edge(name, number, patch) for name, number in value.items() if number}
        elif key in ("image_size", "tile_size", "scale_resolution", "max_image_size", "min_image_size"):
            small[key] = resized(value, side)
        elif key in ("min_pixels", "max_pixels"):
            small[key] = _edge(key, value, patch)
        elif key in ("image_grid_pinpoints", "split_resolutions"):
            small[key] = pinpoints(patch)
        elif key in ("max_patches", "max_num_tiles", "max_slice_nums", "max_tiles", "max_crops"):
            small[key] = 2
        elif key in ("patch_size", "encoder_patch_size"):
            small[key] = resized(value, patch)
    return small


def pinpoints(patch: int) -> list[list[int]]:
    """Sizes of two tiles, side by side and one above the other."""
    return [[patch * SIDE, 2 * patch * SIDE], [2 * patch * SIDE, patch * SIDE]]


def _edge(name: str, number: int, patch: int) -> int:
    """Side of an image or, where the default is that large, its number of pixels."""
    if number < _PIXELS and "pixels" not in name:
        return patch * SIDE
    return (2 * patch) ** 2 * (6 if name in ("longest_edge", "max_pixels") else 1)
