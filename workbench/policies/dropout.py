"""A model that learns without its own dropout, so that it scores answers as it sampled them.

A model samples in evaluation mode. In training mode many families do more than learn: GPT-2, OPT and Emu 3 drop a tenth of
their activations, and others drop layers or add noise to routers. Evaluation mode gives the same gradients without that.
What needs training mode is recomputing activations (gradient checkpointing), which transformers asks of each layer.
"""

from collections.abc import Callable

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def set_adapter_dropout(model: nn.Module, share: float) -> None:
    """Have adapters drop this share of their inputs while they learn, whatever the folder says that they come from."""
    for layer in _adapted_layers(model):
        for name in layer.lora_dropout:
            layer.lora_dropout[name] = nn.Dropout(share) if share else nn.Identity()


def enter_training_without_dropout(model: nn.Module) -> None:
    """Evaluation mode, but for adapters' dropout and for the layers that recompute activations."""
    model.eval()
    for layer in _adapted_layers(model):
        layer.training = True  # DoRA asks this of the layer, and not of its dropout
        layer.lora_dropout.train()
    if not getattr(model, "is_activation_checkpointing", False):
        return
    model.training = True  # of this module alone: it says that activations are recomputed
    for module in model.modules():
        if not getattr(module, "gradient_checkpointing", False):
            continue
        module.training = True
        if isinstance(module, GradientCheckpointingLayer) and not hasattr(module, "_checkpoints_in_evaluation"):
            module._checkpoints_in_evaluation = True
            module._gradient_checkpointing_func = _in_evaluation(module, module._gradient_checkpointing_func)


def _in_evaluation(layer: nn.Module, checkpoint: Callable) -> Callable:
    """A layer's checkpointing function under which its own forward pass, recomputed or not, is in evaluation mode."""

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
