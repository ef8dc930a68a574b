"""Proofs of models, made once for their files: kept for the process, and in the user's cache folder for the next."""

import hashlib
import json
import logging
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
import transformers

from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.kept import files_of
from workbench.policies.proof import Proof
from workbench.policies.shortcuts import Shortcuts
from workbench.policies.weights import base_of

FOLDER = "WORKBENCH_CACHE"  # names another folder than ~/.cache/vlm-distillation-workbench
_CODE = ("passes.py", "proof.py", "heads.py", "encoding.py", "image_features.py", "processors.py")  # decide what a proof says

log = logging.getLogger("workbench")
_known: dict[str, Proof] = {}


def prove_once(policy: AutoregressivePolicy, path: str | Path) -> Proof:
    """The proof of a policy that was loaded from a path, which the policy then takes over; see AutoregressivePolicy.prove."""
    if isinstance(policy, DiffusionPolicy) or policy.proof is not None:
        return policy.prove()
    key = _fingerprint(policy, path)
    proof = None if key is None else _known.get(key) or _read(key)
    if proof is None:
        proof = policy.prove()
        if key is not None:
            _write(key, proof)
    else:
        policy.apply(proof)
    if key is not None:
        _known[key] = proof
    return proof


def _fingerprint(policy: AutoregressivePolicy, path: str | Path) -> str | None:
    """Of all that a proof depends on; None for models whose files cannot be told apart: a name on a hub without a commit."""
    folders, config = [Path(path), Path(base_of(path))], policy.model.config
    commit = getattr(config, "_commit_hash", None)
    if not all(folder.is_dir() for folder in folders) and commit is None:
        return None
    facts = {
        "code": _code(),
        "versions": [torch.__version__, transformers.__version__],
        "files": [[str(folder.resolve()), files_of(folder)] for folder in folders],
        "commit": commit,
        "weights": [str(policy.device.type), str(next(policy.model.parameters()).dtype), policy.adapter],
        "attention": getattr(config, "_attn_implementation", None),
        "modules": hashlib.sha256(str(policy.model).encode()).hexdigest(),  # adapters, quantized or compiled layers
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()


def _file(key: str) -> Path:
    folder = os.environ.get(FOLDER) or Path.home() / ".cache" / "vlm-distillation-workbench"
    return Path(folder) / "proofs" / f"{key}.json"


def _read(key: str) -> Proof | None:
    try:
        values = json.loads(_file(key).read_text())
        return Proof(
            Shortcuts(**values["shortcuts"]),
            values["off"],
            tuple(values["differs"]),
            values["head"] | ({"never": tuple(values["head"]["never"])} if values["head"] else {}),
        )
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that was cut
        return None


def _write(key: str, proof: Proof) -> None:
    file = _file(key)
    part = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(proof)))
        part.replace(file)
    except OSError as error:
        log.debug("the proof is not kept for the next process: %s", error)
