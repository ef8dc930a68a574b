"""docs/your-models-your-data.md is followed to the letter, from an empty folder with two models and some pictures."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from video_families import save_qwen3_vl

from workbench.cli import main

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "your-models-your-data.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page begins with."""
    save_qwen3_vl(tmp_path / "models/student", 0)
    save_qwen3_vl(tmp_path / "models/teacher", 1)
    (tmp_path / "photos").mkdir()
    for name in ("street", "receipt", "chart"):
        shutil.copy(ROOT / "data/samples" / f"{name}.png", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_page_commands_run_from_empty_folder(folder: Path, capsys: pytest.CaptureFixture) -> None:
    names, output = {}, {}
    for language, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if language == "yaml":
            Path(re.match(r"# (\S+)", text).group(1)).write_text(text)
        elif language == "python":
            exec(text, names)
        else:
            assert language == "sh"
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "workbench" and main(arguments) == 0, capsys.readouterr().err
                output[" ".join(arguments[:2])] = capsys.readouterr().out
    assert "mine.parquet.preview.html" in output["import mine.parquet"]
    assert "green door" in Path("mine.parquet.preview.html").read_text()
    assert "WRONG" not in output["check my-run.yaml"] and "the sampled ids" in output["check my-run.yaml"]
    assert "dopd · 2 steps · finished" in output["summary runs/my-run"]
    assert sum(row["tokens"] for row in names["by_regime"].to_pylist()) > 0
    assert type(names["student"]).__name__ == "Qwen3VLForConditionalGeneration"
    assert "AutoProcessor` needs the package torchvision" in (folder / "my-student/README.md").read_text()
    assert {path.name for path in folder.iterdir()} == {
        "models",
        "photos",
        "mine.parquet",
        "mine.parquet.preview.html",
        "my-run.yaml",
        "runs",
        "my-student",
        "my-traces",
    }
