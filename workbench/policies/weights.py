"""Model folders and hub names to models and processors, whatever kind of model it is."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoProcessor,
    PretrainedConfig,
)

from workbench.errors import PolicyError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}


def load_model(
    path: str | Path, name: str, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> tuple[nn.Module, object]:
    """The model, frozen and in evaluation mode, and its processor; `name` is the policy's, for messages.

    Raises: PolicyError naming the path if it holds no model, no processor, or no safetensors weights.
    """
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(_base_of(path), **options)
        model = _auto(config).from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise PolicyError(
            f'{name}: "{path}" cannot be loaded as a model ({_first_line(error)}). Give a folder written by '
            "save_pretrained with config.json and *.safetensors, or the name of a model on the hub."
        ) from error
    try:
        processor = AutoProcessor.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PolicyError(
            f'{name}: "{path}" has a model but its processor cannot be loaded ({_first_line(error)}). Save the processor '
            "beside the model with processor.save_pretrained."
        ) from error
    return model.to(device).requires_grad_(False).eval(), processor


def is_masked_lm(config: PretrainedConfig) -> bool:
    """Whether the model was saved as one that fills masks: BERT and others exist as both, so the class is asked."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def _auto(config: PretrainedConfig) -> type:
    if is_masked_lm(config):
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM


def _base_of(path: str | Path) -> str | Path:
    """The model that a folder with a LoRA adapter belongs to; any other path is its own."""
    adapter = Path(path) / "adapter_config.json"
    if not adapter.is_file():
        return path
    return json.loads(adapter.read_text())["base_model_name_or_path"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
