"""What is summed when it is written equals what the positions add up to when they are read."""

import pytest

from workbench.traces.parts import compact
from workbench.traces.reader import open_traces
from workbench.traces.writer import TraceWriter

SUMS = """
    count(*) AS num_positions, sum(tokens.loss) AS loss, sum(contribution) AS contribution,
    sum(abs(contribution)) AS abs_loss,
    sum(capability_gap) AS capability_gap, sum(information_gap) AS information_gap,
    sum(abs(capability_gap)) AS abs_capability_gap, sum(abs(information_gap)) AS abs_information_gap,
    sum(CAST(abs(information_gap) > abs(capability_gap) AS INT)) AS num_information_dominated,
    sum(abs(contribution) * CAST(abs(information_gap) > abs(capability_gap) AS INT)) AS information_dominated_abs_loss,
    sum(entropy_student) AS entropy_student, sum(exp(max_logprob_student)) AS confidence_student"""
KEY = "step, process_rank, domain, token_type, visibility, regime"


@pytest.fixture
def traces(tmp_path, make_batch):
    writer = TraceWriter(tmp_path, method="dopd", policy_text=str)
    for step in range(3):
        writer.write(make_batch(step, lengths=(3, 0, 5, 1)))
    TraceWriter(tmp_path, method="dopd", policy_text=str, rank=1).write(make_batch(1, seed=3))
    return open_traces(tmp_path)


@pytest.mark.parametrize("merged", [False, True])
def test_aggregates_equal_sums_of_positions(traces, merged):
    if merged:
        compact(traces.folder.parent)
    joined = "tokens JOIN rollouts USING (step, process_rank, rollout_idx)"
    expected = traces.sql(f"SELECT {KEY}, {SUMS} FROM {joined} GROUP BY ALL ORDER BY ALL").to_pylist()
    result = traces.sql(f"SELECT {', '.join(expected[0])} FROM aggregates ORDER BY ALL").to_pylist()
    assert len(result) == len(expected) > 10
    for item, other in zip(result, expected, strict=True):
        for name, value in item.items():
            is_number = not isinstance(value, str | None)
            # entropies are stored to three digits
            assert value == (pytest.approx(float(other[name]), rel=1e-3, abs=1e-6) if is_number else other[name]), name


def test_rollouts_hold_means_of_positions(traces):
    expected = traces.sql(
        """SELECT step, process_rank, rollout_idx, avg(capability_gap) AS mean_capability_gap,
                  avg(information_gap) AS mean_information_gap, avg(loss) AS mean_loss,
                  sum(contribution) AS total_contribution, histogram(regime) AS regime_counts,
                  list_sort(list_distinct(list(token_type))) AS token_types,
                   list_sort(list_distinct(list(visibility))) AS visibilities
           FROM tokens GROUP BY ALL ORDER BY ALL"""
    ).to_pylist()
    columns = ", ".join(
        f"list_sort({name}) AS {name}" if name in ("token_types", "visibilities") else name for name in expected[0]
    )
    result = traces.sql(f"SELECT {columns} FROM rollouts WHERE num_positions > 0 ORDER BY ALL").to_pylist()
    assert len(result) == len(expected) == 4 * 3
    for item, other in zip(result, expected, strict=True):
        assert sorted(item.pop("regime_counts")) == sorted(other.pop("regime_counts"))
        assert (item.pop("token_types"), item.pop("visibilities")) == (
            other.pop("token_types"),
            other.pop("visibilities") or [],
        )
        assert item == pytest.approx(other, rel=1e-5)


def test_rollouts_empty_answer_has_no_means(traces):
    row = traces.sql("SELECT * FROM rollouts WHERE num_positions = 0 LIMIT 1").to_pylist()[0]
    assert row["mean_loss"] is None and row["mean_capability_gap"] is None
    assert row["total_contribution"] == 0
    assert (row["regime_counts"], row["token_types"], row["visibilities"]) == ([], [], [])


def test_aggregates_of_missing_gaps_are_null(tmp_path, make_batch):
    views = {"student": ("student", "plain"), "teacher": ("teacher", "plain")}
    TraceWriter(tmp_path, method="opd", policy_text=str).write(make_batch(views=views))
    traces = open_traces(tmp_path)
    assert traces.sql("SELECT count(*) AS n FROM aggregates WHERE information_gap IS NOT NULL")["n"][0].as_py() == 0
    assert traces.sql("SELECT sum(entropy_teacher) > 0 AS known FROM aggregates")["known"][0].as_py()
    assert traces.rollouts("token.token_type=tag").num_rows == traces.count_rollouts("token.token_type=tag") == 2
    assert traces.rollouts("example=e2").num_rows == 1


def test_totals_follow_files_of_the_reader(traces, make_batch):
    assert traces.count_rollouts() == traces.count_rollouts() == 16
    TraceWriter(traces.folder.parent, method="dopd", policy_text=str).write(make_batch(1, lengths=(2, 2)))
    assert traces.count_rollouts() == 14  # step 1 was written again, with two answers instead of four
    compact(traces.folder.parent)
    assert traces.count_rollouts() == 14
