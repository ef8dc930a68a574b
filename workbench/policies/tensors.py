"""Tensors of a model folder, one at a time, without building the model.

    weights = open_weights("runs/demo/checkpoint-000060/student")
    weights.tensor("model.text_model.norm.weight")

Whole and sharded safetensors are read, as save_pretrained writes them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from workbench.errors import PolicyError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Weights:
    """The tensors of one folder. `files`: tensor -> the file that holds it; `shapes`: of the floating-point ones alone.

    left_out  tensors that are no floating-point numbers (quantised ones, counters)
    """

    folder: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...] = ()

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor. Raises PolicyError if its file cannot be read."""
        try:
            with safe_open(self.files[name], "pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"cannot read {self.files[name]}: {error}. Download or save it again.") from None


def open_weights(model: str | Path) -> Weights:
    """Open the weights of a folder written by save_pretrained, or of a name on the hub.

    Raises: PolicyError for a missing folder, one without safetensors or with only an adapter, or a truncated file.
    """
    folder = _folder(model)
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise PolicyError(f"{index} is not an index of weights ({error}). Save the model again.") from None
    paths = [folder / name for name in names or ["model.safetensors"]]
    if not names and not paths[0].is_file():
        if (folder / "adapter_model.safetensors").is_file():
            raise PolicyError(
                f"{folder} holds a LoRA adapter. Expected full weights. Merge it into its model (peft: "
                "merge_and_unload) and save that with save_pretrained."
            )
        raise PolicyError(f"{folder} has no model.safetensors. Name a folder written by save_pretrained.")
    files, shapes, left_out = {}, {}, []
    for file in paths:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a mapping)
                    part = opened.get_slice(name)
                    files[name] = file
                    if part.get_dtype().startswith(("F", "BF")):
                        shapes[name] = tuple(part.get_shape())
                    else:
                        left_out.append(name)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"cannot read {file}: {error}. Download or save it again.") from None
    return Weights(folder, files, shapes, tuple(left_out))


def check_same_architecture(first: Weights, second: Weights) -> None:
    """Raise PolicyError with the first tensors that only one side has, or whose shapes differ."""
    differences = []
    for name in dict.fromkeys([*first.shapes, *second.shapes]):
        shapes = [weights.shapes.get(name) for weights in (first, second)]
        if shapes[0] != shapes[1]:
            sides = [
                f"{list(shape)} in {weights.folder}" if shape else f"not in {weights.folder}"
                for shape, weights in zip(shapes, (first, second), strict=True)
            ]
            differences.append(f"{name}: {sides[0]}, {sides[1]}")
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise PolicyError(
            f"{first.folder} and {second.folder} differ in architecture: {'; '.join(differences[:3])}{more}. Expected "
            "two checkpoints of one model. If only the names are older, load it and save it again with save_pretrained."
        )


def _folder(model: str | Path) -> Path:
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
    except (OSError, ValueError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise PolicyError(
            f'"{model}" is neither a folder nor an available model on the hub ({_first(error)}). Correct the name.'
        ) from None


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
