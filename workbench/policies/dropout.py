"""Training without a model's own dropout, so that scoring matches sampling.

A model samples in evaluation mode. In training mode GPT-2, OPT and Emu 3 drop a tenth of their activations, and other
families drop layers or add noise to routers. Gradients in evaluation mode do not have that. Only gradient checkpointing
needs training mode, which transformers checks in each layer.
"""

from collections.abc import Callable

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def set_adapter_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout of all adapters, overriding the saved configuration."""
    for layer in _adapted_layers(model):
        for name in layer.lora_dropout:
            layer.lora_dropout[name] = nn.Dropout(probability) if probability else nn.Identity()


def enter_training_without_dropout(model: nn.Module) -> None:
    """Set evaluation mode, except for adapter dropout and for layers with gradient checkpointing."""
    model.eval()
    for layer in _adapted_layers(model):
        layer.training = True  # DoRA checks the layer and not its dropout
        layer.lora_dropout.train()
    if not getattr(model, "is_activation_checkpointing", False):
        return
    model.training = True  # of this module only, for gradient checkpointing
    for module in model.modules():
        if not getattr(module, "gradient_checkpointing", False):
            continue
        module.training = True
        if isinstance(module, GradientCheckpointingLayer) and not hasattr(module, "_checkpoints_in_evaluation"):
            module._checkpoints_in_evaluation = True
            module._gradient_checkpointing_func = _in_evaluation(module, module._gradient_checkpointing_func)


def _in_evaluation(layer: nn.Module, checkpoint: Callable) -> Callable:
    """Wrap a layer's checkpointing function, so that its forward pass runs in evaluation mode."""

    def call(forward: Callable, *inputs: object) -> object:
        def evaluated(*values: object) -> object:
            layer.training = False
            try:
                return forward(*values)
            finally:
                layer.training = True

        return checkpoint(evaluated, *inputs)

    return call


def _adapted_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "lora_dropout", None), nn.ModuleDict)]
