"""LoRA adapters (peft): load them key by key, in float32, and copy them without the base weights.

peft loads the adapters: transformers' own loader drops keys of DoRA and only reports it on stderr.
"""

import copy
import json
import warnings
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from workbench.errors import PolicyError
from workbench.files.packages import importing

FILE = "adapter_config.json"
NAME = "default"  # adapter name, which peft inserts into weight names
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_adapter(path: str | Path) -> bool:
    """Return whether a folder holds an adapter instead of a full model."""
    return (Path(path) / FILE).is_file()


def base_of(path: str | Path) -> str | Path:
    """Base model of an adapter folder; any other path is returned unchanged.

    Raises: PolicyError if the folder also holds full weights, or its base is unnamed or an adapter itself.
    """
    if not is_adapter(path):
        return path
    if any((Path(path) / name).is_file() for name in _WEIGHTS):
        raise PolicyError(
            f'"{path}" holds both full weights and an adapter ({FILE}). Move one of them to another folder.'
        )
    try:
        base = json.loads((Path(path) / FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(
            f'"{path}" is not a valid adapter: cannot read {FILE} ({error!r}). Save it again with save_pretrained.'
        ) from None
    if not isinstance(base, str) or not base:
        raise PolicyError(
            f'"{path}" is an adapter without a base model: base_model_name_or_path in {FILE} is {base!r}. Set it to '
            "the folder or name of the model that the adapter was trained on."
        )
    if is_adapter(base):
        raise PolicyError(
            f'"{path}" is an adapter of "{base}", which is also an adapter. Merge that into its model (peft: '
            "merge_and_unload), and set base_model_name_or_path to the merged folder."
        )
    return base


def has_adapter(model: nn.Module) -> bool:
    """Return whether a model has an adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def is_adapter_weight(name: str) -> bool:
    """Return whether a parameter name belongs to the adapter of a model."""
    return "lora_" in name or f".{NAME}." in name or name.endswith(f".{NAME}")


def add_adapter(model: nn.Module, config: object) -> None:
    """Add a new adapter to a model, in float32, since half precision rounds away training steps and EMA updates."""
    from peft.tuners.tuners_utils import cast_adapter_dtype  # noqa: PLC0415  (an extra, and slow to import)

    with warnings.catch_warnings():  # export unties such a model and compares it with the student
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`", UserWarning)
        model.add_adapter(config, NAME)
    cast_adapter_dtype(model, NAME)


def load_adapter(model: nn.Module, folder: str | Path, name: str, *, weights: bool = True) -> None:
    """Load the adapter of a folder onto its base model; `name` is the policy's name, for messages.

    weights  False = insert its layers alone, for a model on the meta device

    Raises: ConfigError if peft is missing; PolicyError listing weights that are missing, unused, or of another shape.
    """
    with importing(f'{name}: "{folder}" is an adapter, which needs', "lora"):
        from peft import PeftConfig  # noqa: PLC0415  (slow to import)

    try:
        add_adapter(model, PeftConfig.from_pretrained(str(folder)))
        if weights:
            load_adapter_weights(model, folder, name)
    except PolicyError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise PolicyError(
            f'{name}: cannot load "{folder}" as an adapter of {type(model).__name__}: {_one_line(error)}. Name a '
            "folder written by peft's save_pretrained (adapter_config.json and adapter_model.safetensors), of an "
            "adapter trained on this model."
        ) from error
    model.requires_grad_(False).eval()


def load_adapter_weights(model: nn.Module, folder: str | Path, name: str) -> None:
    """Load the adapter weights of a folder into the adapter of a model; none into a model without numbers.

    Raises: PolicyError listing weights that are missing, unused, or not the adapter's; RuntimeError and KeyError of
    peft.
    """
    from peft import set_peft_model_state_dict  # noqa: PLC0415  (slow to import)

    if next(model.parameters()).is_meta:
        return
    weights = safetensors.torch.load_file(Path(folder) / "adapter_model.safetensors")
    result = set_peft_model_state_dict(model, _in_names_of(model, weights), NAME)
    missing = [key for key in result.missing_keys if is_adapter_weight(key)]
    config, read = model.peft_config[NAME], model.state_dict().keys() - set(result.missing_keys)
    biases = getattr(config, "bias", "none") == "all"
    foreign = [
        key
        for key in sorted(read)
        if not is_adapter_weight(key) and ".base_layer." not in key and not (biases and key.endswith(".bias"))
    ]
    faults = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (
            ("are missing", missing),
            ("have no place in the model", result.unexpected_keys),
            ("are the model's own and not the adapter's", foreign),
        )
        if keys
    ]
    if faults:
        raise PolicyError(
            f'{name}: the weights of the adapter "{folder}" do not match {type(model).__name__}: {"; ".join(faults)}. '
            "Save the adapter with peft's save_pretrained, or merge it into its model (merge_and_unload) and save that."
        )


def merged_weights(model: nn.Module, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights of a model with the adapter merged, under their names without an adapter.

    weights  those of some modules, by name; None = all
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    merged = {}
    for name, value in (model.state_dict() if weights is None else weights).items():
        if is_adapter_weight(name) and ".modules_to_save." not in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        plain = plain.replace(f".modules_to_save.{NAME}.", ".")  # overrides the original, which comes before it
        module, _, kind = plain.rpartition(".")
        if module in adapted and kind == "weight":
            value = _with_adapter(adapted[module], value)
        merged[plain] = value
    return merged


def _with_adapter(layer: nn.Module, weight: Tensor) -> Tensor:
    """Weight of a layer with its active adapters merged."""
    merged = weight.clone()
    for adapter in layer.active_adapters:
        variant = layer.lora_variant.get(adapter)  # DoRA
        if variant is None:
            merged = (merged + layer.get_delta_weight(adapter)).to(weight.dtype)
        else:
            merged = variant.merge_safe(layer, adapter, merged)
    return merged


def adapts_tied_weights(model: nn.Module) -> bool:
    """Return whether an adapter is on one of two tied layers (embedding and head), which then differ."""
    pair = [model.get_input_embeddings(), model.get_output_embeddings()]
    plain = [getattr(layer, "base_layer", getattr(layer, "original_module", layer)) for layer in pair]
    return pair != plain and plain[0].weight is plain[1].weight


def untie(model: nn.Module) -> None:
    """Untie the head from the embedding, also in the saved configuration."""
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _in_names_of(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapter weights under the model's names: without peft's prefix, older names renamed as in transformers."""
    modules = {key for key, _ in model.named_modules()}
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    renamed = {}
    for key, value in weights.items():
        key = key.removeprefix("base_model.model.")
        if key.partition(".lora_")[0] not in modules:
            for renaming in renamings:
                key, _ = renaming.rename_source_key(key)
        renamed[key] = value
    return renamed


def beside(model: nn.Module) -> nn.Module:
    """Frozen copy of a model with an adapter: copies the adapter and shares the base weights."""
    shared = {id(parameter): parameter for key, parameter in model.named_parameters() if not is_adapter_weight(key)}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
