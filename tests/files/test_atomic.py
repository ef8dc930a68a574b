"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from workbench.files.atomic import clear_temporaries, replacing, write_text


def test_write_text_leaves_no_temporary_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "é")
    write_text(file, "ü")
    assert (file.read_bytes(), os.listdir(tmp_path)) == ("ü".encode(), ["a.json"])


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_replacing_after_error_keeps_former_content(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a.json"
    write_text(file, "former")
    with pytest.raises(error), replacing(file) as temporary:
        temporary.write_text("hal")
        assert (temporary.parent, file.read_text()) == (tmp_path, "former")
        raise error
    assert (file.read_text(), os.listdir(tmp_path)) == ("former", ["a.json"])


def test_leftovers_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    for name in (".a.json.4711", "a.json", ".hidden", ".claim"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.12").mkdir()
    clear_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".claim", ".folder.12", ".hidden", "a.json"]
