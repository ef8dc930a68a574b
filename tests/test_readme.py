"""README.md and CONTRIBUTING.md: short, and whatever they name exists."""

import re
from pathlib import Path

import pytest
from test_layers import PACKAGE, ROOMS

from workbench.cli import main
from workbench.config.schema import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
MAX_LINES, MAX_PICTURE_BYTES = 120, 300_000
SHORTER = '"training.steps=1", "data.train=scenes:hard?count=8", "evaluation.max_examples=2", "trace.probes=0"'


def test_readme_fits_its_budget() -> None:
    assert len(README.splitlines()) <= MAX_LINES
    assert (ROOT / "docs/tokens.png").stat().st_size <= MAX_PICTURE_BYTES


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", README + GUIDE)
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]


def test_guide_names_every_subpackage_and_existing_files() -> None:
    rooms = [room for room in ROOMS if (PACKAGE / room).is_dir()]
    assert re.findall(r"^\| `(\w+)/` \|", GUIDE, re.MULTILINE) == rooms
    starts = re.findall(r"^\| `(\w+)/` \|.*\| (.*) \|$", GUIDE, re.MULTILINE)
    files = [PACKAGE / room / name for room, names in starts for name in re.findall(r"`(\w+\.py)`", names)]
    files += [ROOT / name for name in re.findall(r"`((?:workbench|tests)/[\w./]+)`", GUIDE)]
    assert len(files) > 20 and not [file for file in files if not file.exists()]


def test_methods_table_has_no_results() -> None:
    assert not re.findall(r"^\| `.*(?:\[[+-]|points|%)", README, re.MULTILINE)


def test_recipes_of_commands_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    paths = re.findall(r"\b(configs/\S+\.yaml)", README)
    recipes = {path for path in paths if "/accelerate/" not in path}
    assert recipes >= {"configs/vlm-lora.yaml", "configs/vlm-8gpus.yaml"}
    assert all(Path(path).is_file() for path in paths)
    item, eight = (load_config(f"configs/vlm-{name}.yaml") for name in ("lora", "8gpus"))
    assert (item.models.lora.rank, eight.models.lora.rank) == (16, 0)
    assert item.models.student == eight.models.student and "2B" in item.models.student
    assert item.models.teacher == eight.models.teacher and "8B" in item.models.teacher
    assert all(load_config(recipe) for recipe in recipes)


def test_commands_exist(capsys: pytest.CaptureFixture) -> None:
    shell = "\n".join(text for language, text in BLOCKS if not language)
    commands = set(re.findall(r"^workbench ([a-z]+)", shell, re.MULTILINE))
    assert commands >= {"train", "check", "resume", "export"}
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])


@pytest.mark.slow
def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (code,) = (text for language, text in BLOCKS if language == "python")
    monkeypatch.chdir(tmp_path)  # recipes and models are those of the package there
    short = code.replace('"training.steps=5"', SHORTER)
    assert short != code
    exec(short, {})
    printed = capsys.readouterr().out
    assert "'regime': 'LH'" in printed and "tag" in printed
