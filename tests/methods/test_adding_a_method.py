"""docs/adding-a-method.md works as it stands: its file is added, meets the contract of every method, and trains."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from small import run_config

import workbench as wb
import workbench.methods
from workbench.studies.plan import load_study

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
NAME = "grounded_opd"
FILE, OWN_TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MOST_LINES = 120  # docs/design.md, budgets


@pytest.fixture
def dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's file as one more of workbench/methods/."""
    (tmp_path / f"{NAME}.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(workbench.methods, "__path__", [*workbench.methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop(f"workbench.methods.{NAME}", None)


def contract() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract", ROOT / "tests" / "methods" / "test_every_method.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("dropped_in")
def test_worked_example_is_found_and_within_budget() -> None:
    assert NAME in wb.list_methods()
    assert FILE.count("\n") <= MOST_LINES


@pytest.mark.usefixtures("dropped_in")
def test_worked_example_meets_method_contract() -> None:
    checks = [check for name, check in vars(contract()).items() if name.startswith("test_")]
    assert len(checks) >= 7  # as many as there were when the page was written
    for check in checks:
        check(NAME)


@pytest.mark.usefixtures("dropped_in")
def test_worked_example_own_test_passes() -> None:
    exec(compile(OWN_TEST, "docs/adding-a-method.md", "exec"), {})


@pytest.mark.usefixtures("dropped_in")
def test_worked_example_trains_and_traces_leaked_tokens(models: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(models, tmp_path, method={"name": NAME, "halving": 0.5}, training__steps=2)
    traces = wb.open_traces(wb.train(config).run_dir)
    assert list(traces.regimes) == ["GROUNDED", "LEAKED"]
    rows = traces.sql("SELECT regime, weight, information_gap FROM tokens").to_pylist()
    for row in rows:
        leaked = abs(row["information_gap"]) > 0.5
        assert row["regime"] == ("LEAKED" if leaked else "GROUNDED")
        expected = 0.5 ** ((abs(row["information_gap"]) - 0.5) / 0.5) if leaked else 1.0
        assert row["weight"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("dropped_in")
def test_worked_example_recipe_and_study_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe, text = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "demo.yaml").write_bytes((ROOT / "configs" / "demo.yaml").read_bytes())
    (tmp_path / f"{NAME}.yaml").write_text(recipe)
    assert wb.load_config(tmp_path / f"{NAME}.yaml").method == {"name": NAME}
    file = tmp_path / "grounded.yaml"
    file.write_text(text)
    study = load_study(file)
    assert not study.faults
    assert [variant.name for variant in study.usable] == list(yaml.safe_load(text)["variants"])
