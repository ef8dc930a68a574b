"""Model folders and hub names to models and processors, whatever kind of model it is."""

import importlib.util
import json
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    BitsAndBytesConfig,
    PretrainedConfig,
)

from workbench.errors import ConfigError, PolicyError
from workbench.policies.compiling import compile_parts
from workbench.policies.processors import load_processor

INT8 = "int8"
DTYPES = {
    INT8: torch.bfloat16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


def load_model(
    path: str | Path,
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    attention: str | None = None,
    compiler: str | None = None,
) -> tuple[nn.Module, object]:
    """The model, frozen and in evaluation mode, and its processor; `name` is the policy's, for messages.

    dtype      or INT8: linear layers but the head in 8 bits, everything else in bfloat16 (bitsandbytes)
    attention  implementation that transformers is asked for, None = its choice
    compiler   backend of torch.compile for RMSNorms and MLPs, None = not compiled

    Raises: PolicyError naming the path if it holds no model, no processor, or no safetensors weights; ConfigError if a
    package is missing that what is asked for needs, or torch has no such compiler.
    """
    options = {"trust_remote_code": trust_remote_code}
    asked = {"attn_implementation": attention} if attention else {}
    if dtype == INT8:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"{name}: weights in {INT8} need the package bitsandbytes: pip install 'vlm-distillation-workbench[int8]', or "
                "choose models.teacher_dtype=bfloat16."
            )
        asked |= {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    try:
        config = AutoConfig.from_pretrained(base_of(path), **options)
        model = auto_class(config).from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True, **asked, **options)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ImportError) and "flash" in (attention or "") and "flash" in str(error).lower():
            raise ConfigError(
                f"{name}: models.attention={attention} needs a package that is not here ({_first_line(error)}). Install it "
                "(flash_attention_2: pip install flash-attn, for a CUDA GPU), or choose models.attention=sdpa."
            ) from error
        is_hub_name = str(path).count("/") <= 1 and not str(path).startswith((".", "/", "~"))
        if not is_hub_name and not Path(path).exists():
            raise PolicyError(
                f'{name}: folder "{path}" does not exist. Give a folder written by save_pretrained, or the name of a model on the hub.'
            ) from None
        here = "" if Path(path).exists() else " No folder of that name is here either."
        raise PolicyError(
            f'{name}: "{path}" cannot be loaded as a model ({_first_line(error)}). Give a folder written by '
            f"save_pretrained with config.json and *.safetensors, or the name of a model on the hub.{here}"
        ) from error
    try:
        processor = load_processor(path, config, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PolicyError(
            f'{name}: "{path}" has a model but its processor cannot be loaded ({_first_line(error)}). Save the processor '
            "beside the model with processor.save_pretrained."
        ) from error
    model = model if dtype == INT8 else model.to(device)
    if compiler:
        compile_parts(model, compiler, name)
    return model.requires_grad_(False).eval(), processor


def adapters_in_float32(model: nn.Module, folder: str | Path | None = None) -> None:
    """LoRA weights in float32, whatever the model they sit on is in: in half precision the steps of training, and more so those of a
    moving average, are rounded away.

    folder  adapters that were loaded from a folder are read from it again, since loading has rounded them

    Raises: PolicyError if an adapter is not in the folder's file.
    """
    half = {name for name, own in model.named_parameters() if ".lora_" in name and own.dtype != torch.float32}
    if not half:
        return
    from peft.tuners.tuners_utils import cast_adapter_dtype  # noqa: PLC0415  (an extra, and slow to import)

    for adapter in model.peft_config:
        cast_adapter_dtype(model, adapter)
    file = None if folder is None else Path(folder) / "adapter_model.safetensors"
    if file is None or not file.is_file():
        return
    saved = safetensors.torch.load_file(file)
    for name, own in model.named_parameters():
        if name in half:
            known = "base_model.model." + re.sub(r"\.(lora_\w+)\.[^.]+", r".\1", name)  # without the adapter's own name
            if known not in saved:
                raise PolicyError(
                    f'{file} has no "{known}", so the adapter would stay rounded. Set models.dtype=float32.'
                )
            own.data.copy_(saved[known])


def is_masked_lm(config: PretrainedConfig) -> bool:
    """Whether the model was saved as one that fills masks: BERT and others exist as both, so the class is asked."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def auto_class(config: PretrainedConfig) -> type:
    if is_masked_lm(config):
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM


def base_of(path: str | Path) -> str | Path:
    """The model that a folder with a LoRA adapter belongs to; any other path is its own."""
    adapter = Path(path) / "adapter_config.json"
    if not adapter.is_file():
        return path
    return json.loads(adapter.read_text())["base_model_name_or_path"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
