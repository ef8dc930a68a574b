import subprocess
import sys

from failures import raises

import workbench as wb


def test_public_names_exist_with_docstrings() -> None:
    assert wb.__all__ == sorted(wb.__all__) == dir(wb)
    for name in wb.__all__:
        assert getattr(wb, name).__doc__, name


def test_public_unknown_name_raises_attribute_error() -> None:
    with raises(AttributeError, "'trian'"):
        wb.trian  # noqa: B018


def test_open_traces_does_not_load_torch() -> None:
    code = "import sys, workbench as wb; wb.open_traces; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_old_launcher_module_names_the_new_one() -> None:
    done = subprocess.run([sys.executable, "-m", "workbench.train", "demo"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "workbench.train is now called workbench.training.run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
