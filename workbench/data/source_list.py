"""Sources of examples as configured: `data.train: [{path: a.jsonl, weight: 2}, {path: b.jsonl, domain: charts}]`."""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError, show, unknown

KEYS = ("path", "weight", "domain", "name")


@dataclass(frozen=True)
class Source:
    """One source of training examples.

    weight  share of the draws, relative to the other sources; above 0
    domain  domain of the rows that have none
    name    unique among the sources; the file's stem, or the path where stems are equal
    key     key in messages, such as data.train[1]
    """

    path: str
    weight: float = 1.0
    domain: str = ""
    name: str = ""
    key: str = "data.train"


def parse_sources(value: str | list) -> tuple[Source, ...]:
    """Parse a path, or a list of paths and of mappings with KEYS. Raises ConfigError naming the entry and its key."""
    if isinstance(value, str):
        return (Source(value),)
    sources = [_source(entry, f"data.train[{idx}]") for idx, entry in enumerate(value)]
    stems = Counter(_stem(source.path) for source in sources)
    named = [dataclasses.replace(source, name=source.name or _default_name(source.path, stems)) for source in sources]
    for attribute in ("path", "name"):
        first: dict[str, str] = {}
        for source in named:
            text = getattr(source, attribute)
            if text in first:
                raise ConfigError(
                    f'{source.key}.{attribute} "{text}" is that of {first[text]} too. '
                    + ("Name it once, with the sum of the weights." if attribute == "path" else "Rename one of them.")
                )
            first[text] = source.key
    return tuple(named)


def _source(entry: object, key: str) -> Source:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        raise ConfigError(f"{key} must be a path or {{path, weight, domain, name}}, got {show(entry)}.")
    for name in entry:
        if name not in KEYS:
            raise ConfigError(unknown("key", f"{key}.{name}", [f"{key}.{allowed}" for allowed in KEYS]))
    texts = {name: entry.get(name) for name in ("path", "domain", "name")}
    for name, text in texts.items():
        if not isinstance(text, str | None) or (name == "path" and not text):
            raise ConfigError(f"{key}.{name} must be text, got {show(text)}.")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ConfigError(
            f"{key}.weight must be a number above 0, got {show(weight)}. To leave a source out, remove its entry."
        )
    return Source(str(texts["path"]), float(weight), texts["domain"] or "", texts["name"] or "", key)


def _stem(path: str) -> str:
    return path if ":" in path else Path(path).stem


def _default_name(path: str, stems: Counter[str]) -> str:
    return _stem(path) if stems[_stem(path)] == 1 else path


def paths_in(value: object) -> list[str]:
    """The paths of a value of data.train, data.eval or data.probes; malformed entries are left out."""
    if isinstance(value, dict):
        return paths_in(value["path"]) if isinstance(value.get("path"), str) else paths_in(list(value.values()))
    if isinstance(value, list):
        return [path for entry in value for path in paths_in(entry)]
    return [value] if isinstance(value, str) and value else []
