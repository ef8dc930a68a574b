"""Every notebook runs from top to bottom by itself, and its stored outputs are in order, small and portable.

A failing cell fails its test with the cell's own traceback.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager

from notebooks.execute import execute, start_kernel, stop_kernel, without_paths

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES, MOST_CELLS = 300 * 1024, 26
SHORTER = {  # every cell runs, on less data; the stored outputs come from the notebook's own numbers
    r"training\.steps=(16|12|30)": "training.steps=2",
    r"probe_every=4": "probe_every=2",
    r"max_examples=\d+": "max_examples=8",
    r"count=96, families": "count=24, families",
    r"scenes:(train|eval|hard)\?count=(48|128|240|400)": r"scenes:\1?count=24",
}


def names(file: Path) -> str:
    return file.stem


def test_notebooks_are_numbered_one_to_six() -> None:
    assert [file.name[:2] for file in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[AsyncKernelManager]:
    """One for all: importing takes it longer than most notebooks do."""
    kernel = start_kernel()
    yield kernel
    stop_kernel(kernel)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=names)
def test_notebook_runs_without_names_of_another(file: Path, kernel: AsyncKernelManager, tmp_path: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        for pattern, shorter in SHORTER.items():
            cell.source = re.sub(pattern, shorter, cell.source)
    nbformat.write(notebook, tmp_path / file.name)
    # notebooks with odd numbers start in notebooks/, the others in the root, as a reader of the README does
    notebook = execute(tmp_path / file.name, FOLDER if int(file.name[:2]) % 2 else ROOT, kernel)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("data" in output for cell in code for output in cell.outputs)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=names)
def test_notebook_stored_outputs_are_in_order_and_small(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [
        output
        for cell in code
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) >= 1
    assert file.stat().st_size <= MOST_BYTES
    assert len(notebook.cells) <= MOST_CELLS


@pytest.mark.parametrize("file", NOTEBOOKS, ids=names)
def test_notebook_stored_outputs_name_no_machine_folder(file: Path) -> None:
    text = re.sub(r'"image/png": "[^"]*"', "", file.read_text(encoding="utf-8"))
    assert without_paths(text) == text
    assert not re.findall(r"(?:/tmp|/home|/root|/Users|/work|[A-Z]:\\\\Users)\b[^\"\s]*", text)


@pytest.mark.parametrize("file", [*NOTEBOOKS, FOLDER / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=names)
def test_notebook_links_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        text = "\n".join(
            "".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"
        )
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
