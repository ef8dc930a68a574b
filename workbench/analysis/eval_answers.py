"""The answers of a run's evaluations, selected by the same filters as the answers in its traces.

The key of an answer is its step and the index of its line in that step's file of evals/. Evaluations record no tokens.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from workbench.analysis.evals import answers_of, indices_of, marks_of, no_evals
from workbench.analysis.table import Table, table
from workbench.errors import TraceError
from workbench.evals.records import EvalRecord
from workbench.traces.selection import Selection
from workbench.traces.selection_sql import SelectionSQL

Key = tuple[int, int, int]  # step, 0, index of the line: as those of the answers in traces
COLUMNS = ["step", "rollout", "process", "example", "domain", "visibility", "policy", "context", "question", "answer"]
COLUMNS += ["expected", "right", "confidence", "tokens", "dataset"]
NO_MATCH = "No evaluation answer matches these filters. Remove a filter, or choose another step."
_NAMES = {"text": "completion", "length": "num_positions"}  # column of rollouts -> field of a record


class EvaluationAnswers:
    """Evaluation answers of a run; each call sees the evaluations that are complete now."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def rows(self, selection: Selection, *, limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """Answers that match, in the selection's order. Raises TraceError for a condition that is not possible."""
        sql = SelectionSQL(selection, (), ())
        direction = "DESC" if selection.descending else "ASC"
        order = f"{sql.value} {direction} NULLS LAST, step DESC, rollout_idx"
        query = f"SELECT * FROM records WHERE {sql.where} ORDER BY {order} LIMIT $limit OFFSET $offset"
        return self._query(query, {**sql.params, "limit": limit, "offset": offset})

    def count(self, selection: Selection) -> int:
        """Number of answers that match."""
        sql = SelectionSQL(selection, (), ())
        return self._query(f"SELECT count(*) AS total FROM records WHERE {sql.where}", sql.params)[0]["total"]

    def keys(self, selection: Selection, *, page_idx: int, size: int) -> tuple[list[Key], int]:
        """Keys of a page's answers, and the number of answers on all pages."""
        rows = self.rows(selection, limit=size, offset=page_idx * size)
        return [(row["step"], 0, row["rollout_idx"]) for row in rows], self.count(selection)

    def page(self, selection: Selection, *, page_idx: int, size: int) -> Table:
        """A page of answers."""
        rows = [_listed(row) for row in self.rows(selection, limit=size, offset=page_idx * size)]
        empty = NO_MATCH if _records(*marks_of(self.run_dir)).num_rows else no_evals(self.run_dir)
        return table(rows, COLUMNS, run=self.run_dir.name, empty=empty, units={"tokens": "tokens"})

    def get(self, step: int, index: int) -> dict[str, Any]:
        """One answer. Raises TraceError with the evaluated steps, or their number of answers, if it does not exist."""
        rows = self._query("SELECT * FROM records WHERE step = $step ORDER BY rollout_idx", {"step": step})
        if index < len(rows):
            return rows[index]
        if rows:
            raise TraceError(
                f"the evaluation of step {step} has no answer {index}. Its answers are 0 to {len(rows) - 1}."
            )
        steps = self.choices()["step"]
        recorded = f"Evaluated steps: {', '.join(map(str, steps))}." if steps else no_evals(self.run_dir)
        raise TraceError(f"step {step} was not evaluated. {recorded}")

    def choices(self) -> dict[str, list]:
        """Values of the filters that evaluation answers have."""
        columns = _records(*marks_of(self.run_dir)).select(["step", "domain", "visibility"]).to_pydict()
        return {name: sorted(set(values) - {None, ""}) for name, values in columns.items()}

    def _query(self, query: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        with duckdb.connect(config={"python_enable_replacements": False}) as database:
            database.register("records", _records(*marks_of(self.run_dir)))
            return database.sql(query, params=params).to_arrow_table().to_pylist()


@functools.lru_cache(maxsize=4)
def _records(run_dir: Path, marks: tuple) -> pa.Table:
    """The records as a table with the names of the table `rollouts`; marks as a key of the cache."""
    records = answers_of(run_dir)
    columns: dict[str, Any] = {
        _NAMES.get(field.name, field.name): [getattr(record, field.name) for record in records]
        for field in dataclasses.fields(EvalRecord)
    }
    columns["rollout_idx"] = indices_of(records)
    return pa.table({**columns, **{name: pa.array(columns[name], pa.int64()) for name in ("step", "rollout_idx")}})


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    renamed = {"rollout": "rollout_idx", "example": "example_id", "answer": "completion", "expected": "answer"}
    renamed["tokens"] = "num_positions"
    right = None if row["reward"] is None else row["reward"] == 1.0
    values = {name: row.get(renamed.get(name, name)) for name in COLUMNS}
    return {**values, "process": 0, "right": right}
