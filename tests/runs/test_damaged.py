"""Damaged, truncated or missing files of a run: one sentence each, on the command line too, and in resume."""

import html
import json
import re
import resource
import shutil
from pathlib import Path

import pytest
from failures import raises

from workbench.analysis.summary import summarize_run
from workbench.app.context import AppContext
from workbench.app.tabs import answers, training
from workbench.cli import main
from workbench.errors import TraceError, WorkbenchError
from workbench.evals.records import load_records
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.runs.jobs import read_job
from workbench.traces.parts import recorded_steps
from workbench.training.export import export_student
from workbench.training.run import resume

TOKENS = "traces/tokens"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of three steps."""
    return Path(shutil.copytree(trained / "opd", tmp_path / "runs" / "opd"))


def damage(run: Path, name: str, raw: bytes) -> None:
    file = run / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(raw)


DAMAGED = {
    "metrics in another encoding": ("metrics.jsonl", b'{"kind": "train", "step": 1, "x": "\xff"}\n'),
    "metrics without a step": ("metrics.jsonl", b'{"kind": "train"}\n'),
    "metrics that are a list": ("metrics.jsonl", b"[1]\n"),
    "metrics nested deep": ("metrics.jsonl", b"[" * 5000 + b"\n"),
    "run.json a list": ("run.json", b"[1, 2]"),
    "run.json a number": ("run.json", b"1" * 5000),
    "run.json of other kinds": ("run.json", b'{"status": 3}'),
    "run.json empty": ("run.json", b""),
    "run.json nested deep": ("run.json", b'{"a":' * 5000),
    "a stray evaluation": ("evals/step-x.jsonl", b"{}\n"),
    "an evaluation in another encoding": ("evals/step-000000.jsonl", b"\xff\n"),
    "an evaluation that is a list": ("evals/step-000000.jsonl", b"[1]\n"),
    "a garbage line in the skip list": ("skipped.jsonl", b"garbage\n"),
    "a list in the skip list": ("skipped.jsonl", b"[]\n"),
    "bytes in the skip list": ("skipped.jsonl", b"\xff\xfe\n"),
    "probes that are none": ("probes.json", b"{}"),
    "config.yaml with a list": ("config.yaml", b"[1]"),
}


@pytest.mark.parametrize(("name", "raw"), DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_file_is_named_in_one_sentence(run: Path, name: str, raw: bytes, capsys: pytest.CaptureFixture) -> None:
    damage(run, name, raw)
    assert main(["resume", str(run)]) == 2
    printed = capsys.readouterr().err
    assert name in printed and "Traceback" not in printed
    main(["summary", str(run)])
    assert "Traceback" not in capsys.readouterr().err


def test_folder_among_traces_is_named(run: Path) -> None:
    (run / TOKENS / ".hidden").mkdir()
    with raises(WorkbenchError, "tokens/.hidden"):
        resume(run)


def test_evaluation_that_is_a_folder_is_named(run: Path) -> None:
    (run / "evals" / "step-000099.jsonl").mkdir()
    with raises(WorkbenchError, "step-000099.jsonl"):
        load_records(run)


def test_resume_names_missing_files_of_earlier_steps(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    resume(run)
    assert RunFolder(run).status["missing"] == [] and "lacks" not in caplog.text
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = sorted({json.loads(line)["step"] for line in lines if '"train"' in line})
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] not in (1, 2)))
    for table in ("tokens", "rollouts"):
        shutil.rmtree(run / "traces" / table)
    (run / "evals" / "step-000000.jsonl").unlink()
    resume(run)
    missing = RunFolder(run).status["missing"]
    every = f"1-{steps[-1]}"
    assert [item.removeprefix(f"{run}/").partition(". ")[0] for item in missing] == [
        "metrics.jsonl lacks training steps 1-2",
        f"traces/tokens lacks steps {every}",
        f"traces/rollouts lacks steps {every}",
        "metrics.jsonl lacks evaluations of steps 2",
        "evals/ lacks answers of steps 0",
    ]
    assert missing[0] in caplog.text and f"missing: {missing[0]}" in summarize_run(run)


def test_flipped_byte_in_trace_raises(run: Path) -> None:
    file = next((run / TOKENS).glob("*.parquet"))
    raw = file.read_bytes()
    result = 0
    for index in range(8, len(raw) // 2, max(1, len(raw) // 60)):
        file.write_bytes(raw[:index] + bytes([raw[index] ^ 0x10]) + raw[index + 1 :])
        try:
            recorded_steps(run)
        except WorkbenchError as error:
            assert str(file) in str(error)
            result += 1
        else:
            break
    assert result >= 20
    file.write_bytes(raw[:40] + bytes([raw[40] ^ 0x10]) + raw[41:])
    with raises(WorkbenchError, file.name, "truncated"):
        resume(run)


@pytest.mark.parametrize("table", ["tokens", "rollouts"])
def test_summary_report_and_page_name_damaged_trace(run: Path, table: str, capsys: pytest.CaptureFixture) -> None:
    for file in (run / "traces" / table).glob("*.parquet"):
        raw = file.read_bytes()
        file.write_bytes(raw[:200] + bytes([raw[200] ^ 0x10]) + raw[201:])
    fault = re.compile(rf"{run}/traces/{table}/\S+ cannot be read: it is truncated or damaged")
    summary = summarize_run(run)
    assert len(fault.findall(summary)) == 1 and "accuracy" in summary
    assert main(["summary", str(run)]) == 0 and "Traceback" not in capsys.readouterr().err
    assert main(["report", str(run)]) == 2
    assert fault.search(capsys.readouterr().err) and not (run / "report.html").exists()
    try:
        page = html.unescape("".join(map(str, answers.draw(AppContext(run.parent, run.parent), run.name, {}))))
    except TraceError as error:  # which the page shows in the tab's place
        page = str(error)
    assert fault.search(page)


def test_figures_of_damaged_traces_say_so_and_others_draw(run: Path) -> None:
    file = min((run / "traces" / "aggregates").glob("*.parquet"))
    raw = file.read_bytes()
    file.write_bytes(raw[:-60] + bytes([raw[-60] ^ 0x10]) + raw[-59:])  # in its footer
    groups = json.loads(training.draw([read_job(run)], "light", {}, None)[4])["groups"]
    drawn = {chart["name"]: chart["figure"] for group in groups for chart in group["figures"]}
    damaged = {name for name, figure in drawn.items() if "truncated or damaged" in json.dumps(figure["layout"])}
    assert damaged == {"token-share", "loss-share", "gaps-by-visibility"} and drawn["loss"]["data"]


def test_checkpoint_without_listed_files_is_skipped(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = list_checkpoints(run)[-1]
    for text in (f'{{"step": {newest.step}, "files": {{}}}}', "[]", '{"step": 1, "files": {"student/x": 1}}'):
        (newest.path / "state.json").write_text(text)
        result = resume(run)
        assert result.steps == newest.step and f"{newest.path} is not a complete checkpoint" in caplog.text
        caplog.clear()


def test_truncated_config_is_called_truncated(run: Path) -> None:
    raw = (run / "config.yaml").read_bytes()
    for length in (0, 30, len(raw) // 2, len(raw) - 2):
        (run / "config.yaml").write_bytes(raw[:length])
        with raises(WorkbenchError, f"config.yaml is truncated after {length} of {len(raw)} bytes"):
            resume(run)
    (run / "config.yaml").write_bytes(raw.replace(b"seed: ", b"seed: 1"))
    with raises(WorkbenchError, "edited: seed"):
        resume(run)


@pytest.mark.parametrize("what", ["checkpoint", "export", "geometry", "mask"])
def test_run_folder_full_disk_is_one_sentence(run: Path, what: str, capfd: pytest.CaptureFixture) -> None:
    begun = list_checkpoints(run)
    if what == "checkpoint":  # the last one is done again
        shutil.rmtree(begun[-1].path)
    commands = {
        "checkpoint": ["resume", str(run)],
        "export": ["export", str(run), "--to", str(run.parent / "out")],
        "geometry": ["geometry", str(run)],
        "mask": ["geometry", str(run), "--save-mask", str(run.parent / "mask"), "--precision", "float32"],
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        status = main(commands[what])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed = capfd.readouterr().err
    assert status == 2 and "cannot be written (" in printed and "Traceback" not in printed
    assert not list(run.glob(".checkpoint-*")) and not list(run.parent.glob(".*"))
    assert main(commands[what]) == 0
    if what == "checkpoint":
        assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [item.step for item in begun]
        assert RunFolder(run).status["missing"] == []


def test_export_to_name_taken_meanwhile_deletes_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with raises(WorkbenchError, "exists"):
        export_student(run, tmp_path / "out")


def test_resume_of_run_without_a_key_uses_default(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    del facts["config"]["training"]["dropout"]
    (run / "run.json").write_text(json.dumps(facts))
    assert resume(run).steps == facts["steps_done"]
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("  dropout: false", "  dropout: true", 1))
    with raises(WorkbenchError, "training.dropout"):
        resume(run)
