"""examples/opd_loop.py: the smallest loop that does what method.name=opd does."""

import ast
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import families
import pytest

from workbench.config.schema import load_config
from workbench.traces.reader import open_traces
from workbench.training.run import train

ROOT = Path(__file__).parent.parent
EXAMPLE, SAMPLES = ROOT / "examples" / "opd_loop.py", ROOT / "data" / "samples" / "samples.jsonl"
LINE = re.compile(r"step (\d+)  loss (\S+)  grad_norm (\S+)  answer: (.*)")


def printed_by_example(capsys: pytest.CaptureFixture, student: Path, teacher: Path, steps: int) -> list[tuple]:
    main = runpy.run_path(str(EXAMPLE))["main"]
    capsys.readouterr()
    main([f"--student={student}", f"--teacher={teacher}", f"--data={SAMPLES}", f"--steps={steps}"])
    return LINE.findall(capsys.readouterr().out)


def trained(folder: Path, student: Path, teacher: Path, steps: int) -> tuple[list[dict], list[str]]:
    """Metrics of every step, and the first answer of each, of a run by the workbench."""
    changes = [
        f"models.student={student}",
        f"models.teacher={teacher}",
        f"data.train={SAMPLES}",
        "data.eval=null",
        "training.schedule=constant",
        f"training.steps={steps}",
        "trace.probes=0",
        f"output_dir={folder}",
    ]
    metrics: list[dict] = []
    result = train(
        load_config(ROOT / "configs" / "opd.yaml", changes), on_step=lambda _, values: metrics.append(values)
    )
    traces = open_traces(result.run_dir)
    return metrics, [traces.rollout(step, 0).row["completion"] for step in range(1, steps + 1)]


def assert_the_same(capsys: pytest.CaptureFixture, folder: Path, student: Path, teacher: Path, steps: int) -> None:
    printed = printed_by_example(capsys, student, teacher, steps)
    metrics, answers = trained(folder, student, teacher, steps)
    assert [int(step) for step, *_ in printed] == list(range(1, steps + 1))
    assert [answer for *_, answer in printed] == answers
    assert [float(loss) for _, loss, *_ in printed] == pytest.approx([item["loss"] for item in metrics], abs=1e-5)
    assert [float(norm) for _, _, norm, _ in printed] == pytest.approx(
        [metric["grad_norm"] for metric in metrics], abs=1e-3
    )


def test_opd_loop_on_built_in_pair_prints_losses_of_opd(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    models = ROOT / "data" / "models"
    assert_the_same(capsys, tmp_path, models / "student", models / "teacher", steps=2)


@pytest.mark.parametrize("save", [families.save_llava, families.save_gemma3], ids=lambda save: save.__name__)
def test_opd_loop_on_other_family_prints_loss_of_opd(
    save: Callable[..., Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Of which Gemma 3 marks, beside the ids, what is an image."""
    assert_the_same(capsys, tmp_path / "runs", save(tmp_path / "student", 0), save(tmp_path / "teacher", 1), steps=1)


def test_opd_loop_is_short_and_imports_no_workbench() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 150
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {"argparse", "hashlib", "json", "pathlib", "torch", "PIL", "transformers"}
