"""Whole studies on tiny models: run, killed, gone on with, failed in part, and reported."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from failures import raises
from processes import Program
from small import run_config

from workbench.cli import main
from workbench.errors import RunError
from workbench.evals.records import load_records
from workbench.runs.folder import RunFolder
from workbench.runs.jobs import find_jobs
from workbench.studies.plan import Study, load_study
from workbench.studies.report import collect, write_report
from workbench.studies.run import run_study
from workbench.studies.status import RECORD, compared, read_study
from workbench.training.run import train

VARIANTS = {"opd": {"method.name": "opd"}, "dopd": {"note": "shown the crop"}}


def study_file(models: dict, folder: Path, **values: object) -> Path:
    """Two methods, two seeds, four steps; `values` replace keys of the study."""
    (folder / "base.yaml").write_text(
        yaml.safe_dump(run_config(models, folder / "runs", data__eval=None, training__save_every=1).to_dict())
    )
    plain = {
        "name": "small",
        "extends": str(folder / "base.yaml"),
        "seeds": [0, 1],
        "variants": VARIANTS,
        "evaluate": [{"data": "scenes:eval?count=8", "contexts": ["plain", "crop"]}, {"data": "scenes:hard?count=4"}],
        **values,
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False))
    return file


@contextlib.contextmanager
def cores(number: int) -> Iterator[None]:
    """Only so many cores are used: numbers are the same bit for bit only under the same number of threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    with cores(2):
        yield


@pytest.fixture(scope="module")
def finished(models: dict, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that ran through."""
    study = load_study(study_file(models, tmp_path_factory.mktemp("study")))
    lines: list[str] = []
    assert run_study(study, say=lines.append)
    assert len(lines) == 6 and re.fullmatch(r"\[6/6\] d?opd-s1 finished in \d+ s", lines[-1]), lines
    write_report(study)
    return study


@pytest.fixture
def study_copy(finished: Study, tmp_path: Path) -> Study:
    """A copy of it, to damage."""
    source = yaml.safe_load(finished.source.read_text())
    base = yaml.safe_load(Path(source["extends"]).read_text()) | {"output_dir": str(tmp_path / "runs")}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({**source, "extends": str(tmp_path / "base.yaml")}, sort_keys=False)
    )
    shutil.copytree(finished.folder, tmp_path / "runs" / "small")
    return load_study(tmp_path / "study.yaml")


def answers(study: Study) -> list[dict]:
    rows = pq.read_table(study.folder / "questions.parquet").to_pylist()
    return sorted(rows, key=lambda row: [str(row[key]) for key in ("variant", "seed", "data", "context", "example_id")])


def test_study_runs_are_ordinary_runs(finished: Study) -> None:
    assert {(job.name, job.status, job.step) for job in find_jobs(finished.folder)} == {
        (f"{method}-s{seed}", "finished", 4) for method in ("opd", "dopd") for seed in (0, 1)
    }
    requested = {(row.step, row.policy, row.context) for row in load_records(finished.folder / "dopd-s1")}
    assert requested == {(0, policy, context) for policy in ("student", "teacher") for context in ("plain", "crop")} | {
        (4, "student", "plain"),
        (4, "student", "crop"),
    }


def test_study_questions_without_evidence_are_counted(models: dict, tmp_path: Path) -> None:
    samples = Path("data/samples/samples.jsonl").resolve()
    rows = [json.loads(line) for line in samples.read_text().splitlines()][:4]
    for row in rows:
        row |= {"images": [str(samples.parent / name) for name in row["images"]], "crop": None}
    rows[2].pop("caption")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"data": str(data), "contexts": ["plain", "caption"]}
    scenes = {"data": "scenes:hard?count=4", "contexts": ["plain"], "reference_contexts": ["crop"]}
    study = load_study(
        study_file(models, tmp_path, seeds=[0], variants={"opd": {"method.name": "opd"}}, evaluate=[entry, scenes])
    )
    assert run_study(study, say=lambda line: None)
    text = write_report(study).read_text()
    contexts: dict[str, set[str]] = {}
    for row in answers(study):
        if row["data"] == "scenes:hard":
            contexts.setdefault(row["variant"], set()).add(row["context"])
    assert contexts == {"untrained": {"plain", "crop"}, "teacher": {"plain", "crop"}, "opd": {"plain"}}
    assert re.search("scenes:hard: privilege can(not)? pay", text)
    assert f"not evaluated: {data}, context caption is not evaluated on 1 of 4 questions (no caption: 1" in text
    assert text.count("not evaluated:") == 1


def test_study_rows_answer_the_same_questions(finished: Study) -> None:
    rows = answers(finished)
    assert len(rows) == (2 * 8 + 4) * (2 + 4)  # two models as they are, two variants of two seeds
    requested: dict[tuple, set] = {}
    for row in rows:
        requested.setdefault((row["variant"], row["seed"]), set()).add((row["data"], row["context"], row["example_id"]))
    assert set(requested) == {
        ("untrained", None),
        ("teacher", None),
        *((name, seed) for name in VARIANTS for seed in (0, 1)),
    }
    assert len({frozenset(item) for item in requested.values()}) == 1


def test_study_tables_equal_their_questions(finished: Study) -> None:
    """Every accuracy, confidence, length and truncated share of results.parquet, and the table's lines."""
    rows, result = answers(finished), pq.read_table(finished.folder / "results.parquet").to_pylist()
    checked = 0
    for value in result:
        if value["measure"] not in ("accuracy", "confidence", "overconfidence", "entropy", "length", "truncated"):
            continue
        selected = [
            row
            for row in rows
            if all(row[key] == value[key] for key in ("variant", "seed", "data", "context", "policy"))
            and value["visibility"] in ("all", row["visibility"], f"{row['domain']} questions")
        ]
        assert len(selected) == value["count"]
        means = {
            key: float(np.mean([row[key] for row in selected]))
            for key in ("accuracy", "confidence", "entropy", "length", "truncated")
        }
        means["overconfidence"] = means["confidence"] - means["accuracy"]
        assert value["value"] == pytest.approx(means[value["measure"]])
        checked += 1
    domains = [len({row["domain"] for row in rows if row["data"] == data}) for data in ("scenes:eval", "scenes:hard")]
    # measures, runs and models, visibilities, sets of questions; and accuracy by domain
    assert checked == 6 * 6 * 3 * 3 + 6 * (2 * domains[0] + domains[1])
    table = (finished.folder / "table.md").read_text()
    by_domain = table.split("### accuracy by domain (questions); against opd [95 % interval]")[1].split("###")[0]
    for name in VARIANTS:
        tags = [
            row["accuracy"]
            for row in rows
            if (row["variant"], row["data"], row["context"], row["domain"]) == (name, "scenes:eval", "plain", "tag")
        ]
        apart = r"; [+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]" if name == "dopd" else ""
        assert re.search(rf"\| {name} \| 2 \|.* {100 * np.mean(tags):.1f} %{apart} \|\n", by_domain), by_domain
        selected = [
            row["confidence"] - row["accuracy"]
            for row in rows
            if (row["variant"], row["data"], row["context"], row["visibility"])
            == (name, "scenes:eval", "plain", "privileged")
        ]
        section = table.split("### over-confidence, privileged")[1].split("###")[0]
        assert re.search(rf"\| {name} \| 2 \| {100 * np.mean(selected):.1f} % \|", section), section


def test_study_report_has_provenance(finished: Study) -> None:
    table = (finished.folder / "table.md").read_text()
    for part in (
        "seeds 0, 1; baseline: opd",
        "- command: `workbench",
        "- commit: ",
        "- wall time: ",
        "all 4 runs finished",
        "- dopd: shown the crop",
        "scenes:hard, shown plain",
        "- 2 seeds: intervals over so few",
        "LH/last third".replace("/", " "),
    ):
        assert part in table, part
    assert "plotly" in (finished.folder / "figure.html").read_text()


def test_study_against_any_row_equals_report(study_copy: Study, capsys: pytest.CaptureFixture) -> None:
    """From the answers alone, with the numbers of the report; nothing is written."""
    before = sorted((file, file.stat().st_mtime_ns) for file in study_copy.folder.rglob("*"))
    assert main(["study", str(study_copy.folder), "--against", "opd"]) == 0
    output = capsys.readouterr().out
    section = output.split("### over-confidence, privileged")[1].split("###")[0]
    table = (study_copy.folder / "table.md").read_text().split("### over-confidence, privileged")[1].split("###")[0]
    displayed = re.search(r"\| dopd \| ([^|]*) \| ([^|]*) \|", section).groups()
    assert re.search(r"\| dopd \| 2 \| ([^|]*) \| ([^|]*) \|", table).groups() == displayed
    assert main(["study", str(study_copy.source), "--against", "dopd"]) == 0
    other = capsys.readouterr().out.split("### over-confidence, privileged")[1].split("###")[0]
    there, back = (
        re.search(rf"\| {name} \| [^|]* \| ([+-][0-9.]+) \[", text)[1]
        for name, text in (("dopd", section), ("opd", other))
    )
    assert float(there) == -float(back) and "| dopd | " in other
    assert main(["study", str(study_copy.folder), "--against", "dop"]) == 2
    assert re.search('row "dop".*dopd', capsys.readouterr().err)
    assert main(["study", str(study_copy.folder.parent), "--against", "opd"]) == 2
    assert "questions.parquet cannot be read" in capsys.readouterr().err
    assert main(["study", str(study_copy.folder / "opd-s0"), "--against", "opd"]) == 2
    assert f"Give the folder of its study, {study_copy.folder}" in capsys.readouterr().err
    assert main(["study", str(study_copy.folder), "--against", "opd", "--report"]) == 2
    assert "Remove --report" in capsys.readouterr().err
    assert sorted((file, file.stat().st_mtime_ns) for file in study_copy.folder.rglob("*")) == before


def test_study_finished_tasks_are_not_repeated(study_copy: Study) -> None:
    before = {file: file.stat().st_mtime_ns for file in study_copy.folder.glob("*/questions.parquet")}
    lines: list[str] = []
    assert run_study(study_copy, say=lines.append)
    assert lines == ["6 of 6 tasks are done already"]
    assert {file: file.stat().st_mtime_ns for file in study_copy.folder.glob("*/questions.parquet")} == before


def test_study_stopped_run_and_dead_worker_resume_equal(study_copy: Study, finished: Study) -> None:
    """One run was stopped, one was never begun, one was left out; then the training process is killed from outside."""
    stopped, absent = study_copy.config(study_copy.variants[1], 0), study_copy.config(study_copy.variants[0], 1)
    shutil.rmtree(stopped.run_dir)
    shutil.rmtree(absent.run_dir)
    (study_copy.config(study_copy.variants[1], 1).run_dir / "questions.parquet").unlink()

    def stop(step: int, metrics: dict) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    unborn = study_copy.config(study_copy.variants[0], 0).run_dir
    shutil.rmtree(unborn)
    unborn.mkdir()
    (unborn / "config.yaml").write_text("half a configuration, of a kill in the making")
    assert train(stopped, on_step=stop).steps == 3
    assert RunFolder.open(stopped.run_dir).status["status"] == "stopped"

    def kill_the_worker() -> None:
        while not (absent.run_dir / "run.json").is_file():  # the only worker begins with what was never begun
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            worker.kill()

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    lines: list[str] = []
    with cores(1):
        assert run_study(replace(study_copy, parallel=1), say=lines.append)
    killer.join()
    assert lines[0] == "2 of 6 tasks are done already"
    assert re.match(r"\[2/4\] dopd-s0 finished in", lines[2])
    assert re.match(r"\[3/4\] opd-s1 failed in .* \(signal 9\).*opd-s1.log", lines[3])
    assert json.loads((study_copy.folder / RECORD).read_text())["runs"]["opd-s1"]["seconds"] > 0, "it had worked"
    assert "dopd-s1 finished" in lines[4]
    assert list(collect(study_copy).unfinished) == ["opd-s1"]
    assert run_study(study_copy, say=lines.append)
    write_report(study_copy)
    assert "2 and 1 process(es) of" in (study_copy.folder / "table.md").read_text(), (
        "as it was run, whatever the file says"
    )
    assert answers(study_copy) == answers(finished)


@pytest.mark.flaky(reruns=1)  # a killed study's process may create its run's folder while the next study loads models
def test_study_stopped_then_killed_resumes_equal(
    models: dict, tmp_path: Path, finished: Study, capsys: pytest.CaptureFixture
) -> None:
    """Asked to stop, every run saves; killed outright, its worker notices. The same command does the rest."""
    file = study_file(models, tmp_path)
    code, command = "import sys; from workbench.cli import main; sys.exit(main(sys.argv[1:]))", ["study", str(file)]
    program = Program(tmp_path / "stopped", code, *command)
    while not list(tmp_path.glob("runs/small/*/metrics.jsonl")) and program.process.is_alive():
        time.sleep(0.05)
    os.kill(program.process.pid, signal.SIGTERM)
    assert program.wait() == 130, program.err.read_text()
    assert "stopping" in program.err.read_text() and "To resume: workbench study " in program.out.read_text()
    program = Program(tmp_path / "killed", code, *command)
    while "opd-s0 finished" not in program.out.read_text() and program.process.is_alive():
        time.sleep(0.05)
    program.process.kill()
    program.wait()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"[345] of 6 tasks are done already", printed), printed
    assert answers(load_study(file)) == answers(finished)


def test_study_other_overrides_start_nothing(study_copy: Study, capsys: pytest.CaptureFixture) -> None:
    before = {file: file.read_bytes() for file in study_copy.folder.rglob("*.json")}
    assert main(["study", str(study_copy.source), "overrides.training.steps=7"]) == 2
    output = capsys.readouterr().err
    assert "have other settings than this study; nothing was started" in output and "training.steps=" in output
    assert {file: file.read_bytes() for file in study_copy.folder.rglob("*.json")} == before


def test_study_of_same_name_does_not_share_folder(study_copy: Study) -> None:
    values = yaml.safe_load(study_copy.source.read_text()) | {"variants": {"other": {"method.name": "opd"}}}
    other = study_copy.source.with_name("other.yaml")
    other.write_text(yaml.safe_dump(values, sort_keys=False))
    with raises(RunError, "study.yaml", "other.yaml"):
        run_study(load_study(other))
    assert not (study_copy.folder / "other-s0").exists()


def test_study_failed_seed_is_named_and_rest_reported(study_copy: Study, capsys: pytest.CaptureFixture) -> None:
    """A folder of other settings is in the way of one seed; the loss of one variant is NaN."""
    clash = study_copy.config(study_copy.variants[1], 1).run_dir
    text = (clash / "config.yaml").read_text()
    (clash / "config.yaml").write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.25"))
    (clash / "questions.parquet").unlink()
    values = yaml.safe_load(study_copy.source.read_text())
    values["variants"]["wild"] = {"method.name": "opd", "training.learning_rate": 1e30}
    values["variants"]["typo"] = {"method.name": "opdd"}
    study_copy.source.write_text(yaml.safe_dump(values, sort_keys=False))
    assert main(["study", str(study_copy.source)]) == 1
    out, err = capsys.readouterr()
    assert 'variant typo cannot be run: method "opdd" is unknown' in err
    table = (study_copy.folder / "table.md").read_text()
    assert "- finished: 3 runs; not: 3" in table
    assert "- run dopd-s1: " in table and "was made with other settings (training.learning_rate=0.25 there" in table
    assert re.search(r"- runs? wild-s0[^:]*: step \d: .*lower training.learning_rate", table), table
    assert '- variant typo was not run: method "opdd" is unknown' in table
    assert re.search(r"\| dopd \| 1 \|", table) and re.search(r"\| \*\*opd\*\* \| 2 \|", table)
    assert "wild" not in table.split("## scenes:eval")[1]
    assert re.search(r"wild-s1 failed in \d+ s", out)
    (result,) = [
        comparison
        for comparison in collect(load_study(study_copy.source)).comparisons
        if (
            comparison.variant,
            comparison.against,
            comparison.measure,
            comparison.visibility,
            comparison.data,
            comparison.context,
        )
        == ("dopd", "opd", "accuracy", "all", "scenes:eval", "plain")
    ]
    assert result.num_seeds == 1


def test_study_difference_names_number_of_paired_seeds(study_copy: Study) -> None:
    """dopd has two seeds and opd one: what is paired are those that both have, in the report and in the app."""
    (study_copy.config(study_copy.variants[0], 1).run_dir / "questions.parquet").unlink()
    table = write_report(study_copy).read_text()
    for heading in ("### accuracy, visible", "### accuracy by domain"):
        line = next(line for line in table.split(heading)[1].splitlines() if line.startswith("| dopd |"))
        assert line.startswith("| dopd | 2 |") and "] (1 seed)" in line, line
    section = table.split("### accuracy, visible")[1].split("###")[0]
    assert section.count("(1 seed)") == 1, "against untrained it is over both seeds, and opd's own row says 1"
    result = compared(
        read_study(study_copy.folder.parent, study_copy.name), "scenes:eval", "plain", "accuracy", "visible"
    )
    row = result.frame.set_index("variant").loc["dopd"]
    assert row["seeds"] == 2 and row["difference_interval"].endswith("(1 seed)")
    assert row["gain_interval"].endswith("]")


def test_study_report_without_finished_run_raises(models: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = study_file(models, tmp_path)
    assert main(["study", str(file), "--report"]) == 2
    assert "has no finished run" in capsys.readouterr().err
    with raises(RunError, "opd-s0"):
        collect(load_study(file))


def test_study_is_run_by_one_process(study_copy: Study) -> None:
    import fcntl  # noqa: PLC0415

    with (study_copy.folder / ".claim").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with raises(RunError, "another process"):
            run_study(study_copy)


def test_study_added_questions_are_evaluated_later(study_copy: Study) -> None:
    values = yaml.safe_load(study_copy.source.read_text())
    values["evaluate"].append({"data": "scenes:combos?count=2"})
    study_copy.source.write_text(yaml.safe_dump(values, sort_keys=False))
    study = load_study(study_copy.source)
    assert len(collect_fails(study)) == 4
    trained = {file: file.stat().st_mtime_ns for file in study_copy.folder.glob("*/metrics.jsonl")}
    assert run_study(study, say=lambda line: None)
    assert {file: file.stat().st_mtime_ns for file in study_copy.folder.glob("*/metrics.jsonl")} == trained
    assert {row["data"] for row in pq.read_table(write_report(study).with_name("results.parquet")).to_pylist()} == {
        "scenes:eval",
        "scenes:hard",
        "scenes:combos",
        "training",
    }


def collect_fails(study: Study) -> list[str]:
    with pytest.raises(RunError, match="evaluated on other questions") as caught:
        collect(study)
    return re.findall("evaluated on other questions", str(caught.value))


def test_study_run_starts_from_student_of_former(models: dict, tmp_path: Path) -> None:
    """Both at once if it could; what follows a run that fails is named and fails, too."""
    variants = {
        "first": {},
        "second": {"starts_from": "first"},
        "lost": {"training.learning_rate": 1e30},
        "after lost": {"starts_from": "lost"},
    }
    file = study_file(models, tmp_path, seeds=[0], variants=variants, evaluate=[{"data": "scenes:hard?count=2"}])
    study, output = load_study(file), []
    assert run_study(study, say=output.append)
    begun = yaml.safe_load((study.folder / "second-s0" / "config.yaml").read_text())["models"]["student"]
    assert begun == str(study.folder / "first-s0" / "checkpoint-000004" / "student")
    assert any("after-lost-s0 failed" in line and "final student of lost-s0" in line for line in output), output
