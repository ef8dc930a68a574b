"""Weights of a model folder as files: one tensor at a time, no model is built.

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
        """One tensor as it is stored. Raises PolicyError if its file cannot be read."""
        try:
            with safe_open(self.files[name], "pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{self.files[name]} cannot be read ({error}).") from None


def open_weights(model: str | Path) -> Weights:
    """The weights of a folder written by save_pretrained, or of a name on the hub.

    Raises: PolicyError if there is no such folder, it holds no safetensors, only an adapter, or a torn file.
    """
    folder = _folder(model)
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise PolicyError(f"{index} is no index of weights ({error}).") from None
    paths = [folder / name for name in names or ["model.safetensors"]]
    if not names and not paths[0].is_file():
        if (folder / "adapter_model.safetensors").is_file():
            raise PolicyError(
                f"{folder} holds a LoRA adapter and no whole weights. Merge it into its model first (peft: "
                "merge_and_unload), save that with save_pretrained, and give the two model folders."
            )
        raise PolicyError(f"{folder} has no model.safetensors. Give a folder written by save_pretrained.")
    files, shapes, left_out = {}, {}, []
    for file in paths:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                    part = opened.get_slice(name)
                    files[name] = file
                    if part.get_dtype().startswith(("F", "BF")):
                        shapes[name] = tuple(part.get_shape())
                    else:
                        left_out.append(name)
        except (OSError, SafetensorError) as error:
            raise PolicyError(f"{file} cannot be read ({error}).") from None
    return Weights(folder, files, shapes, tuple(left_out))


def check_same_architecture(first: Weights, second: Weights) -> None:
    """Raises PolicyError naming the first tensors that only one of the two has, or that have two shapes."""
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
            f"{first.folder} and {second.folder} are two architectures: {'; '.join(differences[:3])}{more}. A difference "
            "of weights needs two checkpoints of one model. If it is one model under older names, load it and save it "
            "again with save_pretrained."
        )


def _folder(model: str | Path) -> Path:
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
    except (OSError, ValueError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise PolicyError(f'"{model}" is no folder, and no model of that name can be had ({_first(error)}).') from None


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
