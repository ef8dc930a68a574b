"""Every analysis on a real run: its numbers against what the trace, the metrics and the evaluations say themselves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from failures import raises

from benchmarks import big_run
from workbench.analysis import compare, illusion, movement, regimes, tokens
from workbench.analysis import runs as run_tables
from workbench.errors import TraceError
from workbench.evals.records import load_records
from workbench.render import render_movement, render_tokens
from workbench.runs.folder import RunFolder
from workbench.traces.reader import Traces, open_traces
from workbench.traces.selection import parse_selection
from workbench.traces.writer import TraceWriter

REGIMES = ["LH", "LL", "HT", "HS"]


def test_metrics_equal_lines_of_file(dopd: Path) -> None:
    result = run_tables.metrics(dopd, ("loss", "share/HT"))
    lines = RunFolder.open(dopd).metrics("train")
    for name in ("loss", "share/HT"):
        values = result.frame[result.frame["metric"] == name]
        assert values["value"].tolist() == [line[name] for line in lines]
    assert result.units == {"loss": "nats", "share/HT": "share of tokens"}
    assert set(run_tables.metrics(dopd, kind="eval").frame["step"]) == {0, 2, 4}


def test_thin_keeps_ends_and_peaks() -> None:
    values = np.zeros(20_000)
    values[12_345], values[7_000] = 5.0, -5.0
    frame = pd.DataFrame({"step": range(20_000), "metric": "loss", "value": values})
    kept = run_tables.thin(frame)
    assert len(kept) <= run_tables.MAX_POINTS + 2
    assert {0, 7_000, 12_345, 19_999} <= set(kept["step"])


def test_config_differences_hold_changed_keys_only(dopd: Path, opd: Path) -> None:
    rows = {row["key"]: row for row in run_tables.config_difference(dopd, opd).rows}
    assert (rows["method.name"]["dopd"], rows["method.name"]["opd"]) == ("dopd", "opd")
    assert "name" not in rows and "seed" not in rows
    assert run_tables.config_difference(dopd, dopd).empty == "Both runs have the same configuration."


def test_config_differences_are_written_as_yaml(tmp_path: Path) -> None:
    for name, text in (("a", "x: null\ny: true\nz: {}\nw: [1, b]\n"), ("b", "x: 3\ny: false\nz: {c: d}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    result = run_tables.config_difference(tmp_path / "a", tmp_path / "b").rows
    assert [(row["key"], row["a"], row["b"]) for row in result] == [
        ("x", "null", "3"),
        ("y", "true", "false"),
        ("z", "{}", "not set"),
        ("w", "[1, b]", "not set"),
        ("z.c", "not set", "d"),
    ]


def test_tokens_page_obeys_filters(dopd: Path) -> None:
    traces = open_traces(dopd)
    assert tokens.count(dopd) == 4 * 6
    first, second = (tokens.page(traces, page_idx=idx, size=13) for idx in (0, 1))
    keys = [(row["step"], row["rollout"]) for item in (first, second) for row in item.rows]
    assert len(set(keys)) == 24 and keys[0][0] == 4
    chosen = parse_selection("token.regime=HS sort:-abs_information_gap")
    result = tokens.page(traces, chosen)
    assert len(result.frame) == min(25, tokens.count(traces, chosen))
    assert all("HS" in row["regimes"] for row in result.rows)
    assert result.frame["information_gap"].abs().is_monotonic_decreasing
    assert tokens.page(traces, parse_selection('domain="no such"')).empty.startswith("No answer matches")
    choices = tokens.choices(traces)
    assert choices["step"] == [1, 2, 3, 4] and choices["regime"] == REGIMES


def test_token_view_of_answer_is_complete(dopd: Path) -> None:
    view = tokens.answer(dopd, 2, 1)
    assert view.meta["run"] == "dopd" and view.meta["step"] == 2
    assert len(view.tokens) == tokens.page(dopd, parse_selection("step=2")).rows[1]["tokens"]
    assert "wb-tokens" in render_tokens(view)
    with raises(TraceError, "rollout 99", "step 2"):
        tokens.answer(dopd, 2, 99)


@pytest.mark.parametrize("split", [None, "token_type", "visibility", "domain"])
@pytest.mark.parametrize("probe", [False, True])
def test_regime_shares_partition_step_and_group(dopd: Path, split: str | None, probe: bool) -> None:
    frame = regimes.shares_over_steps(dopd, split=split, probe=probe).frame
    assert set(frame["regime"]) == set(REGIMES)
    sums = frame.groupby(["step", "group"])[["position_share", "loss_share"]].sum()
    np.testing.assert_allclose(sums, 1.0)
    table = "probe_tokens" if probe else "tokens"
    assert frame["num_positions"].sum() == open_traces(dopd).sql(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py()


def test_shares_over_steps_equal_metrics(dopd: Path) -> None:
    frame = regimes.shares_over_steps(dopd).frame
    for line in RunFolder.open(dopd).metrics("train"):
        for name in REGIMES:
            (row,) = frame[(frame["step"] == line["step"]) & (frame["regime"] == name)].to_dict("records")
            assert row["position_share"] == pytest.approx(line[f"share/{name}"])


def test_shares_of_long_run_merge_steps_without_loss(dopd: Path) -> None:
    whole, two = (regimes.shares_over_steps(dopd, bins=bins).frame for bins in (200, 2))
    assert sorted(set(two["step"])) == [1, 3]
    assert two["num_positions"].sum() == whole["num_positions"].sum()


def test_shares_and_gaps_equal_sums_of_positions(dopd: Path) -> None:
    part = regimes.shares_by(dopd, "token_type").frame
    counted = open_traces(dopd).sql("SELECT count(*) AS n FROM tokens")["n"][0].as_py()
    assert part["num_positions"].sum() == counted
    gaps = regimes.gaps_over_steps(dopd).frame
    expected = open_traces(dopd).sql("SELECT avg(abs(information_gap)) AS gap FROM tokens WHERE step = 3")["gap"][0]
    values = gaps[gaps["step"] == 3]
    mean = (values["abs_information_gap"] * values["num_positions"]).sum() / values["num_positions"].sum()
    assert mean == pytest.approx(expected.as_py(), rel=1e-4)


def test_probe_heatmap_is_a_rectangle(dopd: Path) -> None:
    result = movement.of_probe(dopd, 1)
    assert result.steps == [0, 2, 4]
    assert {len(row) for row in result.regimes} == {len(result.tokens)}
    assert {name for row in result.regimes for name in row} <= set(REGIMES)
    assert "<svg" in render_movement(result.steps, result.tokens, result.regimes, result.notes)
    assert movement.of_probe(dopd, 77).empty.startswith("Probe 77 does not exist")


def test_transitions_keep_every_probe_token(dopd: Path) -> None:
    result = movement.transitions(dopd)
    tokens_of_probes = sum(row["tokens"] for row in movement.probes(dopd).rows)
    assert result.frame["num_positions"].sum() == tokens_of_probes
    assert result.frame["share"].sum() == pytest.approx(1.0)
    assert (result.frame["first_step"].iloc[0], result.frame["last_step"].iloc[0]) == (0, 4)
    same = movement.transitions(dopd, 2, 2).frame
    assert (same["source"] == same["target"]).all()
    with raises(TraceError, "step 3"):
        movement.transitions(dopd, 0, 3)


def test_regime_changes_equal_manual_count(dopd: Path) -> None:
    expected = 0
    for probe in movement.probes(dopd).rows:
        result = movement.of_probe(dopd, probe["rollout"])
        changes = sum(
            a != b
            for before, after in zip(result.regimes, result.regimes[1:], strict=False)
            for a, b in zip(before, after, strict=True)
        )
        assert probe["changes"] == changes
        expected += changes
    moved = movement.most_moved(dopd, limit=1000)
    assert (0 if moved.empty else moved.frame["changes"].sum()) == expected
    assert all(row["way"].count("→") == row["changes"] for row in moved.rows)


def test_compare_pairs_runs_by_probe(dopd: Path, opd: Path) -> None:
    rows = compare.shared_examples(dopd, opd).rows
    assert [row["probe"] for row in rows][:3] == [True] * 3
    pair = compare.pair(dopd, opd, rows[0])
    assert pair.by == "same tokens"  # probes are written by the starting student, which both share
    assert pair.aligned.frame["same_token"].all()
    assert (pair.first.meta["run"], pair.second.meta["run"]) == ("dopd", "opd")
    assert set(pair.aligned.frame["regime_b"]) == {"ALL"}


def test_compare_aligns_answers_by_common_tokens() -> None:
    assert compare._matched([1, 2, 3, 4], [1, 3, 4, 5]) == [(0, 0), (1, None), (2, 1), (3, 2), (None, 3)]
    assert compare._matched([], [7]) == [(None, 0)]


def test_compare_accuracies_equal_records(dopd: Path, opd: Path) -> None:
    result = compare.accuracy_beside(dopd, opd)
    (row,) = (
        row for row in result.rows if (row["policy"], row["context"], row["visibility"]) == ("student", "plain", "all")
    )
    for run, side in ((dopd, "a"), (opd, "b")):
        for step, name in ((0, "first"), (4, "last")):
            requested = [
                record
                for record in load_records(run)
                if (record.step, record.policy, record.context) == (step, "student", "plain")
            ]
            assert row[f"{name}_{side}"] == pytest.approx(np.mean([item.reward for item in requested]))
            assert row[f"count_{side}"] == len(requested)
    long = compare.accuracy_of(dopd, opd).frame.set_index(["run", "policy", "context", "visibility", "step"])
    assert long.loc[("opd", "student", "plain", "all", 4)]["accuracy"] == row["last_b"]
    assert result.units["first_a"] == "dopd, step 0" and result.units["last_b"] == "opd, step 4"


def test_compare_single_evaluation_has_no_last_accuracy(dopd: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    shutil.copytree(dopd, once)
    first, *later = sorted((once / "evals").iterdir())
    for file in later:
        file.unlink()
    kept = first.read_text().splitlines(keepends=True)
    (gone,) = {json.loads(line)["example_id"] for line in kept[:1]}
    first.write_text("".join(line for line in kept if json.loads(line)["example_id"] != gone))
    result = compare.accuracy_beside(dopd, once)
    (row,) = (
        row for row in result.rows if (row["policy"], row["context"], row["visibility"]) == ("student", "plain", "all")
    )
    assert row["last_a"] is not None and row["last_b"] is None and row["confidence_b"] is not None
    assert row["count_b"] == row["count_a"] - 1
    assert result.units["last_b"] == "once, no later evaluation" and result.units["confidence_b"] == "once, step 0"


def test_information_share_equals_positions(dopd: Path) -> None:
    frame = illusion.information_dominated_loss(dopd).frame
    query = """SELECT step, avg(CAST(abs(information_gap) > abs(capability_gap) AS INT)) AS share,
                      sum(abs(contribution)) FILTER (abs(information_gap) > abs(capability_gap))
                       / sum(abs(contribution)) AS loss
               FROM tokens GROUP BY step ORDER BY step"""
    expected = open_traces(dopd).sql(query).to_pandas()
    values = frame[frame["visibility"] == "all"]
    np.testing.assert_allclose(values["position_share"], expected["share"])
    np.testing.assert_allclose(values["loss_share"], expected["loss"].fillna(0.0), rtol=1e-5)


def test_information_share_of_long_run_merges_steps(dopd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(illusion, "MAX_POINTS", 2)
    frame = illusion.information_dominated_loss(dopd).frame
    values = frame[frame["visibility"] == "all"]
    steps = sorted(open_traces(dopd).steps("tokens"))
    half = -(-len(steps) // 2)
    assert values[["first_step", "step"]].to_numpy().tolist() == [[steps[0], steps[half - 1]], [steps[half], steps[-1]]]
    query = "SELECT avg(CAST(abs(information_gap) > abs(capability_gap) AS INT)) AS share FROM tokens WHERE step < ?"
    expected = open_traces(dopd).sql(query.replace("?", str(steps[half]))).to_pandas()["share"]
    np.testing.assert_allclose(values["position_share"].iloc[0], expected.iloc[0])


def test_auroc_equals_hand_computed() -> None:
    values, positive = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])
    assert illusion.auroc(values, positive) == 0.75  # of four pairs the positive is larger in three
    assert illusion.auroc(np.ones(4), positive) == 0.5


def test_worst_cases_are_ranked_and_open_token_view(dopd: Path) -> None:
    result = illusion.worst_cases(dopd)
    for row in result.rows:
        assert row["information_gap"] > abs(row["capability_gap"]) and row["target"]
    if not result.empty:
        assert result.frame["loss"].is_monotonic_decreasing
        row = result.rows[0]
        view = tokens.answer(dopd, row["step"], row["rollout"], process=row["process"])
        assert view.tokens[row["position"]].text == row["token"]
    wrong = illusion.confidently_wrong(dopd).frame
    assert wrong["confidence"].is_monotonic_decreasing
    reliable = illusion.reliability(dopd).frame
    assert reliable.loc[reliable["visibility"] == "all", "count"].sum() == 6


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Sixty steps with tokens that only the evidence shows, as the benchmarks draw them."""
    folder = tmp_path_factory.mktemp("long")
    examples = [big_run.make_example(idx) for idx in range(100)]
    writer = TraceWriter(folder, method="dopd", policy_text=lambda token_id: big_run.WORDS[token_id])
    for step in range(1, 61):
        writer.write(big_run.make_batch(step, examples, 4, 20))
    return open_traces(folder)


def test_worst_cases_of_long_run_cover_all_tokens(long_run: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    every = illusion.worst_cases(long_run, limit=20).rows
    monkeypatch.setattr(illusion, "MAX_RANKED_TOKENS", 200)
    few, recorded = illusion._even_steps(long_run, 200, "visibility = 'privileged'")
    assert len(few) < recorded, "the first look reads a part of the run only"
    assert illusion.worst_cases(long_run, limit=20).rows == every and len(every) == 20
    losses = long_run.sql(
        "SELECT loss FROM tokens WHERE information_gap > greatest(capability_gap, 0) AND visibility = 'privileged' "
        "ORDER BY loss DESC LIMIT 20"
    )
    assert [row["loss"] for row in every] == losses["loss"].to_pylist()
    assert len(illusion.worst_cases(long_run, limit=5000).rows) > 20, "more than the first look finds"


def test_separation_of_some_steps_says_so(long_run: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    every = illusion.separation(long_run)
    assert (
        "evenly" not in every.run
        and sum(every.frame[["num_privileged", "num_visible"]].iloc[0]) == long_run.summary()["positions"]
    )
    monkeypatch.setattr(illusion, "MAX_RANKED_TOKENS", 1000)
    some = illusion.separation(long_run)
    assert "of 12 of 60 steps, evenly spaced" in some.run
    np.testing.assert_allclose(some.frame["auroc"], every.frame["auroc"], atol=0.1)


@pytest.mark.parametrize(
    "ask",
    [
        run_tables.metrics,
        tokens.page,
        regimes.shares_over_steps,
        regimes.gaps_over_steps,
        movement.probes,
        movement.transitions,
        movement.most_moved,
        illusion.accuracy,
        illusion.reliability,
        illusion.information_dominated_loss,
        illusion.separation,
        illusion.worst_cases,
        illusion.confidently_wrong,
        lambda run: regimes.shares_by(run, "token_type"),
        lambda run: movement.of_probe(run, 0),
        lambda run: compare.shared_examples(run, run),
        lambda run: compare.accuracy_beside(run, run),
        compare.accuracy_of,
    ],
)
def test_tables_of_begun_run_show_message(runs: Path, ask) -> None:
    assert len(ask(runs / "begun").empty) > 20
    assert tokens.choices(runs / "begun")["step"] == []


def test_tables_missing_gaps_show_message(opd: Path) -> None:
    for ask in (illusion.information_dominated_loss, illusion.separation, illusion.worst_cases):
        assert "no privileged student" in ask(opd).empty
