"""`make docs`: pdoc builds a page for every module and warns of nothing."""

import subprocess
import sys
from pathlib import Path

import workbench as wb

ROOT = Path(__file__).parent.parent


def test_api_pages_build_without_warning(tmp_path: Path) -> None:
    assert "python docs/api.py\n" in (ROOT / "Makefile").read_text()
    command = [sys.executable, "docs/api.py", tmp_path]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "workbench.html").read_text(encoding="utf-8")
    assert not [name for name in wb.__all__ if f'id="{name}"' not in page]
    assert (tmp_path / "workbench/distill/step.html").is_file()
