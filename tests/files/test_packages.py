"""An error of a missing or broken package names the package and how to install it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from failures import raises
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import requires_backends

from workbench.errors import ConfigError
from workbench.files.packages import importing, missing_package
from workbench.policies.autoregressive import load_policy
from workbench.training.families.build import build_family, save_family

needs_no_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")


def broken(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Importable packages, by name and text of their __init__.py."""
    for name, text in files.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_module_that_is_not_there_is_named() -> None:
    names = ("this needs the package surely_missing", "not installed", "[lora]", ", or wait.")
    with raises(ConfigError, *names), importing("this needs", "lora", ", or wait"):
        import surely_missing.part  # noqa: F401, PLC0415


def test_package_with_a_missing_dependency_names_the_dependency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path, monkeypatch, half_installed="import surely_missing")
    sentence = "the package surely_missing, which is not installed. Run pip install surely_missing."
    with raises(ConfigError, sentence), importing("this needs"):
        importlib.import_module("half_installed")


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("raise ImportError('built for another numpy')", "broken_one"),
        ("raise RuntimeError('built for another numpy')", "broken_one"),
        ("from other_one import surely_missing", "broken_one other_one"),
        ("import other_one.surely_missing", "broken_one other_one"),
    ],
)
def test_package_that_is_installed_and_broken_is_named_with_its_error(
    fault: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path, monkeypatch, broken_one=fault, other_one="")
    reason = "another numpy" if "raise" in fault else "surely_missing"
    command = f"--force-reinstall {names}."
    with raises(ConfigError, "package broken_one, which is installed", reason, command), importing("this needs"):
        importlib.import_module("broken_one")


def test_error_without_a_name_is_that_of_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers raises it."""
    broken(tmp_path, monkeypatch, broken_one="raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(ModuleNotFoundError) as caught:
        try:
            importlib.import_module("broken_one")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'LlavaProcessor'.") from error
    assert "package broken_one" in missing_package(caught.value)
    assert "torchvision::nms" in missing_package(caught.value)


def test_errors_of_our_own_pass() -> None:
    with pytest.raises(ZeroDivisionError), importing("this needs"):
        1 / 0  # noqa: B018
    with raises(ConfigError, "as it was"), importing("this needs"):
        raise ConfigError("as it was")


@pytest.mark.parametrize(("command", "package"), [(["report", "run"], "pandas"), (["answers", "run"], "duckdb")])
def test_command_names_a_broken_package(command: list[str], package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("raise RuntimeError('built for another numpy')")
    command = [sys.executable, "-m", "workbench", *command]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"ConfigError: this command needs the package {package}, which is installed but")
    assert "built for another numpy" in result.stderr


def test_backend_of_transformers_is_named() -> None:
    with pytest.raises(ImportError) as caught:
        requires_backends(object(), ["pytesseract"])
    assert "pip install pytesseract" in missing_package(caught.value)


def test_other_error_names_no_package() -> None:
    assert missing_package(ValueError("requires the Timm library")) is None


@needs_no_torchvision
def test_family_that_needs_torchvision_names_it(tmp_path: Path) -> None:
    with raises(ImportError, "orchvision"):
        build_family("llama4")
    save_family(tmp_path, "llava")
    config = (tmp_path / "processor_config.json").read_text()
    (tmp_path / "processor_config.json").write_text(config.replace("LlavaImageProcessor", "Llama4ImageProcessor"))
    with raises(ConfigError, "torchvision"):
        load_policy(tmp_path, "student")
