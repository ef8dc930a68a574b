"""`make docs`: pdoc builds a page for every module and warns of nothing."""

from pathlib import Path

from processes import Program

import workbench as wb

ROOT = Path(__file__).parent.parent


def test_api_pages_build_without_warning(tmp_path: Path) -> None:
    assert "python docs/api.py\n" in (ROOT / "Makefile").read_text()
    code = f"import runpy; runpy.run_path({str(ROOT / 'docs' / 'api.py')!r}, run_name='__main__')"
    program = Program(tmp_path / "program", code, str(tmp_path / "pages"))
    assert (program.wait(), program.err.read_text()) == (0, "")
    page = (tmp_path / "pages/workbench.html").read_text(encoding="utf-8")
    assert not [name for name in wb.__all__ if f'id="{name}"' not in page]
    assert (tmp_path / "pages/workbench/distill/step.html").is_file()
