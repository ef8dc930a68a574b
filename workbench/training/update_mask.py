"""Update masks: which coordinates of a model's weights may be trained, as one safetensors file of booleans.

A mask names the coordinates that a run changed, in a stated precision: in float32 AdamW moves nearly all of them,
rounded to bfloat16 far fewer differ. Tensors have the names they have in model folders; the file's metadata says how
they were found.

    write_mask("found.safetensors", source, target, dtype="bfloat16")
    write_random_mask("random.safetensors", "found.safetensors", seed=0)     control: as many in every tensor
    training.update_mask: found.safetensors                                  trains these and leaves all others
    bit-equal

Source: "Dense Supervision, Sparse Updates" (arXiv 2606.13657), the sparse-subnetwork experiment. There the gradient is
set to zero outside; here weight decay too, which would move every coordinate.
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
    """Where |after - before| > above, both rounded to dtype first. Booleans of the tensors' shape."""
    precision = PRECISIONS[dtype]
    return (after.to(precision).float() - before.to(precision).float()).abs() > above


def write_mask(
    file: str | Path, source: Weights, target: Weights, *, dtype: str = "bfloat16", above: float = 0.0
) -> dict:
    """Write the mask of the coordinates that differ between two checkpoints; returns its metadata.

    dtype   precision that both are rounded to before they are compared
    above   smallest change that counts, exclusive; 0 = any that the precision shows

    Memory: one byte per weight. Raises: PolicyError for two architectures; ConfigError if nothing changed.
    """
    check_same_architecture(source, target)
    masks = {name: changed(source.tensor(name), target.tensor(name), dtype, above) for name in source.shapes}
    if not any(bool(mask.any()) for mask in masks.values()):
        raise ConfigError(
            f"no coordinate changed by more than {above:g} in {dtype}, so a mask would train nothing. Take a finer "
            "precision (float32), a smaller limit, or a run with more steps."
        )
    return _write(
        file, masks, {"dtype": dtype, "above": repr(above), "source": str(source.folder), "target": str(target.folder)}
    )


def write_random_mask(file: str | Path, like: str | Path, *, seed: int) -> dict:
    """Write a mask of as many coordinates in every tensor as another one has, drawn at random; returns its metadata."""
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
    """How much two masks have in common: `overlap`, share of the first that is in the second; `coverage`, the other way
    round; `chance`, what the overlap would be if either lay at random in every tensor; `enrichment`, overlap / chance.

    Raises: ConfigError for masks of two models.
    """
    masks = [read_mask(file) for file in (first, second)]
    if {name: mask.shape for name, mask in masks[0].items()} != {name: mask.shape for name, mask in masks[1].items()}:
        raise ConfigError(f"{first} and {second} are masks of two models, so their coordinates cannot be compared.")
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
    """Tensor -> booleans. Raises ConfigError if the file is missing or no mask."""
    mask_facts(file)
    return safetensors.torch.load_file(file)


def mask_facts(file: str | Path) -> dict[str, str]:
    """A mask's metadata: dtype, above, coordinates, of, and where it comes from. Raises ConfigError if it is no
    mask.
    """
    try:
        with safe_open(file, "pt") as opened:
            facts = dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"update mask {file} cannot be read ({error}). Make one: workbench geometry RUN --save-mask FILE."
        ) from None
    if facts.pop("kind", None) != _KIND:
        raise ConfigError(f"{file} is no update mask. Make one: workbench geometry RUN --save-mask FILE.")
    return facts


class UpdateMask:
    """A mask laid over a model's parameters: every coordinate outside keeps its bits."""

    def __init__(self, file: str | Path, model: nn.Module) -> None:
        """Raises: ConfigError naming the first tensors if the mask is another model's."""
        masks = read_mask(file)
        parameters = revert_weight_conversion(model, dict(model.named_parameters()))  # by their names in model folders
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
                f"{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Make one of a run from this student: "
                "workbench geometry RUN --save-mask FILE."
            )
        model_ids = {id(parameter) for parameter in model.parameters()}
        for name, parameter in parameters.items():
            if id(parameter) not in model_ids:
                raise PolicyError(
                    f"{name} is stored in another shape than it is trained in, so no mask can be laid over it."
                )
        self._masks = [(parameter, masks[name].to(parameter.device)) for name, parameter in parameters.items()]
        self.size = sum(int(mask.sum()) for mask in masks.values())

    @torch.no_grad()
    def hide_gradients(self) -> None:
        """Zero outside. A gradient that is not a number stays one, to be found out."""
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def decay(self, factor: float) -> None:
        """AdamW's weight decay, inside alone: parameter <- factor parameter."""
        for parameter, mask in self._masks:
            if factor != 1.0 and parameter.grad is not None:
                parameter.copy_(torch.where(mask, parameter * factor, parameter))

    def check_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises RunError if a coordinate outside has moved before: the run was begun with another mask."""
        for parameter, mask in self._masks:
            state = optimizer.state.get(parameter)
            if state and bool((state["exp_avg_sq"] != 0)[~mask].any()):
                raise RunError(
                    "this run was begun with another training.update_mask than the file now holds: coordinates outside "
                    "of it have been trained. Put the first file back, or start a new run."
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
