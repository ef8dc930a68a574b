import signal

import numpy as np
import pytest
from processes import Program

from workbench.traces import parts
from workbench.traces.parts import compact, delete_after, list_parts
from workbench.traces.reader import open_traces
from workbench.traces.writer import TraceWriter


def writer(folder, **options) -> TraceWriter:
    return TraceWriter(folder, method="dopd", policy_text=str, **options)


def write_steps(folder, make_batch, steps, *, seed=0) -> None:
    trace_writer = writer(folder)
    for step in steps:
        trace_writer.write(make_batch(step, seed=seed))


def names(folder, table="tokens") -> list[str]:
    return sorted(file.name for file in (folder / "traces" / table).iterdir())


def rows(folder) -> list[dict]:
    traces = open_traces(folder)
    positions = traces.sql("SELECT * FROM tokens ORDER BY step, process_rank, rollout_idx, position").to_pylist()
    return positions + traces.sql("SELECT * FROM rollouts ORDER BY step, process_rank, rollout_idx").to_pylist()


def test_merge_keeps_every_row(tmp_path, make_batch):
    trace_writer = writer(tmp_path)
    for step in range(5):
        trace_writer.write(make_batch(step, top=2))
    writer(tmp_path, rank=1).write(make_batch(2, seed=1))
    before = rows(tmp_path)
    compact(tmp_path)
    assert names(tmp_path) == names(tmp_path, "rollouts") == ["merged-000001.parquet"]
    assert rows(tmp_path) == before


def test_merge_keeps_steps_without_rows(tmp_path, make_batch):
    writer(tmp_path).write(make_batch(0))
    writer(tmp_path).write(make_batch(1, lengths=()))
    compact(tmp_path)
    assert list_parts(tmp_path / "traces" / "tokens")[0].pairs == {(0, 0), (1, 0)}


def test_writer_merges_every_few_steps(tmp_path, make_batch):
    trace_writer = writer(tmp_path, compact_every=3)
    for step in range(7):
        trace_writer.write(make_batch(step))
    assert names(tmp_path) == ["merged-000001.parquet", "merged-000002.parquet", "step-000006-rank-0.parquet"]
    assert open_traces(tmp_path).steps() == list(range(7))


def test_merge_leaves_large_files(tmp_path, make_batch, monkeypatch):
    write_steps(tmp_path, make_batch, range(3))
    monkeypatch.setattr(parts, "SMALL_BYTES", 10)
    compact(tmp_path)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("merged_again", [False, True])
def test_merge_step_written_again_counts_once_as_last_written(tmp_path, make_batch, merged_again):
    write_steps(tmp_path, make_batch, range(4))
    compact(tmp_path)
    write_steps(tmp_path, make_batch, [2, 4], seed=1)
    if merged_again:
        compact(tmp_path)
        assert len(names(tmp_path)) == 2
    result = open_traces(tmp_path).sql("SELECT step, loss FROM tokens ORDER BY step, rollout_idx, position")
    assert result["step"].to_pylist() == sorted([0, 1, 2, 3, 4] * 9)
    expected = [make_batch(step, seed=int(step in (2, 4))).loss.numpy() for step in range(5)]
    np.testing.assert_array_equal(result["loss"].to_numpy(), np.concatenate(expected))


def test_merge_deletes_superseded_files(tmp_path, make_batch):
    write_steps(tmp_path, make_batch, range(2))
    compact(tmp_path)
    write_steps(tmp_path, make_batch, range(3), seed=1)
    compact(tmp_path)
    assert names(tmp_path) == ["merged-000002.parquet"]
    assert rows(tmp_path)[0]["step"] == 0


def test_delete_after_step_reaches_into_merged_files(tmp_path, make_batch):
    write_steps(tmp_path, make_batch, range(4))
    kept = [row for row in rows(tmp_path) if row["step"] <= 1]
    compact(tmp_path)
    write_steps(tmp_path, make_batch, [4, 5])
    compact(tmp_path)
    write_steps(tmp_path, make_batch, [6])
    writer(tmp_path).write_probe(make_batch(5))
    traces = open_traces(tmp_path)
    delete_after(tmp_path, 1)
    assert names(tmp_path) == names(tmp_path, "rollouts") == ["merged-000001.parquet"]
    assert names(tmp_path, "probe_tokens") == []
    assert rows(tmp_path) == kept
    assert traces.steps() == [0, 1]  # a reader that was open before sees it too
    write_steps(tmp_path, make_batch, range(2, 7))
    compact(tmp_path)
    assert traces.count_rollouts() == 7 * 4


def test_delete_removes_half_written_files(tmp_path, make_batch):
    write_steps(tmp_path, make_batch, range(2))
    (tmp_path / "traces" / "tokens" / ".step-000002-rank-0.parquet.77").write_bytes(b"PAR1")
    (tmp_path / "traces" / "tokens" / "step-000009-rank-0.parquet").write_bytes(b"torn")
    torn_image = tmp_path / "traces" / "images" / ".0b449bc9b00a2749.png.77"
    torn_image.parent.mkdir(exist_ok=True)
    torn_image.write_bytes(b"\x89PNG")
    delete_after(tmp_path, 1)
    assert not torn_image.exists()
    assert names(tmp_path) == ["step-000000-rank-0.parquet", "step-000001-rank-0.parquet"]


def test_delete_and_merge_of_nothing_do_nothing(tmp_path):
    delete_after(tmp_path, 3)
    compact(tmp_path)
    assert not (tmp_path / "traces").exists()


KILLED_MERGE = """
import os, sys
from pathlib import Path
import workbench.traces.parts as parts

calls, last = 0, int(sys.argv[2])
def killed_at(event, args):
    global calls
    if event in ("os.rename", "os.remove") and ".parquet" in str(args[0]):
        calls += 1
        if calls > last:
            os.kill(os.getpid(), 9)
sys.addaudithook(killed_at)
parts.compact(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("num_events", range(0, 16, 3))
def test_merge_killed_anywhere_loses_and_doubles_nothing(tmp_path, make_batch, num_events):
    """Four steps in three tables: five renames and removals per table, killed before one of them."""
    write_steps(tmp_path, make_batch, range(4))
    before = rows(tmp_path)
    killed = Program(tmp_path / "killed", KILLED_MERGE, str(tmp_path), str(num_events))
    assert killed.wait() == (0 if num_events >= 15 else -signal.SIGKILL)
    assert rows(tmp_path) == before
    compact(tmp_path)
    assert rows(tmp_path) == before
