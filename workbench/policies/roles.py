"""Roles of a model's weights: vision (the image encoder), connector (from image features to the text model), language.

The model says which module is its text decoder and which its image encoder. A merger or projector inside the encoder,
as Qwen-VL has it, is part of the connector, and so is every weight outside of both. Embeddings and head are language.
"""

from torch import nn

from workbench.errors import ConfigError
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


def require_roles(model: nn.Module, required: list[str], name: str) -> None:
    """Raise ConfigError for a role in which the model has no weights; `name` is the policy's."""
    present = set(roles(model).values())
    for role in required:
        if role not in present:
            raise ConfigError(
                f"{name}: models.train names {role}, and {type(model).__name__} has no such weights. It has "
                f"{', '.join(role for role in ROLES if role in present)}."
            )


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
