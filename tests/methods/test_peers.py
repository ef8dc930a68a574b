"""Several learners in one run: each has its weights, optimizer, answers, probes and rows; a kill loses none of them."""

from pathlib import Path

import pytest
import torch
import yaml
from failures import raises
from safetensors.torch import load_file
from small import run_config

from workbench.config.schema import RunConfig
from workbench.errors import ConfigError
from workbench.evals.records import load_records
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.studies.evaluate import evaluate_reference, evaluate_study_run
from workbench.studies.plan import load_study
from workbench.studies.report import collect, markdown
from workbench.traces.reader import open_traces
from workbench.training.check import check_config
from workbench.training.run import train
from workbench.training.scorer import evaluate_run

METHOD = {"name": "opsd", "self_policy": "student@ema"}


def two(models: dict, output_dir: object, **values: object) -> RunConfig:
    plain = {"models__peers": {"ann": str(models["student"])}, "method": METHOD}
    return run_config(models, output_dir, **(plain | values))


@pytest.fixture(scope="module")
def pair(models: dict, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of two learners that begin with the same weights."""
    config = two(models, tmp_path_factory.mktemp("runs"))
    train(config)
    return config


def metrics(config: RunConfig, kind: str = "train") -> list[dict]:
    lines = RunFolder.open(config.run_dir).metrics(kind)
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def weights(config: RunConfig, learner: str) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(config.run_dir)[-1].weights(learner) / "model.safetensors")


def assert_equal(values: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert values.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in values.items())


def test_peers_student_trains_as_alone(pair: RunConfig, models: dict, tmp_path: Path) -> None:
    alone = run_config(models, tmp_path, method=METHOD, data__eval=None)
    train(alone)
    assert [line["loss"] for line in metrics(alone)] == [line["loss"] for line in metrics(pair)]
    assert_equal(weights(alone, "student"), weights(pair, "student"))


def test_peers_sample_and_train_separately(pair: RunConfig) -> None:
    assert all(line["loss"] != line["ann/loss"] for line in metrics(pair))
    values, other = weights(pair, "student"), weights(pair, "ann")
    assert any(not torch.equal(values[name], other[name]) for name in values)
    newest = list_checkpoints(pair.run_dir)[-1].path
    assert (newest / "ann_ema").is_dir() and (newest / "optimizer_ann.safetensors").is_file()
    requested = {(row.step, row.policy) for row in load_records(pair.run_dir)}
    assert requested == {(0, "student"), (0, "ann"), (4, "student"), (4, "ann")}


def test_peers_rows_name_their_learner(pair: RunConfig) -> None:
    traces = open_traces(pair.run_dir)
    rows = traces.sql("SELECT learner, sampled_by, count(*) AS n FROM rollouts GROUP BY ALL ORDER BY 1").to_pylist()
    assert rows == [{"learner": name, "sampled_by": name, "n": 24} for name in ("ann", "student")]
    of_positions = "SELECT learner, count(*) AS n FROM tokens GROUP BY 1 ORDER BY 1"
    of_cells = "SELECT learner, CAST(sum(num_positions) AS BIGINT) AS n FROM aggregates GROUP BY 1 ORDER BY 1"
    assert traces.sql(of_positions).to_pylist() == traces.sql(of_cells).to_pylist()
    wrong = """SELECT count(*) AS n FROM rollouts JOIN tokens USING (step, process_rank, rollout_idx)
               WHERE rollouts.learner <> tokens.learner"""
    assert traces.sql(wrong)["n"][0].as_py() == 0
    keys = "SELECT count(*) AS n, count(DISTINCT (step, rollout_idx, position)) AS k FROM tokens"
    assert len(set(traces.sql(keys).to_pylist()[0].values())) == 1
    probes = traces.sql("SELECT DISTINCT learner FROM probe_rollouts ORDER BY 1")
    assert probes["learner"].to_pylist() == ["ann", "student"]


def test_peers_resumed_run_equals_uninterrupted(pair: RunConfig, models: dict, tmp_path: Path) -> None:
    config = two(models, tmp_path)
    train(config)
    (list_checkpoints(config.run_dir)[-1].weights("ann") / "model.safetensors").write_bytes(b"torn")
    train(config, resume=True)  # from step 2
    assert metrics(config) == metrics(pair) and metrics(config, "probe") == metrics(pair, "probe")
    for learner in ("student", "ann"):
        assert_equal(weights(config, learner), weights(pair, learner))


@pytest.mark.parametrize("name", ["student", "teacher", "an n", "ann/b", ""])
def test_peers_reserved_name_raises(name: str, models: dict, tmp_path: Path) -> None:
    with raises(ConfigError, "models.peers"):
        two(models, tmp_path, models__peers={name: "x"})


def test_peers_are_all_evaluated_again(pair: RunConfig) -> None:
    result = evaluate_run(pair.run_dir, contexts=["plain"], max_examples=2)
    before = {
        (row.policy, row.example_id): row.text
        for row in load_records(pair.run_dir)
        if row.step == 4 and row.context == "plain"
    }
    assert {row.policy for row in result} == {"student", "ann"}
    assert all(row.text == before[row.policy, row.example_id] for row in result)


def test_peers_are_all_checked(pair: RunConfig) -> None:
    names = [item.name for item in check_config(pair)]
    assert "loss in chunks = at once" in names and "ann: loss in chunks = at once" in names


def test_peers_in_study_compare_with_their_own_start(models: dict, tmp_path: Path) -> None:
    config = two(models, tmp_path, models__peers={"ann": str(models["teacher"])}, training__steps=1, data__eval=None)
    base = tmp_path / "base.yaml"
    base.write_text(config.to_yaml())
    file = tmp_path / "pair.yaml"
    file.write_text(
        yaml.safe_dump(
            {"extends": str(base), "variants": {"one": {}}, "seeds": [0], "evaluate": [{"data": "scenes:eval?count=4"}]}
        )
    )
    study = load_study(file)
    for reference in study.references():
        evaluate_reference(reference, study.evaluate, study.reference_file(reference.row))
    run = study.config(study.variants[0], 0)
    train(run)
    evaluate_study_run(run, study.evaluate)
    results = collect(study)
    assert [arm.name for arm in results.arms] == ["untrained", "teacher", "one"]
    requested = [
        (comparison.variant, comparison.data, comparison.against)
        for comparison in results.comparisons
        if comparison.measure == "accuracy" and comparison.visibility == "all"
    ]
    assert {
        ("one", data, against)
        for data in ("scenes:eval", "scenes:eval, answered by ann")
        for against in (None, "untrained")
    } <= set(requested)
    text = markdown(results)
    assert "## scenes:eval, shown plain" in text and "## scenes:eval, answered by ann, shown plain" in text
