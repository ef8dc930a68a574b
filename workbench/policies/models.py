"""Model folders and hub names to models and processors, whatever kind of model it is."""

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
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
from workbench.policies.adapters import base_of, has_adapter, load_adapter
from workbench.policies.compiling import compile_parts
from workbench.policies.processors import load_processor

INT8 = "int8"
CACHE_LINE = 64  # bytes; torch's own allocations begin at one
DTYPES = {
    INT8: torch.bfloat16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}

_CONSTANTS = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|num_batches_tracked)$")
# of BERT's pretraining, beside the part that fills masks
_NOT_OF_MASKED_LMS = re.compile(r"^(cls\.seq_relationship|\w+\.pooler)\.")


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

    Raises: PolicyError naming the path if it holds no model, no processor, or no safetensors weights, and naming weights
        that are missing, left over, of another shape, or not finite; ConfigError if a package is missing that what is asked
    for needs, or torch has no such compiler.
    """
    options = {"trust_remote_code": trust_remote_code}
    model_options = {"attn_implementation": attention} if attention else {}
    if dtype == INT8:
        model_options |= {"quantization_config": _in_8_bits(name), "device_map": {"": device}}
    base = base_of(path)
    source = path if base is path else f"{base} (the model of the adapter {path})"
    try:
        config = AutoConfig.from_pretrained(base, **options)
        with _without_load_report():
            model, report = auto_class(config).from_pretrained(
                base,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                **model_options,
                **options,
            )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(error, base, source, name, attention) from error
    _require_whole(model, report, source, name)
    if getattr(config, "quantization_config", None) is None:
        _require_floating(model, base, name)
    if base is not path:
        load_adapter(model, path, name)
    _require_numbers(model, path, name)
    _align(model)
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


def _in_8_bits(name: str) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{name}: weights in {INT8} need the package bitsandbytes: pip install 'vlm-distillation-workbench[int8]', or "
            "choose models.teacher_dtype=bfloat16."
        )
    return BitsAndBytesConfig(load_in_8bit=True)


def _not_loaded(
    error: Exception, base: str | Path, source: str | Path, name: str, attention: str | None
) -> ConfigError | PolicyError:
    """What to tell of a model that transformers could not load."""
    if isinstance(error, ImportError) and "flash" in (attention or "") and "flash" in str(error).lower():
        return ConfigError(
            f"{name}: models.attention={attention} needs a package that is not here ({_first_line(error)}). Install it "
            "(flash_attention_2: pip install flash-attn, for a CUDA GPU), or choose models.attention=sdpa."
        )
    is_hub_name = str(base).count("/") <= 1 and not str(base).startswith((".", "/", "~"))
    if not is_hub_name and not Path(base).exists():
        return PolicyError(
            f'{name}: folder "{source}" does not exist. Give a folder written by save_pretrained, or the name of a model on the hub.'
        )
    here = "" if Path(base).exists() else " No folder of that name is here either."
    return PolicyError(
        f'{name}: "{source}" cannot be loaded as a model ({_first_line(error)}). Give a folder written by '
        f"save_pretrained with config.json and *.safetensors, or the name of a model on the hub.{here}"
    )


@contextlib.contextmanager
def _without_load_report() -> Iterator[None]:
    """transformers' table of missing and unread weights is not logged: _require_whole names them. That of weights which
    could not be converted stays, since the error refers to it.
    """

    def is_kept(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return " LOAD REPORT" not in text or "CONVERSION" in text

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_kept)
    try:
        yield
    finally:
        logger.removeFilter(is_kept)


def _require_whole(model: nn.Module, report: dict, path: str | Path, name: str) -> None:
    """Raises PolicyError naming weights that a folder lacks, holds beyond the model's, or holds in another shape."""
    buffers = {key for key, _ in model.named_buffers()}  # constants, which older versions saved
    unread = {key for key in report["unexpected_keys"] if key not in buffers and not _CONSTANTS.search(key)}
    if is_masked_lm(model.config):
        unread = {key for key in unread if not _NOT_OF_MASKED_LMS.search(key)}
    shapes = [
        f"{key}: {list(file)} in the file, {list(shape)} in the model" for key, file, shape in report["mismatched_keys"]
    ]
    faults = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (
            ("would be random, since they are missing", report["missing_keys"]),
            ("have another shape", shapes),
            ("have no place in the model", unread),
        )
        if keys
    ]
    if has_adapter(model):
        faults.append("an adapter lies beside them, which is read from folders alone: download it")
    if faults:
        raise PolicyError(
            f'{name}: the weights of "{path}" do not fit {type(model).__name__}: {"; ".join(faults)}. Save the whole model with '
            "save_pretrained: vision tower, head and merged adapters included, under the model's own names."
        )


def _require_floating(model: nn.Module, folder: str | Path, name: str) -> None:
    """Raises PolicyError naming weights that a folder keeps as integers: quantized numbers, without what they are to be scaled by."""
    parameters = {key.rpartition(".")[2] for key, _ in model.named_parameters()}
    integers = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (it is no dict)
                kind = weights.get_slice(key).get_dtype()
                if kind.startswith(("I", "U", "BOOL")) and key.rpartition(".")[2] in parameters:
                    integers.append(f"{key}: {kind}")
    if integers:
        raise PolicyError(
            f'{name}: {len(integers)} weights of "{folder}" are kept as integers ({_some(integers)}) and config.json has no '
            "quantization_config that says how they are scaled. Give the model before it was quantized."
        )


def _require_numbers(model: nn.Module, path: str | Path, name: str) -> None:
    """Raises PolicyError naming weights that are infinite or not a number, and for matrices that are all zero."""
    numbers = set(DTYPES.values())
    floating = {key: value for key, value in model.named_parameters() if value.dtype in numbers and value.numel()}
    ends = torch.stack([torch.stack(value.detach().aminmax()).float().cpu() for value in floating.values()])
    is_finite = ends.isfinite().all(-1).tolist()
    wrong = [key for key, finite in zip(floating, is_finite, strict=True) if not finite]
    if wrong:
        raise PolicyError(
            f'{name}: {len(wrong)} weights of "{path}" are infinite or not a number ({_some(wrong)}): it was saved after its '
            "training had failed, or in a precision too narrow for it. Take an earlier checkpoint."
        )
    matrices = [
        float(stats.abs().max()) for value, stats in zip(floating.values(), ends, strict=True) if value.ndim > 1
    ]
    if matrices and not any(matrices):
        raise PolicyError(
            f'{name}: every matrix of "{path}" is zero: its weights were saved from where they did not lie (sharded '
            "training). Save the whole model with save_pretrained."
        )


def _align(model: nn.Module) -> None:
    """Move weights that start in the midst of a cache line, as a mapped file's do, to memory of their own.

    Kernels sum in an order that depends on where a matrix begins. A weight read from a checkpoint and the copy of a model in
    memory would differ in the last digits of what they compute, and a resumed run from an uninterrupted one.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % CACHE_LINE:
            tensor.data = tensor.data.clone()


def is_masked_lm(config: PretrainedConfig) -> bool:
    """Whether the model was saved as one that fills masks: BERT and others exist as both, so the class is asked."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def auto_class(config: PretrainedConfig) -> type:
    if is_masked_lm(config):
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
