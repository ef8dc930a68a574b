"""A run of the former version, kept in tests/former_run, raises an error until it is upgraded; values stay."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from failures import raises

from workbench.cli import main
from workbench.config.schema import build_config, load_config
from workbench.errors import ConfigError, RunError, TraceError
from workbench.evals.records import load_records
from workbench.files.parsing import read_yaml
from workbench.runs.upgrade import TABLES, Upgrade, upgrade_run
from workbench.traces.reader import open_traces
from workbench.traces.schema import HEADER_KEY

FORMER_RUN = Path(__file__).parent / "former_run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMER_RUN, tmp_path / "tiny"))


def test_former_traces_raise_with_upgrade_command(run: Path) -> None:
    with raises(TraceError, f"workbench upgrade {run}"):
        open_traces(run).steps()


def test_former_config_raises_with_upgrade_command(run: Path) -> None:
    with raises(ConfigError, f"workbench upgrade {run}"):
        load_config(run / "config.yaml")


def test_upgraded_config_has_present_keys_in_both_copies(run: Path) -> None:
    assert upgrade_run(run) == Upgrade(
        3,
        (
            "step-000000.jsonl",
            "step-000002.jsonl",
            "metrics.jsonl",
            "run.json",
            "config.yaml",
        ),
    )
    config = load_config(run / "config.yaml")
    assert (config.method["loss_aggregation"], config.trace.top_k, config.evaluation.max_examples) == (
        "token_mean",
        2,
        4,
    )
    in_json = json.loads((run / "run.json").read_text())["config"]
    assert in_json == read_yaml(run / "config.yaml")
    assert build_config(in_json).to_dict() == config.to_dict()


def test_upgraded_traces_have_former_values(run: Path) -> None:
    upgrade_run(run)
    traces = open_traces(run)
    assert traces.steps() == [1, 2]
    for former, present in list(TABLES.items())[:3]:
        (file,) = (FORMER_RUN / "traces" / former).glob("*.parquet")
        (upgraded,) = (run / "traces" / present).glob("*.parquet")
        before, after = pq.read_table(file), pq.read_table(upgraded)
        assert [column.to_pylist() for column in before.columns] == [column.to_pylist() for column in after.columns]
    sums = "SELECT sum(contribution) AS loss, count(*) AS n FROM {} GROUP BY step ORDER BY step"
    tokens = traces.sql(sums.format("tokens")).to_pylist()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if line["kind"] == "train"]
    assert [row["loss"] for row in tokens] == pytest.approx(losses, rel=1e-5)
    row = traces.rollout(1, 0).row
    assert row["completion_preview"] == row["completion"] and row["sampled_by"] == "student"
    assert not list((run / "traces").glob("positions*")) and not (run / "traces" / "cells").exists()


def test_interrupted_upgrade_is_completed_by_same_command(run: Path) -> None:
    whole = run.with_name("whole")
    shutil.copytree(run, whole)
    upgrade_run(whole)
    shutil.copytree(whole / "traces" / "tokens", run / "traces" / "tokens")  # written, the former file not yet deleted
    upgrade_run(run)
    assert (run / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    rows = [open_traces(folder).sql("SELECT * FROM tokens ORDER BY ALL").to_pylist() for folder in (run, whole)]
    assert len(rows[0]) > 0 and str(rows[0]) == str(rows[1])


def test_second_upgrade_changes_nothing(run: Path, capsys: pytest.CaptureFixture) -> None:
    main(["upgrade", str(run)])
    assert "3 trace files" in capsys.readouterr().out
    assert upgrade_run(run) == Upgrade(0, ())


def test_stored_rollouts_are_renamed(run: Path) -> None:
    (run / "probes.json").write_text('[{"example": "a", "facts": [["gate", 1.0]]}]')
    (run / "sequences.jsonl").write_text('{"example": "a", "facts": [], "source": "student"}\n')
    upgrade_run(run)
    assert json.loads((run / "probes.json").read_text()) == [{"example": "a", "annotations": [["gate", 1.0]]}]
    assert json.loads((run / "sequences.jsonl").read_text()) == {
        "example": "a",
        "annotations": [],
        "sampled_by": "student",
    }


def test_stored_answers_are_renamed(run: Path) -> None:
    upgrade_run(run)
    assert {row.visibility for row in load_records(run)} == {"visible", "privileged"}


def test_metrics_are_renamed_and_incomplete_line_stays(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 3, "ann/sampler_gap": 0.5, "ann/fact/gate": 1.0}\n{"kind": "tr')
    upgrade_run(run)
    *lines, last = (run / "metrics.jsonl").read_text().split("\n")
    assert json.loads(lines[-1]) == {
        "kind": "train",
        "step": 3,
        "ann/sampler_logprob_gap": 0.5,
        "ann/annotation/gate": 1.0,
    }
    train = json.loads(lines[1])
    assert {
        "duplicate_rate",
        "sampler_logprob_gap",
        "seconds/sample",
        "seconds/score",
        "seconds/learn",
    } <= train.keys()
    assert not {"agreement", "sampler_gap", "seconds/write", "seconds/read"} & train.keys()
    assert last == '{"kind": "tr'


def test_traces_of_version_6_equal_those_of_version_5(run: Path) -> None:
    upgrade_run(run)
    (file,) = (run / "traces" / "tokens").glob("*.parquet")
    upgraded = pq.read_table(file)
    header = json.loads(upgraded.schema.metadata[HEADER_KEY.encode()])
    header |= {
        "version": 6,
        "regimes": {"ALL": {"source" if k == "target" else k: v for k, v in header["regimes"]["ALL"].items()}},
    }
    former = {"token_type": "kind", "visibility": "truth"}
    table = upgraded.rename_columns([former.get(name, name) for name in upgraded.column_names])
    pq.write_table(table.replace_schema_metadata({HEADER_KEY: json.dumps(header)}), file)
    assert upgrade_run(run).num_trace_files == 1
    assert pq.read_table(file).equals(upgraded)
    assert open_traces(run).regimes["ALL"].target == "teacher"


def test_upgrade_of_other_folder_raises(tmp_path: Path) -> None:
    with raises(RunError, "run folder"):
        upgrade_run(tmp_path)
