"""Fingerprints of a run's data and models, so that a resumed run uses the same ones or stops.

examples.jsonl has a line for each example of data.train, data.eval and data.probes, in their order: its use, its id,
and a digest of each non-empty field (data/digests.py). run.json has the digests of model files.
"""

import json
import logging
from dataclasses import fields, is_dataclass
from pathlib import Path

from PIL import Image

from workbench.config.schema import RunConfig
from workbench.data.digests import digest, file_digest, picture_digest
from workbench.distill.method import Method
from workbench.errors import RunError
from workbench.policies.adapters import base_of, is_adapter
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.types import Evidence, Example

FILE = "examples.jsonl"
_LEFT_OUT = ("id", "origin", "others")  # may change when a file is moved
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model")

log = logging.getLogger("workbench")


def fingerprint(example: Example) -> dict[str, str]:
    """Compute a digest of every non-empty field of an example."""
    digests = {}
    for field in fields(example):
        value = getattr(example, field.name)
        if field.name not in _LEFT_OUT and value not in (None, "", (), field.default):
            digests[field.name] = digest(json.dumps(_plain(value)).encode())
    return digests


def require_same_data(folder: RunFolder, data: dict[str, list[Example]], *, resume: bool) -> None:
    """Store the fingerprints of a new run's data; compare those of a resumed run.

    data    configuration key -> loaded examples
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
            "this run has no %s: an older version started it, or the file was deleted. Earlier changes of its data "
            "cannot be detected; later ones will be.",
            FILE,
        )
    folder.write_sequences(FILE, now)


def models_read_again(config: RunConfig, method: Method) -> dict[str, str]:
    """Return configuration key -> folder or hub name of all models that a resumed run loads beside its checkpoint."""
    models = {f"models.teachers.{domain}": path for domain, path in (config.models.teachers or {}).items()}
    if config.models.teacher is not None:
        models["models.teacher"] = config.models.teacher
    reads_start = "student@start" in method.policies or config.models.lora.rank > 0
    students = {f"models.student ({name})": path for name, path in config.models.learners.items()}
    return models | {key: path for key, path in students.items() if reads_start or is_adapter(path)}


def require_same_models(folder: RunFolder, models: dict[str, str], *, resume: bool) -> None:
    """Store the fingerprints of a new run's model files; compare those of a resumed run.

    Models on a hub, and folders that no longer exist, are not compared.

    models  as returned by models_read_again
    Raises  RunError naming the files that differ
    """
    now = {key: _of_model(path) for key, path in models.items()}
    before = folder.status.get("model_files") if resume else None
    if not isinstance(before, dict):
        folder.update(model_files=now)
        return
    for key, files in now.items():
        kept = before.get(key) or files
        weights = {name for name in files if name.endswith(".safetensors")}  # other files may be added later
        changed = [name for name in sorted(kept.keys() | weights) if kept.get(name) != files.get(name)] if files else []
        if changed:
            raise RunError(
                f"{key} ({models[key]}) has changed since the run started: {', '.join(changed[:5])} differ. A "
                "resumed run must equal an uninterrupted one. Restore the folder, or start a new run (name=...)."
            )


def require_same_served(folder: RunFolder, served: dict[str, dict[str, str]], *, resume: bool) -> None:
    """Store what servers state of their teachers, by policy; compare those of a resumed run.

    served  of each policy: fingerprint, model, dtype, engine, ...
    Raises  RunError naming a teacher with other weights
    """
    before = folder.status.get("served_teachers") if resume else None
    for name, facts in served.items():
        kept = (before or {}).get(name, facts)
        if kept["fingerprint"] != facts["fingerprint"]:
            raise RunError(
                f"the served {name} has changed since the run started: its server has {facts['model']} "
                f"({facts['dtype']}), and had {kept['model']} ({kept['dtype']}). A resumed run must equal an "
                "uninterrupted one. Serve that model again, or start a new run (name=...)."
            )
        if kept != facts:
            log.warning("the served %s: %s at the start of the run, and %s now", name, kept, facts)
    if served:
        folder.update(served_teachers=served)


def _of_model(path: str) -> dict[str, list[object]]:
    """Return file -> size and digest of a model's folder and of its adapter's base; empty for a name on a hub."""
    folders = [folder for folder in dict.fromkeys((Path(path), Path(base_of(path)))) if folder.is_dir()]
    return {
        file.name if folder == folders[0] else f"{folder.name}/{file.name}": file_digest(file)
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix in _MODEL_FILES and file.is_file()
    }


def _compare(key: str, examples: list[Example], before: list[dict], now: list[dict]) -> None:
    count = "" if len(before) == len(now) else f" It had {len(before):,} examples, and has {len(now):,} now."
    remedy = (
        f"{count} A resumed run must equal an uninterrupted one, and rows, traces and probes refer to ids. Restore "
        f"{key}, or start a new run (name=...). It may start from a checkpoint of this one: "
        "models.student=CHECKPOINT/student."
    )
    for example, old, new in zip(examples, before, now, strict=False):
        if old != new:
            where = example.origin or example.id
            if old["id"] != new["id"]:
                how = f'its id is "{new["id"]}" and was "{old["id"]}"'
            else:
                names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
                how = f'(id "{new["id"]}") differs in {", ".join(names)}'
            raise RunError(f"{key} has changed since the run started: {where} {how}.{remedy}")
    if len(now) != len(before):
        change = "appended to" if len(now) > len(before) else "taken from the end of"
        raise RunError(
            f"{key} has changed since the run started: {abs(len(now) - len(before)):,} examples were {change} it. "
            f"The order of examples depends on their number.{remedy}"
        )


def _plain(value: object) -> object:
    """Convert a value to JSON types, images to their digests."""
    if isinstance(value, (Path, Image.Image)):
        return picture_digest(value)
    if is_dataclass(value):
        entries = {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
        if isinstance(value, Evidence) and len(value.crops) < 2:  # digests of rows with at most one are older
            entries["crops"] = next(iter(value.crops), None)
        return [_plain(entry) for entry in entries.values()]
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value
