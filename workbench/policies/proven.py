"""Proof cache: one proof per model files, in memory and in the user's cache folder."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
import transformers

from workbench.distributed import ProcessGroup
from workbench.errors import ConfigError, PolicyError
from workbench.policies.adapters import base_of
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.cache_folder import cache_folder
from workbench.policies.diffusion import DiffusionPolicy
from workbench.policies.proof import Proof
from workbench.policies.scattering import is_empty
from workbench.policies.shortcuts import Shortcuts

_CODE = (
    "passes.py",
    "packing.py",
    "proof.py",
    "heads.py",
    "encoding.py",
    "image_features.py",
    "processors.py",
)  # versions of these change a proof

log = logging.getLogger("workbench")
_known: dict[str, Proof] = {}


def prove_all(policies: Iterable[AutoregressivePolicy], *, accept_differences: bool = False) -> None:
    """Prove the shortcuts of policies, and log disabled ones once per model.

    Raises: PolicyError for a model that differs from its own forward pass, unless accepted; ConfigError for one that
    shall pack sequences and cannot.
    """
    unusual: dict[tuple, list[str]] = {}
    for policy in policies:
        if is_empty(policy.model):
            continue  # it gets the proof of rank 0
        packs = policy.shortcuts.packing
        proof = prove_once(policy)
        if packs and not proof.shortcuts.packing:
            raise _cannot_pack(policy, proof)
        if proof.differs and not accept_differences:
            raise PolicyError(
                f"{policy.name} ({policy.source}): {'; '.join(proof.differs)}. Choose another model or another version "
                "of transformers, or set models.accept_differences=true to accept these numbers."
            )
        for level, sentences in ((logging.INFO, proof.sentences), (logging.WARNING, proof.differs)):
            for sentence in sentences:
                unusual.setdefault((level, str(policy.source), sentence), []).append(policy.name)
    for (level, _, sentence), names in unusual.items():
        log.log(level, "%s: %s", ", ".join(names), sentence)


def _cannot_pack(policy: AutoregressivePolicy, proof: Proof) -> ConfigError:
    gap = proof.off.get("packing")
    reason = "such a pass fails" if gap is None else f"its log-probs are then {gap:.1e} nats off"
    return ConfigError(
        f"training.packing=true: {policy.name} ({policy.source}, {type(policy.model).__name__}) cannot score several "
        f"sequences in a row: {reason}. Set training.packing=false; training.tokens_per_micro_batch reduces padding "
        "too."
    )


def agree(policies: Iterable[AutoregressivePolicy], process_group: ProcessGroup) -> None:
    """Disable each shortcut on all ranks if it is disabled on one. Ranks without weights get the others' proof."""
    if process_group.size == 1:
        return
    policies = list(policies)
    for policy, *proofs in zip(
        policies, *process_group.all_gather_object([policy.proof for policy in policies]), strict=True
    ):
        proofs = [proof for proof in proofs if proof is not None]
        policy.apply(max(proofs, key=lambda proof: (len(proof.off), sorted(proof.off))))


def keep_shortcuts(policies: list[AutoregressivePolicy], recorded: dict[str, dict]) -> dict[str, dict]:
    """Give policies the recorded shortcuts of their run, and return what to record of every proof, by policy.

    A proof is about weights, and a checkpoint has other weights than the run's start. With other shortcuts, a resumed
    run would differ from an uninterrupted one by rounding.
    """
    for policy in policies:
        if policy.proof is None or "shortcuts" not in recorded.get(policy.name, {}):
            continue
        present = asdict(policy.proof.shortcuts)
        shortcuts = present | recorded[policy.name]["shortcuts"] | {"head": present["head"]}
        if shortcuts == present:
            continue
        log.warning(
            "%s: its present weights would be scored with %s; the run continues with the shortcuts of its start, %s",
            policy.name,
            _differing(present, shortcuts),
            _differing(shortcuts, present),
        )
        policy.apply(replace(policy.proof, shortcuts=Shortcuts(**shortcuts), off=recorded[policy.name]["off"]))
    return {
        policy.name: {
            "off": policy.proof.off,
            "differs": list(policy.proof.differs),
            "shortcuts": asdict(policy.proof.shortcuts),
        }
        for policy in policies
        if policy.proof is not None
    }


def _differing(shortcuts: dict[str, bool], others: dict[str, bool]) -> str:
    return ", ".join(f"{name} {'on' if used else 'off'}" for name, used in shortcuts.items() if used != others[name])


def prove_once(policy: AutoregressivePolicy) -> Proof:
    """As AutoregressivePolicy.prove, but reuse the proof of the same files."""
    if isinstance(policy, DiffusionPolicy) or policy.proof is not None or policy.source is None:
        return policy.prove()
    key = _fingerprint(policy, policy.source)
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


def _files_of(folder: Path) -> tuple:
    """Files of a folder; () for a name on the hub."""
    if not folder.is_dir():
        return ()
    return tuple(sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()))


def _fingerprint(policy: AutoregressivePolicy, path: str | Path) -> str | None:
    """Fingerprint of all that a proof depends on; None for a hub name without a commit."""
    folders, config = [Path(path), Path(base_of(path))], policy.model.config
    commit = getattr(config, "_commit_hash", None)
    if not all(folder.is_dir() for folder in folders) and commit is None:
        return None
    facts = {
        "code": _code(),
        "versions": [torch.__version__, transformers.__version__],
        "files": [[str(folder.resolve()), _files_of(folder)] for folder in folders],
        "commit": commit,
        "weights": [str(policy.device.type), str(next(policy.model.parameters()).dtype), policy.adapter],
        "packing": policy.shortcuts.packing,
        "pictures": str(getattr(policy.processor, "image_processor", None)),  # with changed options
        "attention": getattr(config, "_attn_implementation", None),
        "modules": hashlib.sha256(str(policy.model).encode()).hexdigest(),  # adapters, quantized or compiled layers
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()


def _file(key: str) -> Path:
    return cache_folder() / "proofs" / f"{key}.json"


def _read(key: str) -> Proof | None:
    try:
        values = json.loads(_file(key).read_text())
        return Proof(
            Shortcuts(**values["shortcuts"]),
            values["off"],
            tuple(values["differs"]),
            values["head"] | ({"never": tuple(values["head"]["never"])} if values["head"] else {}),
        )
    except (OSError, ValueError, KeyError, TypeError):  # missing or truncated
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
