"""Every place that docs/glossary.md names is there: a term whose code was renamed is found out."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import workbench
from workbench.config.schema import describe_config
from workbench.evals.records import CONFIDENCE

ROOT = Path(__file__).parent.parent
ROWS = re.findall(
    r"^\| \*\*(.+?)\*\*.*\|(.*)\|$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
)
MODULES = {
    info.name
    for info in pkgutil.walk_packages(workbench.__path__, "workbench.")
    if ".app" not in info.name and "__main__" not in info.name
}
CLASSES = ("types", "distill.method", "distill.divergences", "evals.records", "studies.plan", "studies.measures")


def has(owner: object, names: list[str]) -> bool:
    """Whether owner.a.b is there; fields of dataclasses count."""
    for name in names:
        fields = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()
        if not hasattr(owner, name):
            return name in fields and name == names[-1]
        owner = getattr(owner, name)
    return True


def is_there(position: str) -> bool:
    if "/" in position:
        return any((ROOT / folder / position.rstrip("/")).exists() for folder in ("", "workbench"))
    if position.endswith(".py"):
        return (ROOT / "workbench" / position).is_file()
    if position in describe_config():
        return True
    first, *rest = position.split(".")
    owners = [importlib.import_module(name) for name in MODULES if name.endswith(f".{first}")]
    deeper = [importlib.import_module(name) for name in MODULES if rest and name.endswith(f".{first}.{rest[0]}")]
    if any(has(owner, rest) for owner in owners) or any(has(owner, rest[1:]) for owner in deeper):
        return True
    return any(has(importlib.import_module(f"workbench.{name}"), [first, *rest]) for name in CLASSES)


def test_glossary_has_rows() -> None:
    assert len(ROWS) > 60


def test_glossary_confidence_equals_shown_text() -> None:
    assert f"| **confidence** | {CONFIDENCE} |" in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("term", "where"), ROWS, ids=[term for term, _ in ROWS])
def test_glossary_place_exists(term: str, where: str) -> None:
    places = re.findall(r"`([\w./]+)`", where)
    for position in places:
        if re.fullmatch(r"[\w.]*[.][\w.]+|[\w/.]+/[\w/.]*|\w+\.py", position):
            assert is_there(position), f"{term}: {position}"
