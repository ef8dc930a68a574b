"""Results of lmms-eval 0.7.3 and VLMEvalKit in the layouts of their sources, read into a run."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from failures import raises

from workbench.analysis.report import write_report
from workbench.analysis.summary import summarize_run
from workbench.errors import ConfigError, DataError, RunError
from workbench.evals.benchmark_command import benchmark_command
from workbench.evals.benchmark_import import import_eval
from workbench.evals.benchmarks import FILE, load_benchmarks
from workbench.runs.folder import RunFolder
from workbench.training.export import export_student

MMBENCH = '"split","Overall","AR","CP"\n"dev","0.6125","0.5","0.7"\n"test","0.5875","0.45",""\n'
MATHVISTA = '"Task&Skill","tot","prefetch","hit","prefetch_rate","acc"\n"Overall","1000","9","481","0.9","48.1"\n'
OCRBENCH = {"Text Recognition": 120, "Final Score": 512, "Final Score Norm": 51.2}


def lmms_results(model: Path | str, **changes: object) -> dict:
    """As EvaluationTracker.save_results_aggregated writes them, with a group, a submission and a failed bootstrap."""
    values = {
        "results": {
            "mmmu_val": {"alias": "mmmu_val", "mmmu_acc,none": 0.41, "mmmu_acc_stderr,none": "N/A"},
            "mme": {
                "alias": "mme",
                "mme_cognition_score,none": 310.5,
                "mme_cognition_score_stderr,none": 12.25,
                "mme_perception_score,none": 1210.25,
                "mme_perception_score_stderr,none": "N/A",
                "mme_perception_score_stderr_clt,none": 0.5,
                "submission,none": None,
            },
            "group": {"alias": "group", " ": " ", "exact_match,flexible-extract": 0.5},
        },
        "n-samples": {"mmmu_val": {"original": 900, "effective": 3}, "mme": {"original": 2374, "effective": 2374}},
        "config": {"model": "huggingface", "model_args": f"pretrained={model},device_map=auto", "limit": 3.0},
        "lmms_eval_version": "main@0123abcd",
        "model_name": str(model),
    }
    return values | changes


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose student of step 40 was exported to a folder named my-student."""
    folder = RunFolder.create(tmp_path / "run", "name: run\n", seed=0, method="opd")
    folder.update(exports=[{"to": str(tmp_path / "my-student"), "learner": "student", "step": 40}])
    return folder


def write(folder: Path, values: dict, name: str = "20250101_000000_results.json") -> Path:
    file = folder / "lmms" / "my-student" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    return file


def test_lmms_eval_results_are_kept_with_error_and_counts(run: RunFolder, tmp_path: Path) -> None:
    file = write(tmp_path, lmms_results(tmp_path / "my-student"))
    file.with_name("20250101_000000_samples_mmmu_val.jsonl").write_text('{"doc_id": 0}\n' * 3)
    results, notes = import_eval(tmp_path / "lmms", run.path)
    assert results == load_benchmarks(run.path)
    rows = {(row.benchmark, row.metric): row for row in results}
    accuracy = rows["mmmu_val", "mmmu_acc"]
    assert (accuracy.value, accuracy.stderr, accuracy.num_samples, accuracy.num_questions) == (0.41, None, 3, 900)
    assert (accuracy.learner, accuracy.step, accuracy.is_export) == ("student", 40, True)
    assert (accuracy.tool, accuracy.version) == ("lmms-eval", "main@0123abcd")
    assert accuracy.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert rows["mme", "mme_cognition_score"].stderr == 12.25
    assert rows["mme", "mme_perception_score"].stderr == 0.5  # of the mean, where the bootstrap has none
    assert "1210.25" in summarize_run(run.path)
    assert rows["group", "exact_match,flexible-extract"].num_samples is None
    assert len(rows) == 4 and len(notes) == 1 and "results.mme.submission,none" in notes[0]


def test_import_replaces_earlier_result_of_same_benchmark(run: RunFolder, tmp_path: Path) -> None:
    write(tmp_path, lmms_results("my-student"))
    import_eval(tmp_path / "lmms", run.path)
    later = lmms_results("my-student", results={"mmmu_val": {"mmmu_acc,none": 0.5, "mmmu_acc_stderr,none": 0.01}})
    write(tmp_path, later, "20250102_000000_results.json")
    import_eval(tmp_path / "lmms", run.path)
    values = {(row.benchmark, row.metric): row.value for row in load_benchmarks(run.path)}
    assert len(values) == 4 and values["mmmu_val", "mmmu_acc"] == 0.5


def test_results_of_another_model_are_refused_or_marked(run: RunFolder, tmp_path: Path) -> None:
    write(tmp_path, lmms_results("/models/other"))
    with raises(DataError, "/models/other", str(tmp_path / "my-student"), "--any-model"):
        import_eval(tmp_path / "lmms", run.path)
    assert not (run.path / FILE).exists()
    results, _ = import_eval(tmp_path / "lmms", run.path, any_model=True)
    assert {(row.is_export, row.step, row.model) for row in results} == {(False, None, "/models/other")}
    assert "another model: /models/other" in summarize_run(run.path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"results": []}, '"results"'),
        ({"results": {"mme": 3}}, "results.mme"),
        ({"results": {"mme": {"score,none": float("inf")}}}, "results.mme.score,none"),
        ({"results": {"mme": {"score,none": 1, "score_stderr,none": "much"}}}, "results.mme.score_stderr,none"),
        ({"n-samples": {"mme": {"original": 5}}}, "n-samples.mme"),
        ({"results": {"mme": {"alias": "mme"}}}, "no metric"),
    ],
)
def test_bad_lmms_eval_file_names_file_and_key(changes: dict, key: str, run: RunFolder, tmp_path: Path) -> None:
    file = write(tmp_path, lmms_results("my-student", **changes))
    with raises(DataError, str(file), key):
        import_eval(file, run.path)


def test_truncated_files_are_refused(run: RunFolder, tmp_path: Path) -> None:
    file = write(tmp_path, lmms_results("my-student"))
    samples = file.with_name("20250101_000000_samples_mmmu_val.jsonl")
    samples.write_text('{"doc_id": 0}\n')
    with raises(DataError, str(samples), "n-samples.mmmu_val.effective=3"):
        import_eval(file, run.path)
    file.write_text(file.read_text()[:100])
    with raises(DataError, str(file)):
        import_eval(file, run.path)
    with raises(DataError, "_results.json", "_acc.csv"):
        import_eval(run.path, run.path)
    with raises(DataError, str(tmp_path / "nothing")):
        import_eval(tmp_path / "nothing", run.path)
    (run.path / FILE).write_text("[{")
    with raises(RunError, FILE):
        summarize_run(run.path)


def test_vlmevalkit_tables_are_read_by_row_and_column(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "kit" / "my-student" / "T20250101_G0123abcd"
    folder.mkdir(parents=True)
    (folder / "my-student_MMBench_DEV_EN_acc.csv").write_text(MMBENCH)
    (folder / "my-student_MathVista_MINI_score.csv").write_text(MATHVISTA)
    (folder / "my-student_OCRBench_score.json").write_text(json.dumps(OCRBENCH))
    (folder.parent / "my-student_OCRBench_score.json").symlink_to(folder / "my-student_OCRBench_score.json")
    results, notes = import_eval(tmp_path / "kit", run.path)
    values = {(row.benchmark, row.metric): (row.value, row.num_samples) for row in results}
    assert values == {
        ("MMBench_DEV_EN", "dev/Overall"): (0.6125, None),
        ("MMBench_DEV_EN", "dev/AR"): (0.5, None),
        ("MMBench_DEV_EN", "dev/CP"): (0.7, None),
        ("MMBench_DEV_EN", "test/Overall"): (0.5875, None),
        ("MMBench_DEV_EN", "test/AR"): (0.45, None),
        ("MathVista_MINI", "Overall/prefetch"): (9, 1000),
        ("MathVista_MINI", "Overall/hit"): (481, 1000),
        ("MathVista_MINI", "Overall/prefetch_rate"): (0.9, 1000),
        ("MathVista_MINI", "Overall/acc"): (48.1, 1000),
        ("OCRBench", "Text Recognition"): (120, None),
        ("OCRBench", "Final Score"): (512, None),
        ("OCRBench", "Final Score Norm"): (51.2, None),
    }
    assert {(row.tool, row.version, row.is_export, row.step) for row in results} == {
        ("VLMEvalKit", "0123abcd", True, 40)
    }
    assert not notes  # a category without questions has no number, and no note


def test_bad_vlmevalkit_files_name_file_and_place(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "my-student_POPE_score.csv"
    for content, name in (('"split","Overall"\n"none"\n', "row 2"), ("", "no number"), (b"\xff\xfe", "0xff")):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with raises(DataError, str(file), name):
            import_eval(file, run.path)
    other = tmp_path / "someone_POPE_score.json"
    other.write_text('{"acc": 1}')
    with raises(DataError, other.name, "--any-model"):
        import_eval(other, run.path)


def test_workbook_is_read(run: RunFolder, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    book.active.append(["split", "Overall"])
    book.active.append(["none", 0.5])
    book.save(tmp_path / "my-student_MMVet_score.xlsx")
    ((result,), _) = import_eval(tmp_path / "my-student_MMVet_score.xlsx", run.path)
    assert (result.benchmark, result.metric, result.value) == ("MMVet", "Overall", 0.5)


def test_broken_workbook_raises(run: RunFolder, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    file = tmp_path / "my-student_MMVet_score.xlsx"
    openpyxl.Workbook().save(file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for changed in ({"[Content_Types].xml": b""}, {"xl/workbook.xml": b"<a>"}, {"xl/workbook.xml": b"<a/>"}):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (parts | changed).items():
                archive.writestr(name, content)
        with raises(DataError, str(file)):
            import_eval(file, run.path)
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with raises(DataError, str(file)):
            import_eval(file, run.path)


def test_export_is_recorded_and_results_reach_summary_report_and_card(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "dopd"
    shutil.copytree(trained / "dopd", run)
    export_student(run, tmp_path / "out" / "my-student")
    assert RunFolder.open(run).status["exports"] == [
        {"to": str(tmp_path / "out" / "my-student"), "learner": "student", "step": 4}
    ]
    assert "Benchmarks" not in (tmp_path / "out" / "my-student" / "README.md").read_text()
    write(tmp_path, lmms_results(tmp_path / "out" / "my-student"))
    import_eval(tmp_path / "lmms", run)
    summary = summarize_run(run)
    assert "mme_cognition_score" in summary and "student @4" in summary and "3 of 900" in summary
    report = Path(write_report(run, tmp_path / "report.html")).read_text()
    assert "mme mme_cognition_score 310.5 ± 12.25" in report
    export_student(run, tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "## Benchmarks" in card and "| mmmu_val | mmmu_acc | 0.41 | - | 3 of 900 | lmms-eval main@0123abcd |" in card


def test_benchmark_command_names_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-student"
    folder.mkdir()
    with raises(ConfigError, str(folder), "workbench export"):
        benchmark_command(folder, "lmms-eval", ["mme"])
    for family, model in (("qwen2_5_vl", "qwen2_5_vl"), ("idefics3", "huggingface")):
        (folder / "config.json").write_text(json.dumps({"model_type": family}))
        command = benchmark_command(folder, "lmms-eval", ["mme", "mmmu_val"])
        assert f"--model {model} --model_args pretrained={folder} --tasks mme,mmmu_val" in command
        assert "--log_samples" in command and "workbench import-eval" in command
    kit = benchmark_command(folder, "vlmevalkit", ["MMBench_DEV_EN", 'odd"name'])
    script = kit.split("<<'END'\n")[1].split("\nEND\n")[0]
    compile(script, "script", "exec")
    assert "vlmeval.vlm.IDEFICS2" in script and f'model_path="{folder}"' in script
    (folder / "config.json").write_text('{"model_type": "unheard_of"}')
    with raises(ConfigError, "unheard_of", "--tool lmms-eval"):
        benchmark_command(folder, "vlmevalkit", ["MME"])
    with raises(ConfigError, "lmms_eval", "lmms-eval"):
        benchmark_command(folder, "lmms_eval", ["mme"])
