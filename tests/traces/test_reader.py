import dataclasses
import itertools
import math
import pickle
import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from processes import Program

from workbench.analysis.tokens import page
from workbench.distill.divergences import Divergence
from workbench.distill.method import Loss, Regime
from workbench.errors import TraceError
from workbench.traces import schema
from workbench.traces.parts import compact, list_parts, write_part
from workbench.traces.reader import Traces, open_traces
from workbench.traces.schema import TracedRegime
from workbench.traces.selection import Selection
from workbench.traces.writer import TraceWriter
from workbench.types import TokenScores

GAPS = {
    "total_gap": ("teacher", "student"),
    "capability_gap": ("teacher", "self"),
    "information_gap": ("self", "student"),
}


def writer(folder, **options) -> TraceWriter:
    return TraceWriter(folder, method="dopd", policy_text=str, **options)


@pytest.fixture
def run(tmp_path, make_batch):
    """Four steps, two of them probed."""
    trace_writer = writer(tmp_path)
    for step in range(4):
        trace_writer.write(make_batch(step))
    for step in (0, 2):
        trace_writer.write_probe(make_batch(step, lengths=(2, 2)))
    return tmp_path


@pytest.mark.parametrize("seed", range(5))
def test_gaps_equal_float32_differences_of_logprobs(tmp_path, make_batch, seed):
    batch = make_batch(seed=seed, lengths=(40, 3))
    writer(tmp_path).write(batch)
    result = open_traces(tmp_path).sql("SELECT * FROM tokens ORDER BY rollout_idx, position")
    for gap, (above, below) in GAPS.items():
        expected = batch.scores[above].logprob.numpy() - batch.scores[below].logprob.numpy()
        assert result[gap].type == "float"
        np.testing.assert_array_equal(result[gap].to_numpy().view(np.int32), expected.view(np.int32))
    contribution = batch.loss.numpy() * batch.loss_normalizer.numpy()
    np.testing.assert_array_equal(result["contribution"].to_numpy(), contribution)


def test_gaps_of_missing_views_are_null(tmp_path, make_batch):
    views = {"student": ("student", "plain"), "teacher": ("teacher", "plain")}
    writer(tmp_path).write(make_batch(views=views))
    traces = open_traces(tmp_path)
    result = traces.sql("SELECT total_gap, capability_gap, information_gap FROM tokens")
    assert [result[name].null_count for name in result.column_names] == [0, 9, 9]
    assert result["capability_gap"].type == "float"
    assert traces.summary()["information_loss_share"] is None
    assert traces.rollouts("sort:-capability_gap").num_rows == 4


def test_positions_have_target_and_divergence_of_regime(run):
    rows = open_traces(run).sql("SELECT DISTINCT regime, target, divergence FROM tokens").to_pylist()
    assert {row["regime"]: row["target"] for row in rows} == {"low": "teacher", "high": "self", "none": None}
    assert all(row["divergence"] for row in rows if row["target"])


def test_header_has_method_views_and_regimes(run):
    traces = open_traces(run)
    assert traces.method == "dopd"
    assert traces.views["self"] == schema.TracedView("student@ema", "boxes")
    assert list(traces.regimes) == ["low", "high", "none"]
    assert traces.regimes["high"].meaning == "high gap: privileged self"


def test_open_traces_accepts_run_or_traces_folder(tmp_path, make_batch):
    folder = tmp_path / "run's [a-z] *? 10%"
    writer(folder).write(make_batch())
    assert open_traces(folder).steps() == open_traces(str(folder / "traces")).steps() == [0]


def test_open_traces_folder_named_like_a_column_keeps_values(tmp_path, make_batch):
    folder = tmp_path / "step=7" / "regime=none"
    writer(folder).write(make_batch())
    traces = open_traces(folder)
    assert traces.steps() == [0]
    assert "none" not in traces.sql("SELECT DISTINCT regime FROM tokens")["regime"].to_pylist()


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_open_traces_without_traces_raises_with_remedy(tmp_path, name):
    (tmp_path / "empty" / "traces" / "tokens").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="Give the folder of a run"):
        open_traces(tmp_path / name)


def test_steps_are_listed_per_table(run):
    traces = open_traces(run)
    assert traces.steps() == [0, 1, 2, 3]
    assert traces.steps("probe_rollouts") == [0, 2]
    with pytest.raises(TraceError, match='table "probes" is unknown'):
        traces.steps("probes")


def test_tables_never_written_are_empty(tmp_path, make_batch):
    writer(tmp_path).write(make_batch())
    traces = open_traces(tmp_path)
    assert traces.steps("probe_rollouts") == []
    assert traces.rollouts("in:probes").num_rows == 0
    assert traces.sql("SELECT capability_gap, entropy_self FROM probe_tokens").num_rows == 0


def test_rollouts_pages_are_complete_and_disjoint(run):
    traces = open_traces(run)
    for order in ("step", "-step", "capability_gap", "-information_gap", "-loss"):
        pages = [traces.rollouts(f"sort:{order}", limit=3, offset=offset).to_pylist() for offset in range(0, 18, 3)]
        rows = [row for page in pages for row in page]
        assert len({(row["step"], row["rollout_idx"]) for row in rows}) == len(rows) == traces.count_rollouts() == 16
        values = [row[order.removeprefix("-")] for row in rows if row[order.removeprefix("-")] is not None]
        assert values == sorted(values, reverse=order.startswith("-"))
        assert all(row[order.removeprefix("-")] is not None for row in rows[: len(values)]), "unknown values come last"
    by_size = [abs(row["capability_gap"] or 0) for row in traces.rollouts("sort:-abs_capability_gap").to_pylist()]
    assert by_size == sorted(by_size, reverse=True)


def test_rollouts_at_page_keys_returns_their_rows(run):
    traces = open_traces(run)
    keys, total = traces.rollout_keys("sort:-loss", limit=3, offset=3)
    rows = traces.rollouts("sort:-loss", limit=3, offset=3).to_pylist()
    assert [(row["step"], row["process_rank"], row["rollout_idx"]) for row in rows] == keys and total == 16
    assert [row["rollout_idx"] for row in traces.rollouts_at(keys[::-1]).to_pylist()] == [key[2] for key in keys[::-1]]
    assert traces.rollout_keys(limit=3, offset=99) == ([], 16)
    assert traces.rollout_keys("domain=none") == ([], 0)
    assert traces.rollouts_at([]).num_rows == 0


def test_rollouts_brief_returns_previews(tmp_path, make_batch):
    batch = make_batch(1)
    long = replace(batch.rollouts[0], text="ответ " * 60)
    writer(tmp_path).write(replace(batch, rollouts=(long, *batch.rollouts[1:])))
    traces = open_traces(tmp_path)
    keys, _ = traces.rollout_keys()
    for brief in (False, True):
        result = dict(zip(keys, traces.rollouts_at(keys, brief=brief)["completion"].to_pylist(), strict=True))
        assert result[(1, 0, 0)] == (long.text[: schema.PREVIEW_LENGTH] if brief else long.text)
    row = next(row for row in page(traces).rows if row["rollout"] == 0)
    assert row["answer"] == long.text[: schema.PREVIEW_LENGTH - 1] + "…"


def test_cached_results_last_until_next_step(run, make_batch):
    traces, calls = open_traces(run), []

    def count(traces: Traces, domain: str | None) -> int:
        calls.append(domain)
        return traces.count_rollouts(Selection.of(domain=domain))

    assert [traces.cached(count, None) for _ in range(3)] == [16, 16, 16] and calls == [None]
    assert traces.cached(count, "count") == 8 and calls == [None, "count"]
    writer(run).write(make_batch(5))
    assert traces.cached(count, None) == traces.count_rollouts() > 16 and len(calls) == 3


def test_aggregates_of_rollout_equal_its_positions(run, make_batch):
    row = next(row for row in open_traces(run).rollouts("step=2").to_pylist() if row["rollout_idx"] == 2)
    batch = make_batch(2)
    of_rollout = slice(3, 8)
    gap = (batch.scores["teacher"].logprob - batch.scores["self"].logprob)[of_rollout]
    assert row["capability_gap"] == pytest.approx(float(gap.mean()), rel=1e-5)  # another order of summing
    assert row["contribution"] == pytest.approx(float((batch.loss * batch.loss_normalizer)[of_rollout].sum()), rel=1e-5)
    assert sum(dict(row["regimes"]).values()) == row["num_positions"] == 5


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ("step=1", 4),
        ("step>=2 step<3", 4),
        ("domain=count", 8),
        ("domain!=count", 8),
        ("grade=correct", 8),
        ("grade=incorrect", 4),
        ("grade=unknown", 4),
        ("reward<1", 4),
        ("reward!=1", 8),  # also those without one
        ("token.visibility=privileged", 8),  # the two of three and five tokens, at four steps
        ("token.visibility=visible", 0),
        ("step=1 grade=correct domain=read", 1),
        ('domain="\'; DROP TABLE x; --"', 0),
        ("tokens>1", 8),
        ("tokens=0", 4),
        ("ОТВЕТ", 16),
        ('"ОТВЕТ 2"', 4),
        ("answer:/вет [23]$/", 8),
        ("answer:/ВЕТ/", 0),
        ("answer:/ВЕТ/i", 16),
        ('question:"that\\""', 16),
        ("你好", 16),
        ('"\n"', 0),
        ("100%", 0),
        ("e.", 0),  # a text, not a pattern
        ("example:e1 expected=7", 4),
        ("in:probes", 4),
        ("token.position=4", 4),
        ("token.position>=2 token.position<3", 8),
    ],
)
def test_rollouts_filters_agree_with_count(run, filters, count):
    traces = open_traces(run)
    assert traces.rollouts(filters).num_rows == traces.count_rollouts(filters) == count


def test_regime_filter_keeps_rollouts_with_such_a_position(run):
    traces = open_traces(run)
    matches = {(row["step"], row["rollout_idx"]) for row in traces.rollouts("token.regime=high").to_pylist()}
    rows = traces.sql("SELECT step, rollout_idx FROM tokens WHERE regime = ?", ["high"]).to_pylist()
    assert matches == {(row["step"], row["rollout_idx"]) for row in rows} != set()
    with pytest.raises(TraceError, match=r'regime "hihg" is unknown.*Did you mean "high"'):
        traces.rollouts("token.regime=hihg")
    with pytest.raises(TraceError, match=r'view "studnet" is unknown.*Did you mean "student".*character 3'):
        traces.rollouts("  token.logprob_studnet>0")
    with pytest.raises(TraceError, match="evaluation"):
        traces.rollouts("in:evaluation")


def test_token_conditions_on_numbers_hold_for_one_token(run):
    traces = open_traces(run)
    rows = traces.sql("SELECT * FROM tokens").to_pylist()
    fits = {
        "token.information_gap>1 token.capability_gap<0": lambda row: (
            row["information_gap"] > 1 > 1 + row["capability_gap"]
        ),
        "token.abs_information_gap>=1.5 token.regime=high": lambda row: (
            abs(row["information_gap"]) >= 1.5 and row["regime"] == "high"
        ),
        "token.entropy_teacher<0.5 token.visibility=privileged": lambda row: (
            row["entropy_teacher"] < 0.5 and row["visibility"] == "privileged"
        ),
        "token.text:w1 token.rank_self>0": lambda row: row["token_text"].startswith("w1") and row["rank_self"] > 0,
    }
    for text, fit in fits.items():
        expected = {(row["step"], 0, row["rollout_idx"]): [] for row in rows if fit(row)}
        for row in filter(fit, rows):
            expected[row["step"], 0, row["rollout_idx"]].append(row["position"])
        keys, total = traces.rollout_keys(text, limit=99)
        assert set(keys) == expected.keys() and total == len(keys) > 0, text
        for key, positions in expected.items():
            assert traces.matching_positions(text, key) == sorted(positions), text
    assert traces.matching_positions("step=1", keys[0]) == []


@pytest.fixture(scope="module")
def odd_traces(tmp_path_factory, make_batch):
    """Four steps whose log-probs are partly infinite or missing; two are of an older workbench, which had no extremes.

    Step 2 lacks the view self. Two steps, of which one is old, are merged.
    """
    folder = tmp_path_factory.mktemp("odd")
    trace_writer, inf, nan = writer(folder), float("inf"), float("nan")
    for step in range(4):
        batch = make_batch(step, views={"student": ("student", "plain")}) if step == 2 else make_batch(step)
        if step != 2:
            batch.scores["self"].logprob[:3] = torch.tensor([nan, nan, nan])  # the first answer was not scored
            batch.scores["self"].logprob[3:5] = torch.tensor([-inf, -3.0])
            batch.scores["student"].logprob[3:5] = torch.tensor([-inf, -inf])  # differences: nan, inf
        trace_writer.write(batch)
        file = folder / "traces" / "rollouts" / f"step-{step:06d}-rank-0.parquet"
        if step in (1, 3):
            rows = pq.read_table(file)
            old = rows.drop_columns([name for name in rows.column_names if name.startswith(("min_", "max_"))])
            write_part(file, old, list_parts(file.parent)[-1].header)
        if step == 1:
            compact(folder)
    return open_traces(folder)


@pytest.mark.parametrize("field", ["information_gap", "abs_information_gap", "capability_gap"])
def test_token_conditions_on_numbers_hold_where_a_scan_says_so(odd_traces, field):
    column = f"abs({field.removeprefix('abs_')})" if field.startswith("abs_") else field
    counts = set()
    for operator, value in itertools.product((">", ">=", "<", "<=", "=", "!="), (-2.0, 0.0, 1.25)):
        condition = f"{column} {'IS DISTINCT FROM' if operator == '!=' else operator} {value}"
        for more, clause in (("", ""), (" token.regime=high", " AND regime = 'high'")):
            scan = f"SELECT DISTINCT step, process_rank, rollout_idx FROM tokens WHERE {condition}{clause}"
            expected = {tuple(row.values()) for row in odd_traces.sql(scan).to_pylist()}
            keys, total = odd_traces.rollout_keys(f"token.{field}{operator}{value}{more}", limit=99)
            assert (set(keys), total) == (expected, len(expected)), (condition, more)
            counts.add(total)
    assert len(counts) > 3, "the conditions hold for too few numbers of answers to tell"


def test_extremes_of_a_gap_are_those_of_recorded_positions(odd_traces):
    query = "SELECT min_information_gap, max_information_gap FROM rollouts WHERE step = 0 ORDER BY rollout_idx"
    rows = [tuple(row.values()) for row in odd_traces.sql(query).to_pylist()]
    assert rows[0] == rows[1] == (math.inf, -math.inf)  # not scored; without tokens
    assert rows[2] == (None, None)  # a difference that is not a number: its tokens must be read
    query = "SELECT information_gap FROM tokens WHERE (step, rollout_idx) = (0, 3)"
    assert rows[3] == 2 * tuple(odd_traces.sql(query)["information_gap"].to_pylist())
    assert odd_traces.sql("SELECT count(max_information_gap) AS n FROM rollouts WHERE step > 0").to_pylist() == [
        {"n": 0}
    ]


def test_token_filters_hold_for_one_token(run):
    traces = open_traces(run)
    names = ("regime", "token_type", "visibility")
    result = traces.sql("SELECT step, rollout_idx, regime, token_type, visibility FROM tokens").to_pylist()
    values = [[None, *sorted({row[name] for row in result if row[name]})] for name in names]
    differing = 0
    for chosen in itertools.product(*values):
        filters = {name: value for name, value in zip(names, chosen, strict=True) if value}
        if not filters:
            continue
        fitting = [row for row in result if all(row[name] == value for name, value in filters.items())]
        right = {(row["step"], row["rollout_idx"]) for row in fitting}
        apart = [traces.rollout_keys(Selection.of(**{name: value}), limit=99)[0] for name, value in filters.items()]
        differing += len(filters) > 1 and len(set.intersection(*map(set, apart))) > len(right)
        keys, total = traces.rollout_keys(Selection.of(**filters), limit=99)
        assert {(step, rollout) for step, _, rollout in keys} == right and total == len(right), filters
        assert traces.count_rollouts(Selection.of(**filters)) == len(right)
    assert differing, "no filters here are met by two tokens of an answer, and by none alone"


def test_rollout_has_its_positions_in_order(run, make_batch):
    traced = open_traces(run).rollout(3, 2)
    assert [position["position"] for position in traced.tokens] == [0, 1, 2, 3, 4]
    assert tuple(position["token_text"] for position in traced.tokens) == make_batch(3).token_texts[2]
    assert traced.tokens[0]["capability_gap"] is not None
    assert len(open_traces(run).rollout(2, 1, probe=True).tokens) == 2
    with pytest.raises(TraceError, match="no rollout 9 of step 3"):
        open_traces(run).rollout(3, 9)


def test_summary_equals_hand_computed(tmp_path, make_batch):
    batch = make_batch(lengths=(2, 1, 0))
    logprob = {"student": [-3.0, -1.0, -2.0], "self": [-1.0, -1.0, -2.0], "teacher": [-0.5, 0.0, -1.0]}
    scores = {
        view: TokenScores(torch.tensor(values), *(torch.zeros(3) for _ in range(2)), torch.zeros(3, dtype=torch.long))
        for view, values in logprob.items()
    }
    loss, loss_normalizer = torch.tensor([2.0, 1.0, 1.0]), torch.ones(3)
    writer(tmp_path).write(dataclasses.replace(batch, scores=scores, loss=loss, loss_normalizer=loss_normalizer))
    summary = open_traces(tmp_path).summary()
    assert (summary["steps"], summary["rollouts"], summary["positions"], summary["probe_rollouts"]) == (1, 3, 3, 0)
    # only the first position's information gap (2.0) exceeds its capability gap (0.5)
    assert summary["information_position_share"] == pytest.approx(1 / 3)
    assert summary["information_loss_share"] == pytest.approx(0.5)
    assert summary["mean_reward"] == 0.5
    assert summary["truncated_share"] == pytest.approx(1 / 3)
    assert summary["bytes_on_disk"] > summary["image_bytes"] > 0


@pytest.mark.parametrize(
    "query", ["DROP VIEW tokens", "SELECT 1; SELECT 2", "COPY (SELECT 1) TO 'x'", "", "ATTACH 'x'"]
)
def test_sql_other_than_one_select_raises(run, query):
    with pytest.raises(TraceError, match="read-only"):
        open_traces(run).sql(query)


@pytest.mark.parametrize(
    "query", ["SELEC 1", "SELECT nothing FROM tokens", "SELECT * FROM nothing", "SELECT * FROM 'no.parquet'"]
)
def test_sql_wrong_query_raises_with_documentation(run, query):
    with pytest.raises(TraceError, match=r"(?s)the query failed.*docs/traces.md"):
        open_traces(run).sql(query)


@pytest.mark.parametrize("size", [0, 3, 700])
def test_truncated_trace_file_is_named(run, size):
    file = run / "traces" / "tokens" / "step-000002-rank-0.parquet"
    traces = open_traces(run)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(TraceError, match=r"tokens/step-000002-rank-0.parquet cannot be read"):
        traces.steps()


def test_damaged_trace_file_is_named(run):
    file = run / "traces" / "tokens" / "step-000002-rank-0.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(len(content) // 2) + content[len(content) // 2 + 4 :])
    with pytest.raises(TraceError, match=r"tokens/step-000002-rank-0.parquet cannot be read"):
        open_traces(run).sql("SELECT * FROM tokens")


def test_trace_file_of_other_version_is_named(run, make_batch, monkeypatch):
    traces = open_traces(run)
    monkeypatch.setattr(schema, "VERSION", 99)
    writer(run).write(make_batch(8))
    monkeypatch.undo()
    with pytest.raises(TraceError, match=r"step-000008-rank-0.parquet has trace version 99"):
        traces.steps()


def test_foreign_parquet_file_is_ignored_or_named(run):
    table = pq.ParquetFile(run / "traces" / "rollouts" / "step-000000-rank-0.parquet").read().replace_schema_metadata()
    pq.write_table(table, run / "traces" / "rollouts" / "mine.parquet")
    assert open_traces(run).steps() == [0, 1, 2, 3]
    pq.write_table(table, run / "traces" / "rollouts" / "merged-000009.parquet")
    with pytest.raises(TraceError, match=r"merged-000009.parquet is a Parquet file but not a trace"):
        open_traces(run).steps()


def test_view_added_later_is_null_before(tmp_path, make_batch):
    trace_writer = writer(tmp_path)
    trace_writer.write(make_batch(0, views={"student": ("student", "plain")}))
    trace_writer.write(make_batch(1))
    for _ in range(2):
        rows = open_traces(tmp_path).sql("SELECT step, logprob_teacher, information_gap FROM tokens").to_pylist()
        assert len(rows) == 18
        assert all((row["step"] == 0) == (row["logprob_teacher"] is None) for row in rows)
        assert all((row["step"] == 0) == (row["information_gap"] is None) for row in rows)
        compact(tmp_path)


def test_reader_is_shared_by_threads(run):
    traces, wrong = open_traces(run), []

    def ask(step: int) -> None:
        for _ in range(5):
            if traces.count_rollouts(f"step={step}") != 4 or len(traces.rollout(step, 2).tokens) != 5:
                wrong.append(step)

    threads = [threading.Thread(target=ask, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


NUM_STEPS = 60
TRAINING = """
import pickle, sys
from pathlib import Path
from workbench.traces.writer import TraceWriter

writer = TraceWriter(Path(sys.argv[1]), method="dopd", policy_text=str, compact_every=5)
for batch in pickle.loads(Path(sys.argv[2]).read_bytes()):
    writer.write(batch)
"""


def test_reader_sees_every_step_whole_and_once(tmp_path, make_batch):
    writer(tmp_path).write(make_batch(0))
    (tmp_path / "batches").write_bytes(pickle.dumps([make_batch(step) for step in range(1, NUM_STEPS)]))
    traces, seen = open_traces(tmp_path), 1
    training = Program(tmp_path / "training", TRAINING, str(tmp_path), str(tmp_path / "batches"))
    num_queries = 0
    while seen < NUM_STEPS:
        is_over = not training.process.is_alive()
        result = traces.sql(
            """SELECT r.step, count(DISTINCT r.rollout_idx) AS rollouts, count(p.position) AS positions
            FROM rollouts AS r LEFT JOIN tokens AS p USING (step, process_rank, rollout_idx)
            GROUP BY r.step ORDER BY r.step"""
        ).to_pylist()
        assert [row["step"] for row in result] == list(range(len(result)))  # no gap, whatever is merged meanwhile
        assert all((row["rollouts"], row["positions"]) == (4, 9) for row in result)
        assert len(result) >= seen
        assert len(result) == NUM_STEPS or not is_over
        seen, num_queries = len(result), num_queries + 1
    assert training.wait() == 0
    assert num_queries > 10
    assert len(list((tmp_path / "traces" / "tokens").glob("merged-*"))) > 5


def test_effective_weight_is_rule_weight_times_loss_weight(tmp_path, make_batch):
    batch = make_batch(lengths=(12, 0, 9, 4))
    light = Regime((Loss("teacher", Divergence("reverse_kl"), 0.5), Loss("self", Divergence("reverse_kl"), 0.1)), "two")
    writer(tmp_path).write(replace(batch, regimes={**batch.regimes, "low": light}))
    traces = open_traces(tmp_path)
    rows = traces.sql("SELECT regime, weight, effective_weight FROM tokens").to_pylist()
    factors = {"low": 0.6, "high": 1.0, "none": 0.0}
    assert {row["regime"] for row in rows} == set(factors)
    assert [row["effective_weight"] for row in rows] == pytest.approx(
        [row["weight"] * factors[row["regime"]] for row in rows]
    )
    assert [(loss.target, loss.weight) for loss in traces.regimes["low"].losses] == [("teacher", 0.5), ("self", 0.1)]


def test_effective_weight_without_loss_weights_is_null(tmp_path, make_batch, monkeypatch):
    older = lambda regime: TracedRegime(regime.target, regime.divergence, regime.meaning)  # noqa: E731
    monkeypatch.setattr("workbench.traces.writer._traced_regime", older)
    writer(tmp_path).write(make_batch())
    rows = open_traces(tmp_path).sql("SELECT DISTINCT regime, effective_weight AS known FROM tokens").to_pylist()
    assert all(row["known"] is None for row in rows if row["regime"] != "none")
