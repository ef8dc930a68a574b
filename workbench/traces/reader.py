"""Query the traces of a run with DuckDB, also while it trains. The only way to the data.

    traces = open_traces("runs/my-run")
    traces.sql("SELECT regime, avg(information_gap) AS gap FROM tokens GROUP BY regime").to_pandas()

Each query lists the files again and sees only complete steps. Tables and columns: docs/traces.md.
"""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from workbench.errors import TraceError, require_one_of
from workbench.traces.checksums import check_rows_once, has_checksums, torn
from workbench.traces.parts import TraceFile, list_parts, traces_folder
from workbench.traces.schema import PROBE, TABLES, Header, TracedRegime, TracedView, merge_headers, stored_schema
from workbench.traces.selection import Selection, parse_selection
from workbench.traces.selection_sql import KEY, SelectionSQL
from workbench.traces.views import regime_table, view_sql, without_rows

Result = TypeVar("Result")
Key = tuple[int, int, int]  # step, process_rank, rollout_idx
MEMORY = "512MB"  # limit for queries, which spill to disk beyond it
_MOST_IDLE = 8  # idle cursors kept
_MOST_REMEMBERED = 32  # cached results
_LISTED = f"""{KEY}, example_id, sample_idx, domain, question, answer, sampled_by, finished, reward, num_positions,
    mean_capability_gap AS capability_gap, mean_loss AS loss, mean_information_gap AS information_gap,
    total_contribution AS contribution, regime_counts AS regimes"""  # columns of a listed rollout, besides its text
_ATTEMPTS = 20  # a file may be merged away between listing and reading, at most every hundred steps


class NoTraces(TraceError):
    """A folder without traces."""


@dataclass(frozen=True)
class TracedRollout:
    """One rollout with all its records. `row` and `tokens` have the columns of docs/traces.md."""

    row: dict
    tokens: tuple[dict, ...]
    views: dict[str, TracedView]
    regimes: dict[str, TracedRegime]
    folder: Path  # base of relative image paths

    def images(self, view: str | None = None) -> tuple[Path, ...]:
        """Paths of the example's images, or of the images of a view."""
        return tuple(self.folder / name for name in self.row["images" if view is None else f"images_{view}"] or ())


def open_traces(folder: str | Path) -> "Traces":
    """Open the traces of a run folder or of a traces folder. Raises NoTraces, or TraceError if a file is damaged."""
    folder = Path(folder)
    for candidate in (traces_folder(folder), folder):
        if any(list_parts(candidate / table) for table in TABLES):
            return Traces(candidate)
    if not folder.exists():
        raise NoTraces(f"{folder} does not exist. Give the folder of a run, as in runs/my-run.")
    remedy = "Give the folder of a run (with config.yaml), wait for its first step, or train with trace.every above 0."
    raise NoTraces(f"{folder} holds no traces. {remedy}")


class Traces:
    """Queries over one run's traces. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        spill = Path(tempfile.gettempdir()) / f"workbench-duckdb-{os.getpid()}"  # created on demand
        self._database = duckdb.connect(
            config={
                "python_enable_replacements": False,  # otherwise local variables are tables
                "memory_limit": MEMORY,
                "temp_directory": str(spill),
            }
        )
        self._database.execute("SET GLOBAL parquet_metadata_cache = true")
        self._headers: dict = {}
        self._results = functools.lru_cache(_MOST_REMEMBERED)(lambda files, read, *arguments: read(self, *arguments))
        self._idle: dict[tuple, duckdb.DuckDBPyConnection] = {}  # by files: cursors with views over them

    def sql(self, query: str, params: Sequence | dict | None = None) -> pa.Table:
        """Run one SELECT, with parameters as `?` or `$name`; `.to_pandas()` converts the result.

        Raises: TraceError if the query is not a SELECT or fails, or if a file is damaged or of another schema version.
        """
        try:
            statements = self._database.cursor().extract_statements(query)
        except duckdb.Error as error:
            raise _query_error(error) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise TraceError("traces are read-only. Give one SELECT statement.")
        return self._run((query, params))[0]

    @property
    def method(self) -> str:
        """Name of the run's method."""
        return self._header().method

    @property
    def views(self) -> dict[str, TracedView]:
        """The method's views by name."""
        return self._header().views

    @property
    def regimes(self) -> dict[str, TracedRegime]:
        """The method's regimes by name, in the router's order."""
        return self._header().regimes

    def steps(self, table: str = "rollouts") -> list[int]:
        """Return the steps of a table in order."""
        require_one_of("table", table, TABLES, TraceError)
        return self._run((f"SELECT DISTINCT step FROM {table} ORDER BY step", None))[0]["step"].to_pylist()

    def rollouts(self, selection: Selection | str = "", *, limit: int = 50, offset: int = 0) -> pa.Table:
        """Return a page of the rollouts of a selection. Raises TraceError for a wrong selection."""
        selection = _selection(selection)
        keys, _ = self.rollout_keys(selection, limit=limit, offset=offset)
        return self.rollouts_at(keys, probe=selection.source == "probes")

    def rollout_keys(
        self, selection: Selection | str = "", *, limit: int = 50, offset: int = 0
    ) -> tuple[list[Key], int]:
        """Return the keys of a page of `rollouts`, and the number of rollouts on all pages."""
        selection = _selection(selection)
        sql = SelectionSQL(selection, self.regimes, self.views)
        direction = "DESC" if selection.descending else "ASC"
        order = f"value {direction} NULLS LAST, step {direction if selection.order == 'step' else 'DESC'}"
        query = f"""
            {sql.kept},
            page AS (SELECT * FROM kept ORDER BY {order}, process_rank, rollout_idx LIMIT $limit OFFSET $offset)
            SELECT {KEY}, total FROM (SELECT count(*) AS total FROM kept) LEFT JOIN page ON true
            ORDER BY {order}, process_rank, rollout_idx"""
        params = {**sql.params, "limit": limit, "offset": offset}
        rows = self._run((query, params), steps=_steps(selection))[0].to_pylist()
        keys = [(row["step"], row["process_rank"], row["rollout_idx"]) for row in rows if row["step"] is not None]
        return keys, rows[0]["total"]

    def rollouts_at(self, keys: Sequence[Key], *, probe: bool = False, brief: bool = False) -> pa.Table:
        """Return the rollouts with these keys, in this order. brief: only the beginnings of their texts."""
        values = ", ".join(f"({idx}, {', '.join(str(int(part)) for part in key)})" for idx, key in enumerate(keys))
        text = "completion_preview AS completion" if brief else "completion"
        query = f"""
            SELECT {_LISTED}, {text} FROM {PROBE if probe else ""}rollouts
            JOIN (VALUES {values or "(NULL, NULL, NULL, NULL)"}) AS page(idx, {KEY}) USING ({KEY})
            ORDER BY page.idx"""
        return self._run((query, None), steps={key[0] for key in keys})[0]

    def siblings(self, key: Key, *, probe: bool = False) -> pa.Table:
        """Return the rollouts of a key's step to the same example, its own among them; none if it was not recorded."""
        table = f"{PROBE if probe else ''}rollouts"
        example = f"SELECT example_id FROM {table} WHERE ({KEY}) = {tuple(key)}"
        query = f"SELECT {_LISTED}, completion FROM {table} WHERE step = {key[0]} AND example_id = ({example})"
        return self._run((f"{query} ORDER BY rollout_idx, process_rank", None), steps={key[0]})[0]

    def count_rollouts(self, selection: Selection | str = "", *, before: Key | None = None) -> int:
        """Count the rollouts of a selection. before: only those that precede this key, newest first."""
        selection = _selection(selection)
        sql = SelectionSQL(selection, self.regimes, self.views)
        precedes = "" if before is None else f" WHERE (-step, process_rank, rollout_idx) < {-before[0], *before[1:]}"
        query = f"{sql.kept} SELECT count(*) FROM kept{precedes}"
        return self._run((query, sql.params), steps=_steps(selection))[0][0][0].as_py()

    def matching_positions(self, selection: Selection | str, key: Key) -> list[int]:
        """Return the positions of a rollout's tokens that meet all conditions on tokens; none without conditions."""
        selection = _selection(selection)
        if not selection.of_tokens:
            return []
        sql = SelectionSQL(selection, self.regimes, self.views, of_tokens=True)
        query = f"SELECT position FROM {sql.tokens} WHERE ({KEY}) = {tuple(key)} AND {sql.where} ORDER BY position"
        return self._run((query, sql.params), steps={key[0]})[0]["position"].to_pylist()

    def rollout(self, step: int, rollout_idx: int, *, process_rank: int = 0, probe: bool = False) -> TracedRollout:
        """Return one rollout with its positions. Raises TraceError if it was not recorded."""
        prefix = PROBE if probe else ""
        where = "WHERE step = ? AND process_rank = ? AND rollout_idx = ?"
        params = [step, process_rank, rollout_idx]
        rows, tokens = self._run(
            (f"SELECT * FROM {prefix}rollouts {where}", params),
            (f"SELECT * FROM {prefix}tokens {where} ORDER BY position", params),
            steps={step},
        )
        if rows.num_rows == 0:
            raise TraceError(self._missing_rollout(step, rollout_idx, process_rank, probe))
        header = self._header()
        return TracedRollout(
            rows.to_pylist(maps_as_pydicts="strict")[0],
            tuple(tokens.to_pylist()),
            header.views,
            header.regimes,
            self.folder,
        )

    def summary(self) -> dict:
        """Return counts, sizes on disk and headline shares (None where unknown).

        information_* counts positions whose absolute information gap exceeds their absolute capability gap.
        """
        counts = {name: f"(SELECT count(*) FROM {name})" for name in (f"{PROBE}rollouts", f"{PROBE}tokens")}
        positions, rollouts = self._run(
            (
                f"""SELECT CAST(coalesce(sum(num_positions), 0) AS BIGINT) AS positions,
                {", ".join(f"{query} AS {name}" for name, query in counts.items())},
                sum(num_information_dominated) / sum(num_positions) FILTER (num_information_dominated IS NOT NULL)
                    AS information_position_share,
                sum(information_dominated_abs_loss)
                    / nullif(sum(abs_loss) FILTER (num_information_dominated IS NOT NULL), 0)
                    AS information_loss_share
                FROM aggregates""",
                None,
            ),
            (
                """SELECT count(*) AS rollouts, count(DISTINCT step) AS steps, min(step) AS first_step,
                max(step) AS last_step, avg(reward) AS mean_reward, avg(CAST(NOT finished AS INT)) AS truncated_share
                FROM rollouts""",
                None,
            ),
        )
        sizes = {name: _bytes_below(self.folder / name) for name in (*TABLES, "images")}
        return {
            "method": self.method,
            **rollouts.to_pylist()[0],
            **positions.to_pylist()[0],
            "bytes_on_disk": sum(sizes.values()),
            "image_bytes": sizes["images"],
        }

    def cached(self, read: Callable[..., Result], *arguments: Hashable) -> Result:
        """Return `read(traces, *arguments)`, cached by `read`, its arguments and the current files."""
        return self._results(_stamps(self._again(self._list)), read, *arguments)

    def _missing_rollout(self, step: int, rollout_idx: int, process_rank: int, probe: bool) -> str:
        """Build the error message for a missing rollout, with the recorded ones."""
        table, word = (f"{PROBE}rollouts", "probe") if probe else ("rollouts", "rollout")
        steps = self.steps(table)
        of_process = f" and process {process_rank}" if process_rank else ""
        missing = f"{self.folder} has no {word} {rollout_idx} of step {step}{of_process}."
        if not steps:
            return f"{missing} No {word} is recorded in it."
        if step not in steps:
            return f"{missing} Steps with recorded {word}s: {_few(steps)}. Choose one of them."
        query = f"SELECT rollout_idx FROM {table} WHERE step = ? AND process_rank = ? ORDER BY rollout_idx"
        recorded = self._run((query, [step, process_rank]))[0]["rollout_idx"].to_pylist()
        return f"{missing} Its {word}s are {_few(recorded) or 'of other processes'}. Choose one of them."

    def _header(self) -> Header:
        return _header(self._again(self._list))

    def _list(self) -> dict[str, list[TraceFile]]:
        """List the files of every table; rollouts first, since they are written after their positions."""
        return {table: list_parts(self.folder / table, self._headers) for table in TABLES}

    def _run(self, *queries: tuple[str, Sequence | dict | None], steps: Container[int] | None = None) -> list[pa.Table]:
        """Run queries over the same files: all, or those of certain steps."""
        return self._again(lambda: self._run_once(queries, steps))

    def _run_once(self, queries: tuple, steps: Container[int] | None) -> list[pa.Table]:
        parts = self._list()
        header = _header(parts)
        text = " ".join(query for query, _ in queries)
        parts = {
            table: [part for part in of_table if steps is None or part.has(steps)]
            for table, of_table in parts.items()
            if re.search(rf"\b{table}\b", text, re.IGNORECASE)
        }
        files = [part.file for of_table in parts.values() for part in of_table]
        check_rows_once(files)
        try:
            with self._cursor(parts, header) as cursor:
                return [cursor.sql(query, params=params).to_arrow_table() for query, params in queries]
        except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
            raise _query_error(error) from error
        except duckdb.Error as error:
            check_rows_once(files)  # raises FileNotFoundError if one was merged away
            self._check_pages(file for file in files if not has_checksums(file))
            raise _query_error(error) from error

    def _check_pages(self, files: Iterable[Path]) -> None:
        """Raise TraceError at the first file whose pages DuckDB cannot read, as with a damaged header of a page."""
        for file in files:
            try:
                rows = self._database.cursor().execute(
                    "SELECT * FROM read_parquet(?, hive_partitioning = false)", [str(file)]
                )
                for _ in rows.fetch_record_batch():
                    pass
            except duckdb.Error as error:
                raise torn(file, error) from error

    @contextlib.contextmanager
    def _cursor(self, parts: dict[str, list[TraceFile]], header: Header) -> Iterator[duckdb.DuckDBPyConnection]:
        """Provide a cursor with views over these files, reusing an idle one for the same files."""
        key = _stamps(parts), repr(header)
        cursor = self._idle.pop(key, None)  # no other thread can take it now
        if cursor is None:
            cursor = self._database.cursor()  # with its own views
            cursor.register("regimes", regime_table(header))
            for table in parts:
                schema = stored_schema(table, tuple(header.views))
                cursor.register(f"no_{table}", without_rows(schema))
                cursor.execute(view_sql(table, parts[table], header, set(schema.names)))
        yield cursor  # not given back after an error
        self._idle[key] = cursor
        for oldest in list(self._idle)[:-_MOST_IDLE]:
            self._idle.pop(oldest, None)

    def _again(self, read: Callable[[], Result]) -> Result:
        """Return `read()`, and repeat it if a file was merged away meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return read()
            except FileNotFoundError as error:
                gone = error.filename
        raise TraceError(f"{gone} and other files were deleted during the query. Check that the run exists, and retry.")


def _selection(selection: Selection | str) -> Selection:
    """The selection itself, or as read from text. Raises TraceError for one of evaluations, which no trace holds."""
    selection = parse_selection(selection) if isinstance(selection, str) else selection
    require_one_of("source of a trace's answers", selection.source, ("training", "probes"), TraceError)
    return selection


def _steps(selection: Selection) -> set[int] | None:
    """The one step that a selection asks for; None: any."""
    step = selection.value_of("step")
    return None if step is None else {int(step)}


def _stamps(parts: dict[str, list[TraceFile]]) -> tuple:
    """Key of a cache: the files, and which of their rows count."""
    files = ((table, part.file, part.hidden, id(part.header)) for table in parts for part in parts[table])
    return tuple(parts), tuple(files)


def _few(numbers: list[int]) -> str:
    """Format a list of numbers; only the first and last of many."""
    texts = [str(number) for number in numbers]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:3], f"… {texts[-1]}"])


def _header(parts: dict[str, list[TraceFile]]) -> Header:
    headers = [part.header for of_table in parts.values() for part in of_table]
    if not headers:
        raise TraceError("the traces were deleted: the folder has no files. Open a run that has traces.")
    return merge_headers(headers)


def _query_error(error: duckdb.Error) -> TraceError:
    return TraceError(f"the query failed: {error}\nCorrect it; tables and columns are listed in docs/traces.md.")


def _bytes_below(folder: Path) -> int:
    """Return the size of a folder's files, skipping files that are deleted meanwhile."""
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
