"""Update masks: the trainable coordinates of a model's weights, as one safetensors file of booleans.

A mask lists the coordinates that a run changed, at a stated precision: in float32 AdamW changes nearly all of them,
rounded to bfloat16 far fewer. Tensor names are those of model folders; the file's metadata states its origin.

    write_mask("found.safetensors", source, target, dtype="bfloat16")
    write_random_mask("random.safetensors", "found.safetensors", seed=0)     control: as many in every tensor
    training.update_mask: found.safetensors                                  train these; all others stay bit-equal

Source: "Dense Supervision, Sparse Updates" (arXiv 2606.13657), the sparse-subnetwork experiment. The paper zeroes the
gradient outside the mask; here also weight decay, which would change every coordinate.
"""

import os
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from workbench.errors import ConfigError, PolicyError, RunError
from workbench.files.folders import saving
from workbench.policies.tensors import PRECISIONS, Weights, check_same_architecture
from workbench.seeding import derive_seed

_KIND = "update mask of the VLM distillation workbench"


def changed(before: torch.Tensor, after: torch.Tensor, dtype: str, above: float) -> torch.Tensor:
    """Whether |after - before| > above, both rounded to dtype first: booleans of the shape of one weight tensor."""
    precision = PRECISIONS[dtype]
    return (after.to(precision).float() - before.to(precision).float()).abs() > above


def write_mask(
    file: str | Path, source: Weights, target: Weights, *, dtype: str = "bfloat16", above: float = 0.0
) -> dict:
    """Write the mask of the coordinates that differ between two checkpoints; returns its metadata.

    dtype   precision to which both are rounded before the comparison
    above   smallest change that counts, exclusive; 0 = any change at that precision

    Memory: one byte per weight. Raises: PolicyError for two architectures; ConfigError if nothing changed.
    """
    check_same_architecture(source, target)
    masks = {name: changed(source.tensor(name), target.tensor(name), dtype, above) for name in source.shapes}
    if not any(bool(mask.any()) for mask in masks.values()):
        raise ConfigError(
            f"no coordinate changed by more than {above:g} in {dtype}, so the mask would be empty. Use a finer "
            "precision (float32), a smaller limit, or a run with more steps."
        )
    return _write(
        file, masks, {"dtype": dtype, "above": repr(above), "source": str(source.folder), "target": str(target.folder)}
    )


def write_random_mask(file: str | Path, like: str | Path, *, seed: int) -> dict:
    """Write a random mask with as many coordinates in each tensor as the mask `like`; returns its metadata."""
    masks, facts = read_mask(like), mask_facts(like)
    drawn = {}
    for name, mask in masks.items():
        generator = torch.Generator().manual_seed(derive_seed("update mask", seed, name))
        chosen = torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]
        drawn[name] = torch.zeros(mask.numel(), dtype=torch.bool).index_fill_(0, chosen, True).reshape(mask.shape)
    return _write(
        file, drawn, {"dtype": facts["dtype"], "above": facts["above"], "random_like": str(like), "seed": str(seed)}
    )


def overlap(first: str | Path, second: str | Path) -> dict[str, float]:
    """Compare two masks.

    Returns: `overlap`, the share of the first that is in the second; `coverage`, the share of the second that is in the
    first; `chance`, the expected overlap of masks drawn at random in each tensor; `enrichment`, overlap / chance.
    Raises: ConfigError for masks of two models.
    """
    masks = [read_mask(file) for file in (first, second)]
    if {name: mask.shape for name, mask in masks[0].items()} != {name: mask.shape for name, mask in masks[1].items()}:
        raise ConfigError(
            f"{first} and {second} are masks of two models. Expected two masks of one model. Name masks of the same "
            "model."
        )
    pairs = [(mask, masks[1][name]) for name, mask in masks[0].items()]
    both = sum(int((mask & other).sum()) for mask, other in pairs)
    sizes = [sum(int(mask.sum()) for mask in run_masks.values()) for run_masks in masks]
    by_chance = sum(float(mask.sum()) * float(other.sum()) / mask.numel() for mask, other in pairs)
    return {
        "overlap": both / sizes[0],
        "coverage": both / sizes[1],
        "chance": by_chance / sizes[0],
        "enrichment": both / by_chance,
    }


def read_mask(file: str | Path) -> dict[str, torch.Tensor]:
    """Read a mask: tensor name -> booleans of its shape. Raises ConfigError if the file is missing or not a mask."""
    mask_facts(file)
    return safetensors.torch.load_file(file)


def mask_facts(file: str | Path) -> dict[str, str]:
    """Metadata of a mask: dtype, above, coordinates, of, and its origin. Raises ConfigError if it is not a mask."""
    try:
        with safe_open(file, "pt") as opened:
            facts = dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cannot read update mask {file}: {error}. Make one with `workbench geometry RUN --save-mask FILE`."
        ) from None
    if facts.pop("kind", None) != _KIND:
        raise ConfigError(f"{file} is not an update mask. Make one with `workbench geometry RUN --save-mask FILE`.")
    return facts


class UpdateMask:
    """A mask applied to a model's parameters: all other coordinates stay bit-identical."""

    def __init__(self, file: str | Path, model: nn.Module) -> None:
        """Raises: ConfigError with the first tensors that differ, if the mask is of another model."""
        masks = read_mask(file)
        parameters = revert_weight_conversion(model, dict(model.named_parameters()))  # names as in model folders
        wrong = [f"{name} is only in the mask" for name, mask in masks.items() if name not in parameters and mask.any()]
        wrong += [f"{name} is not in the mask" for name in parameters if name not in masks]
        for name, parameter in parameters.items():
            if name in masks and parameter.shape != masks[name].shape:
                wrong.append(
                    f"{name} is {list(masks[name].shape)} in the mask and {list(parameter.shape)} in the model"
                )
        if wrong:
            raise ConfigError(
                f"training.update_mask {file} is of another model: {'; '.join(wrong[:3])}"
                f"{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Make one from a run of this student: "
                "`workbench geometry RUN --save-mask FILE`."
            )
        model_ids = {id(parameter) for parameter in model.parameters()}
        for name, parameter in parameters.items():
            if id(parameter) not in model_ids:
                raise PolicyError(
                    f"training.update_mask does not support {name}, whose stored shape differs from its shape in "
                    "training. Leave training.update_mask out."
                )
        self._masks = [(parameter, masks[name].to(parameter.device)) for name, parameter in parameters.items()]
        self.size = sum(int(mask.sum()) for mask in masks.values())

    @torch.no_grad()
    def hide_gradients(self) -> None:
        """Zero the gradients outside the mask. NaN stays NaN, so that the check after it fails."""
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def decay(self, factor: float) -> None:
        """Apply AdamW's weight decay inside the mask only: parameter <- factor parameter."""
        for parameter, mask in self._masks:
            if factor != 1.0 and parameter.grad is not None:
                parameter.copy_(torch.where(mask, parameter * factor, parameter))

    def check_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise RunError if a coordinate outside the mask has moments: the run began with another mask."""
        for parameter, mask in self._masks:
            state = optimizer.state.get(parameter)
            if state and bool((state["exp_avg_sq"] != 0)[~mask].any()):
                raise RunError(
                    "the file of training.update_mask changed since the run began: coordinates outside the mask have "
                    "optimizer state. Restore the first file, or start a new run."
                )


def _write(file: str | Path, masks: dict[str, torch.Tensor], facts: dict[str, str]) -> dict:
    facts |= {
        "kind": _KIND,
        "coordinates": str(sum(int(mask.sum()) for mask in masks.values())),
        "of": str(sum(mask.numel() for mask in masks.values())),
    }
    temporary = Path(file).with_name(f".{Path(file).name}.{os.getpid()}")
    with saving(file):
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file({name: mask.contiguous() for name, mask in masks.items()}, temporary, facts)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    return facts
