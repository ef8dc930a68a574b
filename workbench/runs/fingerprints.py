"""Fingerprints of a run's data and models: a resumed run goes on with what it began with, or not at all.

examples.jsonl holds a line for each example of data.train, data.eval and data.probes, in their order: where it is used, its id,
and a digest of each field that is not empty. A picture's digest is of its size and content: of a file of more than WHOLE_BYTES,
of its first, middle and last BLOCK_BYTES, so that 100,000 photos take seconds. Files of a model are kept so in run.json.
"""

import json
import logging
import os
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from workbench.config.schema import RunConfig
from workbench.distill.method import Method
from workbench.errors import RunError
from workbench.policies.adapters import base_of, is_adapter
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.types import Example

FILE = "examples.jsonl"
BLOCK_BYTES = 2**13
WHOLE_BYTES = 2**17
_LEFT_OUT = ("id", "origin", "others")  # a file may be moved
_DIGEST_BYTES = 6
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model")

log = logging.getLogger("workbench")


def fingerprint(example: Example) -> dict[str, str]:
    """A digest of every field of an example that is not empty."""
    digests = {}
    for field in fields(example):
        value = getattr(example, field.name)
        if field.name not in _LEFT_OUT and value not in (None, "", (), field.default):
            digests[field.name] = _digest(json.dumps(_plain(value)).encode())
    return digests


def require_same_data(folder: RunFolder, data: dict[str, list[Example]], *, resume: bool) -> None:
    """Keep the fingerprints of a run that begins; compare those of one that goes on.

    data    examples as loaded, by the key of the configuration that names them
    Raises  RunError naming the first example that differs, and how
    """
    now = [
        {"data": key, "id": example.id, **fingerprint(example)}
        for key, examples in data.items()
        for example in examples
    ]
    before = folder.sequences(FILE) if resume else None
    if before is not None:
        for key, examples in data.items():
            _compare(key, examples, *([line for line in lines if line["data"] == key] for lines in (before, now)))
        return
    if resume and list_checkpoints(folder.path):
        log.warning(
            "this run has no %s: it was begun by a version that kept none, or the file was deleted. Whether its data is still "
            "the same is not known; from now on it is.",
            FILE,
        )
    folder.write_sequences(FILE, now)


def models_read_again(config: RunConfig, method: Method) -> dict[str, str]:
    """Key of the configuration -> folder or hub name of every model that a resumed run reads beside its checkpoint."""
    models = {f"models.teachers.{domain}": path for domain, path in (config.models.teachers or {}).items()}
    if config.models.teacher is not None:
        models["models.teacher"] = config.models.teacher
    reads_start = "student@start" in method.policies or config.models.lora.rank > 0
    students = {f"models.student ({name})": path for name, path in config.models.learners.items()}
    return models | {key: path for key, path in students.items() if reads_start or is_adapter(path)}


def require_same_models(folder: RunFolder, models: dict[str, str], *, resume: bool) -> None:
    """Keep the fingerprints of the files of a run's models; compare those of a run that goes on.

    models  as models_read_again
    Raises  RunError naming the first file that differs. What lies on a hub, or no longer anywhere, is not compared
    """
    now = {key: _of_model(path) for key, path in models.items()}
    before = folder.status.get("model_files") if resume else None
    if not isinstance(before, dict):
        folder.update(model_files=now)
        return
    for key, files in now.items():
        kept = before.get(key) or files
        weights = {name for name in files if name.endswith(".safetensors")}  # other files may be written beside them
        changed = [name for name in sorted(kept.keys() | weights) if kept.get(name) != files.get(name)] if files else []
        if changed:
            raise RunError(
                f"{key} ({models[key]}) was changed since the run began: {', '.join(changed[:5])} differ. A run that goes on "
                "must equal one that was never stopped. Put the folder back as it was, or start a new run (name=...)."
            )


def _of_model(path: str) -> dict[str, list[object]]:
    """File -> size and digest, of a model's folder and of that which its adapter belongs to; none for a name on a hub."""
    folders = [folder for folder in dict.fromkeys((Path(path), Path(base_of(path)))) if folder.is_dir()]
    return {
        file.name if folder == folders[0] else f"{folder.name}/{file.name}": _of_file(file)
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix in _MODEL_FILES and file.is_file()
    }


def _compare(key: str, examples: list[Example], before: list[dict], now: list[dict]) -> None:
    count = "" if len(before) == len(now) else f" It had {len(before):,} examples, and has {len(now):,} now."
    remedy = (
        f"{count} A run that goes on must equal one that was never stopped, and rows, traces and probes go by id. Put {key} back "
        "as it was, or start a new run (name=...); it may begin from a checkpoint of this one: models.student=CHECKPOINT/student."
    )
    for example, old, new in zip(examples, before, now, strict=False):
        if old != new:
            where = example.origin or example.id
            if old["id"] != new["id"]:
                how = f'its id is "{new["id"]}" and was "{old["id"]}"'
            else:
                names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
                how = f'(id "{new["id"]}") differs in {", ".join(names)}'
            raise RunError(f"{key} was changed since the run began: {where} {how}.{remedy}")
    if len(now) != len(before):
        change = "appended to" if len(now) > len(before) else "taken from the end of"
        raise RunError(
            f"{key} was changed since the run began: {abs(len(now) - len(before)):,} examples were {change} it. The order in which "
            f"examples are drawn depends on how many there are.{remedy}"
        )


def _plain(value: object) -> object:
    """A value as JSON holds it, pictures as their digests."""
    if isinstance(value, Path):
        return _of_file(value)
    if isinstance(value, Image.Image):
        return [value.mode, *value.size, _digest(value.tobytes())]
    if is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in fields(value) if field.compare]
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value


def _of_file(path: Path) -> list[object]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE_BYTES:
                return [size, _digest(file.read())]
            blocks = []
            for start in (0, (size - BLOCK_BYTES) // 2, size - BLOCK_BYTES):
                file.seek(start)
                blocks.append(file.read(BLOCK_BYTES))
            return [size, _digest(b"".join(blocks))]
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
