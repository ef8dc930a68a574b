"""The ends of a model, for an engine that computes elsewhere: processor, embeddings, tower, final norm and head.

The model is loaded with its first decoder layers alone. What a run needs of a teacher does not depend on the others:
how prompts are encoded, the head's weights, and the operations after it, which `prove` finds. So the host needs no
memory for the whole model.
"""

import copy
import json
import logging
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from workbench.errors import PolicyError, WorkbenchError
from workbench.policies.adapters import base_of
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.models import DTYPES, is_masked_lm, load_model_processor, load_skeleton, read_model
from workbench.policies.proof import FAILURES
from workbench.policies.serving.engine import NAME, head_weights

LAYERS = 2  # decoder layers
_BLOCKS, _BLOCK = 8, 64  # samples of each weight in a fingerprint, and their bytes

log = logging.getLogger("workbench")


def load_trunk(
    path: str | Path, *, dtype: str, trust_remote_code: bool = False
) -> tuple[AutoregressivePolicy, dict[str, Tensor], torch.dtype]:
    """A policy that encodes and applies the head, without weights; the weights of its head, and their precision.

    Raises: PolicyError for an adapter, a model whose first layers cannot be loaded alone, and one without linear head.
    """
    if base_of(path) is not path:
        raise PolicyError(
            f"{path} is an adapter, and vLLM serves whole models. Merge it into its model, or choose --engine "
            "transformers."
        )
    processor, config = load_model_processor(path, NAME, trust_remote_code=trust_remote_code)
    _refuse_diffusion(config, path)
    try:
        short = _shortened(config)
        model, report = read_model(short, path, config=short, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code)
        faults = [*report["missing_keys"], *report["mismatched_keys"]]
        if faults:
            raise PolicyError(f'{len(faults)} weights of "{path}" are missing, or of another shape ({faults[0]}).')
        policy = AutoregressivePolicy(model.requires_grad_(False).eval(), processor, NAME)
        policy.source, policy.encoder.max_pixels = path, None  # pictures are read as runs send them
        policy.prove()
    except WorkbenchError:
        raise
    except (OSError, SafetensorError, *FAILURES) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PolicyError(
            f'"{path}": its first {LAYERS} decoder layers cannot be loaded alone ({reason[:300]}), from which the head '
            "is found. Choose --engine transformers."
        ) from error
    head, precision = head_weights(policy), next(model.parameters()).dtype
    if not head:
        raise PolicyError(
            f"the logits of {path} are not its output layer over its last hidden states, which is all that vLLM "
            "returns. Choose --engine transformers."
        )
    policy.proof = replace(policy.proof, off={}, differs=())  # of passes by transformers
    model.config = config
    model.to("meta")
    return policy, head, precision


def _refuse_diffusion(config: PretrainedConfig, path: str | Path) -> None:
    if is_masked_lm(config):
        raise PolicyError(f"{path} is a masked diffusion model, which vLLM does not serve. Choose another model.")


def _shortened(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with the first decoder layers alone."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    depth = text.num_hidden_layers
    text.num_hidden_layers = min(LAYERS, depth)
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # a value for each layer
            setattr(text, name, value[: text.num_hidden_layers])
    return config


def weight_shapes(path: str | Path, *, trust_remote_code: bool = False) -> dict[str, torch.Size]:
    """Shapes of all weights of a model by name, of tied ones the first; as `unique_weights` names them."""
    model = load_skeleton(path, NAME, trust_remote_code=trust_remote_code)
    unique: dict[int, str] = {}
    weights = model.state_dict(keep_vars=True)
    for name, value in weights.items():
        unique.setdefault(id(value), name)
    return {name: weights[name].shape for name in unique.values()}


def folder_fingerprint(path: str | Path, precision: torch.dtype, engine: str) -> str:
    """Digest of a folder's weights: names, types, shapes and some bytes of each, with what computes in which precision.

    Other engines give other last digits, and a resumed run must equal an uninterrupted one.
    """
    folder = Path(path) if Path(path).is_dir() else Path(cached_file(str(path), "config.json")).parent
    digest = blake2b(f"{engine} {precision}".encode(), digest_size=16)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = stream.read(size)
            digest.update(header)
            for name, entry in json.loads(header).items():
                start, end = entry["data_offsets"] if name != "__metadata__" else (0, 0)
                for block in range(_BLOCKS if end > start else 0):
                    stream.seek(8 + size + start + (end - start) * block // _BLOCKS)
                    digest.update(stream.read(min(_BLOCK, end - start)))
    return digest.hexdigest()


def require_divisible(path: str | Path, processes: int, *, trust_remote_code: bool = False) -> None:
    """Raise PolicyError if a number of processes does not divide the attention heads of a model's decoder."""
    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    heads = getattr(config.get_text_config(), "num_attention_heads", None)
    if heads and heads % processes:
        allowed = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise PolicyError(
            f"--tensor-parallel {processes} does not divide the {heads} attention heads of {path}. Choose one of "
            f"{allowed}."
        )
