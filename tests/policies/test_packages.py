"""An error of a missing package names the package and how to install it."""

from pathlib import Path

import pytest
from failures import raises
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import requires_backends

from workbench.errors import ConfigError
from workbench.policies.autoregressive import load_policy
from workbench.policies.packages import missing_package
from workbench.training.families.build import build_family, save_family

needs_no_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")


def test_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ImportError) as caught:
        import surely_missing.part  # noqa: F401, PLC0415
    assert "pip install surely_missing" in missing_package(caught.value)


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
