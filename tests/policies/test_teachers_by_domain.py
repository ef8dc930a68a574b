"""A run with a teacher for each domain: the scoring teacher is recorded; rows without a teacher are counted."""

from pathlib import Path

from failures import raises
from small import run_config

from workbench.errors import ConfigError, DataError
from workbench.evals.records import load_records
from workbench.render.from_trace import token_view
from workbench.runs.folder import RunFolder
from workbench.traces.reader import open_traces
from workbench.training.check import check_config, is_good
from workbench.training.run import train


def test_teachers_by_domain_run_records_scoring_teacher(models: dict, tmp_path: Path) -> None:
    teachers = {"color": str(models["student"]), "count": str(models["teacher"])}
    config = run_config(
        models,
        tmp_path,
        models={"student": str(models["student"]), "teachers": teachers},
        method={"name": "mopd", "outcome": 0.5},
        data={"train": "scenes:train?count=16", "eval": "scenes:eval?count=8"},
        training={"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "micro_batch_size": 3},
        evaluation={"max_examples": 8, "contexts": ["plain"]},
        trace={"probes": 2, "probe_every": 2, "top_k": 3, "top_k_rollouts": 8},
    )
    checks = {check.name: check for check in check_config(config)}
    assert is_good(list(checks.values())), checks
    assert "12 of 16 examples are skipped" in checks["teacher of each domain"].finding
    assert "completion in view teacher (teacher:count / plain)" in checks

    train(config)
    skipped = RunFolder.open(config.run_dir).status["skipped"]
    assert skipped['no teacher for domain "tag"'] == 4 and sum(skipped.values()) == 12
    traces = open_traces(config.run_dir)
    rows = traces.sql(
        "SELECT DISTINCT domain, policy_student, policy_teacher FROM rollouts ORDER BY domain"
    ).to_pylist()
    assert rows == [
        {"domain": domain, "policy_student": "student", "policy_teacher": f"teacher:{domain}"} for domain in teachers
    ]
    worst = traces.sql("SELECT max(abs(ratio - 1)) AS off, count(DISTINCT regime) AS regimes FROM tokens").to_pylist()
    assert worst[0]["off"] < 1e-3 and worst[0]["regimes"] == 1
    same = traces.sql(
        "SELECT max(abs(total_gap)) AS gap FROM tokens JOIN rollouts USING (step, process_rank, rollout_idx) "
        "WHERE step = 1 AND domain = 'color'"
    ).to_pylist()
    assert same[0]["gap"] < 1e-3  # of colours the student's own start is the teacher: before the first step no gap
    displayed = token_view(traces.rollout(1, 0))
    assert displayed.contexts["teacher"] in ("teacher:color, plain", "teacher:count, plain")
    assert all(token.top_k["teacher"] for token in displayed.tokens)
    requested = {(row.policy, row.domain) for row in load_records(config.run_dir) if row.step == 0}
    assert {domain for policy, domain in requested if policy == "teacher"} == {"color", "count"}
    assert {domain for policy, domain in requested if policy == "teacher:color"} >= {"color", "tag", "shape"}


def test_teachers_by_domain_without_example_raise(models: dict, tmp_path: Path) -> None:
    paths = {"student": str(models["student"]), "teachers": {"colour": str(models["teacher"])}}
    config = run_config(models, tmp_path, models=paths, method={"name": "opd"})
    with raises(DataError, "12 examples", "tag"):
        train(config)
    with raises(ConfigError, "models.teachers"):
        run_config(models, tmp_path, models={**paths, "teachers": {"color": 3}}, method={"name": "opd"})
