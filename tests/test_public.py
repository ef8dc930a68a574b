import subprocess
import sys

import pytest

import workbench as wb


def test_every_public_name_is_there() -> None:
    assert wb.__all__ == sorted(wb.__all__) == dir(wb)
    for name in wb.__all__:
        assert getattr(wb, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no public name 'trian'"):
        wb.trian  # noqa: B018


def test_reading_traces_does_not_load_torch() -> None:
    code = "import sys, workbench as wb; wb.open_traces; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
