"""Rows with one odd value are read, skipped or refused in a sentence; `python -m benchmarks bad_rows` tries more."""

from benchmarks import bad_rows


def test_odd_values_end_without_traceback():
    outcome = bad_rows.run(250, seed=0)
    assert outcome.faults == []
    assert outcome.num_rows == 250
    assert outcome.counts["imported"] > 20 and outcome.counts["loaded"] > 10 and outcome.counts["refused"] > 50


def test_odd_values_fault_is_reported(monkeypatch):
    def broken(path):
        raise KeyError(path)

    monkeypatch.setattr(bad_rows.wb, "load_examples", broken)
    outcome = bad_rows.run(10, seed=0)
    assert outcome.faults and "KeyError" in outcome.faults[0]
