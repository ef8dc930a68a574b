"""Roles of a model's weights: vision (the image encoder), connector (from image features to the text model), language.

The model says which module is its text decoder and which its image encoder. A merger or projector inside the encoder,
as Qwen-VL has it, is part of the connector, and so is every weight outside of both. Embeddings and head are language.
"""

from collections.abc import Iterable, Sequence

from torch import nn

from workbench.errors import ConfigError
from workbench.policies.adapters import has_adapter
from workbench.policies.role_names import CONNECTOR, LANGUAGE, ROLES, VISION

_CONNECTORS = ("merger", "projector", "connector", "aligner")  # in names of modules inside an image encoder


def roles(model: nn.Module) -> dict[str, str]:
    """Role of each parameter by its name; LoRA weights have that of the layer that they adapt."""
    decoder, encoder = _decoder(model), _image_encoder(model)
    language = _ids(decoder, model.get_input_embeddings(), model.get_output_embeddings())
    vision = _ids(encoder) - language
    by_name = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in language or encoder is None:
            by_name[name] = LANGUAGE
        elif id(parameter) in vision and not any(part in name for part in _CONNECTORS):
            by_name[name] = VISION
        else:
            by_name[name] = CONNECTOR
    return by_name


def set_trained(
    model: nn.Module, trained: Sequence[str], rates: Iterable[str], name: str, *, freeze_embeddings: bool
) -> dict[str, str]:
    """Require a gradient of the weights of some roles, and return the role of each weight by its name.

    Of a model with adapters, only these are trained.

    trained  roles, empty = all (models.train)
    rates    roles with a learning rate of their own (training.learning_rates)
    name     of the policy, for messages
    freeze_embeddings  leave those of tokens as they are, and a head that shares their matrix

    Raises: ConfigError for a role, in either, of which the model has no weight to train.
    """
    by_name, what = roles(model), "adapters" if has_adapter(model) else "weights"
    frozen = _ids(model.get_input_embeddings()) if freeze_embeddings else set()
    trainable = {
        key
        for key, parameter in model.named_parameters()
        if ("lora_" in key or what == "weights") and id(parameter) not in frozen
    }
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trainable and by_name[key] in (trained or ROLES))
    present = {by_name[key] for key in trainable}
    if not present:
        raise ConfigError(
            f"{name}: all {what} of {type(model).__name__} are of embeddings, which models.freeze_embeddings=true "
            "leaves as they are. Remove it, or change models.lora.target_modules."
        )
    for option, chosen in (("models.train", trained), ("training.learning_rates", rates)):
        for role in chosen:
            if role not in present:
                remedy = _remedy(model, role, by_name)
                raise ConfigError(
                    f"{name}: {option} names {role}, of which {type(model).__name__} has no {what}. It has {what} of "
                    f"{', '.join(role for role in ROLES if role in present)}. Remove it{remedy}."
                )
    return by_name


def _remedy(model: nn.Module, role: str, by_name: dict[str, str]) -> str:
    """What else trains a role: other layers to adapt, or no adapters where none of its layers is linear."""
    if role not in by_name.values():
        return ""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    if any(by_name.get(f"{name}.weight") == role for name in linear):
        return " or change models.lora.target_modules"
    return f", or train all weights with models.lora.rank=0: {role} has no linear layer to adapt"


def describe_trained(model: nn.Module) -> str:
    """Numbers of trained weights by role: "language 1,063,488 of 1,263,744, vision 0 of 92,416"."""
    counts = {role: [0, 0] for role in ROLES}
    by_name = roles(model)
    for name, parameter in model.named_parameters():
        counts[by_name[name]][0] += parameter.numel() * parameter.requires_grad
        counts[by_name[name]][1] += parameter.numel()
    return ", ".join(f"{role} {trained:,} of {total:,}" for role, (trained, total) in counts.items() if total)


def _decoder(model: nn.Module) -> nn.Module:
    return _unwrapped(model).get_decoder()


def _image_encoder(model: nn.Module) -> nn.Module | None:
    """Image encoder that the model names; None for a model without one."""
    inner = _unwrapped(model)
    encoder = inner.get_encoder(modality="image")
    return None if encoder is inner or encoder is inner.base_model else encoder


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _ids(*modules: nn.Module | None) -> set[int]:
    return {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
