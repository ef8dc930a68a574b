"""Load models and processors from folders and hub names, for every kind of model."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
    GenerationConfig,
    PretrainedConfig,
)
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

from workbench.errors import ConfigError, PolicyError, WorkbenchError
from workbench.files.gguf_paths import refuse_gguf
from workbench.files.packages import missing_package, require_bitsandbytes
from workbench.policies.adapters import base_of, has_adapter, load_adapter
from workbench.policies.compiling import compile_parts
from workbench.policies.hub import refuse_unreachable
from workbench.policies.image_size import set_image_options
from workbench.policies.processors import load_processor
from workbench.policies.scope import out_of_scope

INT8, NF4 = "int8", "nf4"
QUANTIZED = (INT8, NF4)  # quantized while loading, by bitsandbytes
CACHE_LINE = 64  # bytes; alignment of torch's allocations
DTYPES = {
    INT8: torch.bfloat16,
    NF4: torch.bfloat16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}

_CONSTANTS = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|num_batches_tracked)$")
# heads of BERT's pretraining other than the masked LM
_NOT_OF_MASKED_LMS = re.compile(r"^(cls\.seq_relationship|\w+\.pooler)\.")


def load_model(
    path: str | Path,
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    compiler: str | None = None,
    image_processor: dict | None = None,
    empty: bool = False,
    mapped: bool = False,
) -> tuple[nn.Module, object]:
    """Load a model, frozen and in evaluation mode, and its processor; `name` is the policy's name, for messages.

    dtype      of the weights; INT8, NF4 = linear layers but the head in 8 or 4 bits, all else in bfloat16
               (bitsandbytes)
    attn_implementation  attention implementation of transformers, None = its default
    compiler   backend of torch.compile for RMSNorms and MLPs, None = not compiled
    image_processor  options of the model's image processor, in its own terms
    empty      build the model without numbers, on the meta device, and read no weights
    mapped     leave weights in the memory map of their file, from which the system can drop them

    Raises: PolicyError for a path without model, processor or safetensors weights, and for weights that are missing,
    unused, of another shape, or not finite; ConfigError for a missing package, an unknown compiler, a GGUF file, or an
    option that the image processor lacks.
    """
    refuse_gguf(name, path)
    options = {"trust_remote_code": trust_remote_code}
    model_options = _model_options(dtype, device, attn_implementation, name)
    base = base_of(path)
    refuse_unreachable(name, base)
    source = path if base is path else f"{base} (the model of the adapter {path})"
    try:
        config = AutoConfig.from_pretrained(base, **options)
        _refuse_out_of_scope(config, source, name)
        if empty:
            model = _build_empty(config, base, attn_implementation, **options)
        else:
            model, report = read_model(config, base, **model_options, **options)
    except PolicyError:
        raise
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(error, base, source, name, attn_implementation) from error
    if not empty:
        _require_whole(model, report, source, name)
        if getattr(config, "quantization_config", None) is None:
            _require_floating(model, base, name)
    if base is not path:
        load_adapter(model, path, name, weights=not empty)
    if not empty:
        _require_numbers(model, path, name)
        _keep_differentiable(model)
    if not (empty or mapped):
        _align(model)
    processor = _load_processor(path, config, name, image_processor, **options)
    model = model if dtype in QUANTIZED or empty else model.to(device)
    if compiler:
        compile_parts(model, compiler, name)
    return model.requires_grad_(False).eval(), processor


def load_skeleton(path: str | Path, name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A model on the meta device: its modules and the shapes of its weights, with the adapter of its folder, if any.

    Raises: as load_model for what the configuration alone shows.
    """
    base = base_of(path)
    refuse_unreachable(name, base)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        _refuse_out_of_scope(config, path, name)
        model = _build_empty(config, base, None, trust_remote_code=trust_remote_code)
        if base is not path:
            load_adapter(model, path, name, weights=False)
    except (ImportError, OSError, ValueError, KeyError) as error:
        if isinstance(error, WorkbenchError):
            raise
        raise _not_loaded(error, base, path, name, None) from error
    return model


def read_model(config: PretrainedConfig, base: str | Path, /, **options: Any) -> tuple[nn.Module, dict]:
    """The model of a folder with its weights, and transformers' report of what it read."""
    with _without_load_report():
        return auto_class(config).from_pretrained(
            base,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _require_whole reports them
            **options,
        )


def _build_empty(
    config: PretrainedConfig, base: str | Path, attn_implementation: str | None, **options: Any
) -> nn.Module:
    """The model of a folder on the meta device, with the generation settings of its files."""
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    with torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights():
        model = auto_class(config).from_config(config, **options)
        model.tie_weights()
    with contextlib.suppress(OSError):  # as from_pretrained: then they are those of config.json
        model.generation_config = GenerationConfig.from_pretrained(base)
    return model


def _keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers as they are on a CPU: bitsandbytes packs those of a forward pass in evaluation mode for a
    kernel without a backward pass, and no gradient would go through them any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _refuse_out_of_scope(config: PretrainedConfig, source: str | Path, name: str) -> None:
    reason = out_of_scope(config)
    if reason is not None:
        raise PolicyError(f'{name}: "{source}" cannot be trained: {reason}')


def load_model_processor(
    path: str | Path, name: str, *, trust_remote_code: bool = False, image_processor: dict | None = None
) -> tuple[object, PretrainedConfig]:
    """Load the processor and the configuration of a model, without weights; arguments and errors as in load_model."""
    refuse_gguf(name, path)
    options, base = {"trust_remote_code": trust_remote_code}, base_of(path)
    refuse_unreachable(name, base)
    try:
        config = AutoConfig.from_pretrained(base, **options)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise _not_loaded(error, base, path, name, None) from error
    return _load_processor(path, config, name, image_processor, **options), config


def _load_processor(
    path: str | Path, config: PretrainedConfig, name: str, image_processor: dict | None, **options: Any
) -> object:
    try:
        processor = load_processor(path, config, **options)
        set_image_options(processor, image_processor or {}, name)
        return processor
    except WorkbenchError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        remedy = missing_package(error)
        if remedy is not None:
            raise ConfigError(f'{name}: cannot load the processor of "{path}": {remedy}.') from error
        raise PolicyError(
            f'{name}: cannot load the processor of "{path}": {_first_line(error)}. Save the processor beside the model '
            "with processor.save_pretrained."
        ) from error


def _model_options(dtype: str, device: str, attn_implementation: str | None, name: str) -> dict[str, Any]:
    """Options of from_pretrained for weights and attention."""
    options: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if dtype in QUANTIZED:
        options |= {"quantization_config": _quantization(dtype, name), "device_map": {"": device}}
    return options


def _quantization(dtype: str, name: str) -> BitsAndBytesConfig:
    """4 bits are QLoRA's: NormalFloat, with quantized scales, computed in bfloat16."""
    require_bitsandbytes(f"{name}: weights in {dtype} need", "choose bfloat16")
    if dtype == INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _not_loaded(
    error: Exception, base: str | Path, source: str | Path, name: str, attn_implementation: str | None
) -> ConfigError | PolicyError:
    """Error for a model that transformers cannot load."""
    if isinstance(error, ImportError) and "flash" in (attn_implementation or "") and "flash" in str(error).lower():
        return ConfigError(
            f"{name}: models.attn_implementation={attn_implementation} needs a missing package ({_first_line(error)}). "
            "Install it (flash_attention_2: pip install flash-attn, for a CUDA GPU), or choose "
            "models.attn_implementation=sdpa."
        )
    remedy = missing_package(error)
    if remedy is not None:
        return ConfigError(f'{name}: cannot load "{source}" as a model: {remedy}.')
    is_hub_name = str(base).count("/") <= 1 and not str(base).startswith((".", "/", "~"))
    if not is_hub_name and not Path(base).exists():
        return PolicyError(
            f'{name}: folder "{source}" does not exist. Name a folder written by save_pretrained, or a model on the '
            "hub."
        )
    here = "" if Path(base).exists() else " No folder of that name is here either."
    return PolicyError(
        f'{name}: cannot load "{source}" as a model: {_first_line(error)}. Name a folder written by save_pretrained '
        f"(config.json and *.safetensors), or a model on the hub.{here}"
    )


@contextlib.contextmanager
def _without_load_report() -> Iterator[None]:
    """Suppress transformers' log of missing and unused weights, which _require_whole reports.

    The log of weights that could not be converted stays, since the error refers to it.
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
    """Raise PolicyError listing weights that are missing, unused, or of another shape."""
    buffers = {key for key, _ in model.named_buffers()}  # older versions saved these constants
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
            f'{name}: the weights of "{path}" do not match {type(model).__name__}: {"; ".join(faults)}. Save the full '
            "model with save_pretrained, with vision tower, head and merged adapters, under the model's own names."
        )


def _require_floating(model: nn.Module, folder: str | Path, name: str) -> None:
    """Raise PolicyError listing integer weights, which are quantized without their scales."""
    parameters = {key.rpartition(".")[2] for key, _ in model.named_parameters()}
    integers = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (not a dict)
                kind = weights.get_slice(key).get_dtype()
                if kind.startswith(("I", "U", "BOOL")) and key.rpartition(".")[2] in parameters:
                    integers.append(f"{key}: {kind}")
    if integers:
        raise PolicyError(
            f'{name}: {len(integers)} weights of "{folder}" are integers ({_some(integers)}), and config.json has no '
            "quantization_config with their scales. Name the model before quantization."
        )


def _require_numbers(model: nn.Module, path: str | Path, name: str) -> None:
    """Raise PolicyError listing weights that are infinite or NaN, or if all matrices are zero."""
    numbers = set(DTYPES.values())
    floating = {key: value for key, value in model.named_parameters() if value.dtype in numbers and value.numel()}
    ends = torch.stack([torch.stack(value.detach().aminmax()).float().cpu() for value in floating.values()])
    is_finite = ends.isfinite().all(-1).tolist()
    wrong = [key for key, finite in zip(floating, is_finite, strict=True) if not finite]
    if wrong:
        raise PolicyError(
            f'{name}: {len(wrong)} weights of "{path}" are infinite or NaN ({_some(wrong)}), after a failed training '
            "or in too low a precision. Choose an earlier checkpoint."
        )
    matrices = [
        float(stats.abs().max()) for value, stats in zip(floating.values(), ends, strict=True) if value.ndim > 1
    ]
    if matrices and not any(matrices):
        raise PolicyError(
            f'{name}: every matrix of "{path}" is zero, as after saving sharded weights from one rank. Save the full '
            "model with save_pretrained."
        )


def _align(model: nn.Module) -> None:
    """Copy weights that are not aligned to a cache line, as in a memory-mapped file, to aligned memory.

    The summation order of kernels depends on alignment. Otherwise a weight from a checkpoint and its copy in memory
    would give different last digits, and so would a resumed and an uninterrupted run.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % CACHE_LINE:
            tensor.data = tensor.data.clone()


def is_masked_lm(config: PretrainedConfig) -> bool:
    """Return whether the saved class is a masked LM; families such as BERT have both kinds."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def auto_class(config: PretrainedConfig) -> Any:
    if is_masked_lm(config):
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
