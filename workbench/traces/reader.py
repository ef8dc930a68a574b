"""Reads the traces of a run, also while it is training: DuckDB over the Parquet files. The only way to the data.

    traces = open_traces("runs/my-run")
    traces.sql("SELECT regime, avg(information_gap) AS gap FROM positions GROUP BY regime").to_pandas()

Each query lists the files anew and sees whole steps only. Tables and columns: docs/traces.md.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import TraceError, unknown
from workbench.traces.parts import Part, list_parts, torn, traces_folder
from workbench.traces.schema import (
    PROBE,
    TABLES,
    Header,
    TracedRegime,
    TracedView,
    derived_columns,
    merge_headers,
    stored_schema,
)

Result = TypeVar("Result")
ORDERS = ("step", "capability_gap", "information_gap", "loss")
GROUPS = ("step", "kind", "truth", "domain")
_KEY = "step, process_rank, rollout_idx"
_ATTEMPTS = 8  # a file may be merged away between listing and reading; that happens every hundred steps at most


@dataclass(frozen=True)
class TracedRollout:
    """One answer with everything recorded of it. `row` and `positions` have the columns of docs/traces.md."""

    row: dict
    positions: tuple[dict, ...]
    views: dict[str, TracedView]
    regimes: dict[str, TracedRegime]
    folder: Path  # relative image paths start here

    def images(self, view: str | None = None) -> tuple[Path, ...]:
        """Files of the example's images, or of those that a view was shown."""
        return tuple(self.folder / name for name in self.row["images" if view is None else f"images_{view}"] or ())


def open_traces(folder: str | Path) -> "Traces":
    """The traces of a run folder, or of its traces folder itself. Raises TraceError if there are none."""
    folder = Path(folder)
    for candidate in (traces_folder(folder), folder):
        if any(list_parts(candidate / table) for table in TABLES):
            return Traces(candidate)
    if not folder.exists():
        raise TraceError(f"{folder} does not exist. Give the folder of a run, as in runs/my-run.")
    raise TraceError(
        f"{folder} holds no traces. Give the folder of a run (it has config.yaml and traces/), wait for the run's first "
        "step, or train with tracing switched on."
    )


class Traces:
    """Queries over one run's traces. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._database = duckdb.connect(config={"python_enable_replacements": False})  # or local variables are tables
        self._headers: dict = {}

    def sql(self, query: str, params: Sequence | dict | None = None) -> pa.Table:
        """The result of one SELECT; `.to_pandas()` makes a data frame of it. Values go in as `?` or `$name`.

        Raises: TraceError if the query is not a SELECT or fails, or if a file is torn or of another schema version.
        """
        try:
            statements = self._database.cursor().extract_statements(query)
        except duckdb.Error as error:
            raise _query_error(error) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise TraceError("traces are read only: give one SELECT statement.")
        return self._run((query, params))[0]

    @property
    def method(self) -> str:
        """Name of the method that was trained."""
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
        """The steps that a table holds, in order."""
        if table not in TABLES:
            raise TraceError(unknown("table", table, TABLES))
        return self._run((f"SELECT DISTINCT step FROM {table} ORDER BY step", None))[0]["step"].to_pylist()

    def rollouts(
        self,
        step: int | None = None,
        *,
        regime: str | None = None,
        domain: str | None = None,
        truth: str | None = None,
        right: bool | None = None,
        order: str = "step",
        limit: int = 50,
        offset: int = 0,
        probe: bool = False,
    ) -> pa.Table:
        """A page of answers, the latest step or the largest mean per position first.

        regime and truth keep answers with at least one such position; right keeps rewards of 1 (True) or below (False).
        """
        if order not in ORDERS:
            raise TraceError(unknown("order", order, ORDERS))
        where, params = self._filters(step, regime, domain, truth, right, probe)
        prefix = PROBE if probe else ""
        query = f"""
            WITH chosen AS (
                SELECT {_KEY}, example_id, sample_idx, domain, question, answer, completion, source_policy, finished,
                       reward, num_positions
                FROM {prefix}rollouts WHERE {where}),
            aggregates AS (
                SELECT {_KEY}, avg(capability_gap) AS capability_gap, avg(information_gap) AS information_gap,
                       avg(loss) AS loss, sum(contribution) AS contribution, histogram(regime) AS regimes
                FROM {prefix}positions SEMI JOIN chosen USING ({_KEY}) GROUP BY {_KEY})
            SELECT * FROM chosen LEFT JOIN aggregates USING ({_KEY})
            ORDER BY {order} DESC NULLS LAST, step DESC, process_rank, rollout_idx LIMIT $limit OFFSET $offset"""
        return self._run((query, {**params, "limit": limit, "offset": offset}))[0]

    def count_rollouts(
        self,
        step: int | None = None,
        *,
        regime: str | None = None,
        domain: str | None = None,
        truth: str | None = None,
        right: bool | None = None,
        probe: bool = False,
    ) -> int:
        """How many answers the same filters keep."""
        where, params = self._filters(step, regime, domain, truth, right, probe)
        table = f"{PROBE if probe else ''}rollouts"
        return self._run((f"SELECT count(*) AS n FROM {table} WHERE {where}", params))[0]["n"][0].as_py()

    def rollout(self, step: int, rollout_idx: int, *, process_rank: int = 0, probe: bool = False) -> TracedRollout:
        """One answer with its positions. Raises TraceError if it was not recorded."""
        prefix = PROBE if probe else ""
        where = "WHERE step = ? AND process_rank = ? AND rollout_idx = ?"
        params = [step, process_rank, rollout_idx]
        rows, positions = self._run(
            (f"SELECT * FROM {prefix}rollouts {where}", params),
            (f"SELECT * FROM {prefix}positions {where} ORDER BY position", params),
        )
        if rows.num_rows == 0:
            raise TraceError(
                f"{self.folder} has no {'probe' if probe else 'rollout'} {rollout_idx} of step {step} and process "
                f"{process_rank}. steps() and rollouts() list what was recorded."
            )
        header = self._header()
        return TracedRollout(
            rows.to_pylist(maps_as_pydicts="strict")[0],
            tuple(positions.to_pylist()),
            header.views,
            header.regimes,
            self.folder,
        )

    def regime_shares(self, by: str = "step", *, probe: bool = False) -> pa.Table:
        """Shares of positions and of loss that each regime has in every step (or kind, truth, domain).

        Every group lists every regime, also with share 0. Loss counts by size: rewards make negative ones too.
        """
        if by not in GROUPS:
            raise TraceError(unknown("group", by, GROUPS))
        prefix = PROBE if probe else ""
        joined = f"JOIN {prefix}rollouts USING ({_KEY})" if by == "domain" else ""
        query = f"""
            WITH cells AS (
                SELECT {by}, regime, count(*) AS positions, sum(abs(contribution)) AS loss
                FROM {prefix}positions {joined} GROUP BY {by}, regime),
            totals AS (SELECT {by}, sum(positions) AS positions, sum(loss) AS loss FROM cells GROUP BY {by})
            SELECT totals.{by}, regimes.regime, regimes.source,
                   CAST(coalesce(cells.positions, 0) AS BIGINT) AS num_positions,
                   coalesce(cells.positions, 0) / totals.positions AS position_share,
                   coalesce(cells.loss, 0) / nullif(totals.loss, 0) AS loss_share
            FROM totals CROSS JOIN regimes
            LEFT JOIN cells ON cells.{by} IS NOT DISTINCT FROM totals.{by} AND cells.regime = regimes.regime
            ORDER BY totals.{by}, regimes.idx"""
        return self._run((query, None))[0]

    def summary(self) -> dict:
        """What there is, what it takes, and the shares that a report opens with (None where nothing is known).

        information_* counts positions whose information gap exceeds their capability gap.
        """
        counts = {f"{name}s": f"(SELECT count(*) FROM {name}s)" for name in ("rollout", "position")}
        counts |= {f"{PROBE}{name}": query.replace("FROM ", f"FROM {PROBE}") for name, query in counts.items()}
        positions, rollouts = self._run(
            (
                f"""SELECT {", ".join(f"{query} AS {name}" for name, query in counts.items())},
                avg(CAST(information_gap > capability_gap AS INT)) AS information_position_share,
                sum(abs(contribution)) FILTER (information_gap > capability_gap)
                    / nullif(sum(abs(contribution)) FILTER (information_gap IS NOT NULL AND capability_gap IS NOT NULL), 0)
                    AS information_loss_share
                FROM positions""",
                None,
            ),
            (
                """SELECT count(DISTINCT step) AS steps, min(step) AS first_step, max(step) AS last_step,
                avg(reward) AS mean_reward, avg(CAST(NOT finished AS INT)) AS cut_share FROM rollouts""",
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

    def _filters(
        self,
        step: int | None,
        regime: str | None,
        domain: str | None,
        truth: str | None,
        right: bool | None,
        probe: bool,
    ) -> tuple[str, dict]:
        if regime is not None and regime not in self.regimes:
            raise TraceError(unknown("regime", regime, self.regimes))
        found = f"({_KEY}) IN (SELECT ({_KEY}) FROM {PROBE if probe else ''}positions WHERE"
        conditions = {
            "step": "step = $step",
            "domain": "domain = $domain",
            "right": "(reward = 1) = $right",
            "regime": f"{found} regime = $regime)",
            "truth": f"{found} truth = $truth)",
        }
        values = {"step": step, "domain": domain, "right": right, "regime": regime, "truth": truth}
        params = {name: value for name, value in values.items() if value is not None}
        return " AND ".join(conditions[name] for name in params) or "true", params

    def _header(self) -> Header:
        return _header(self._again(self._list))

    def _list(self) -> dict[str, list[Part]]:
        """The files of every table; rollouts first, since a rollout appears after its positions."""
        return {table: list_parts(self.folder / table, self._headers) for table in TABLES}

    def _run(self, *queries: tuple[str, Sequence | dict | None]) -> list[pa.Table]:
        """Results of queries that all see the same files."""
        return self._again(lambda: self._run_once(queries))

    def _run_once(self, queries: tuple[tuple[str, Sequence | dict | None], ...]) -> list[pa.Table]:
        parts = self._list()
        header = _header(parts)
        cursor = self._database.cursor()  # its views are its own
        cursor.register("regimes", _regime_table(header))
        text = " ".join(query for query, _ in queries)
        used = [table for table in TABLES if re.search(rf"\b{table}\b", text, re.IGNORECASE)]
        try:
            for table in used:
                schema = stored_schema(table, tuple(header.views))
                cursor.register(f"no_{table}", _without_rows(schema))
                cursor.execute(_view_sql(table, parts[table], set(schema.names)))
            return [cursor.sql(query, params=params).to_arrow_table() for query, params in queries]
        except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
            raise _query_error(error) from error
        except duckdb.Error as error:
            _check_files(parts, used)
            raise _query_error(error) from error
        finally:
            cursor.close()

    def _again(self, read: Callable[[], Result]) -> Result:
        """What `read` returns; it starts over if a file was merged away under it."""
        for _ in range(_ATTEMPTS):
            try:
                return read()
            except FileNotFoundError as error:
                gone = error.filename
        raise TraceError(f"{gone} and others went while they were read. Is something deleting the run? Ask again.")


def _header(parts: dict[str, list[Part]]) -> Header:
    headers = [part.header for of_table in parts.values() for part in of_table]
    if not headers:
        raise TraceError("the traces are gone: no file is left in the folder. Open a run that has traces.")
    return merge_headers(headers)


def _regime_table(header: Header) -> pa.Table:
    regimes = [{"idx": idx, "regime": name, **vars(one)} for idx, (name, one) in enumerate(header.regimes.items())]
    names = ("regime", "source", "divergence", "meaning")
    return pa.Table.from_pylist(regimes, pa.schema([("idx", pa.int32()), *((name, pa.string()) for name in names)]))


def _without_rows(schema: pa.Schema) -> pa.Table:
    """An empty table, with the types that DuckDB gives a table that was read."""
    wide = [field.with_type(pa.float32()) if field.type == pa.float16() else field for field in schema]
    return pa.schema(wide).empty_table()


def _view_sql(table: str, parts: list[Part], stored: set[str]) -> str:
    """CREATE VIEW over the files, less the rows that another file holds more recently, plus derived columns."""
    plain = [part.file for part in parts if not part.hidden]
    reads = [f"SELECT * FROM {_parquet(plain)}"] if plain else [f"SELECT * FROM no_{table}"]
    for part in parts:
        if part.hidden:
            pairs = ", ".join(str(pair) for pair in part.hidden)
            reads.append(f"SELECT * FROM {_parquet([part.file])} WHERE (step, process_rank) NOT IN ({pairs})")
    derived = "".join(f", {sql} AS {name}" for name, sql in derived_columns(table, stored).items())
    joined = "LEFT JOIN regimes ON parts.regime = regimes.regime" if "regime" in stored else ""
    rows = " UNION ALL BY NAME ".join(reads)
    return f"CREATE TEMP VIEW {table} AS SELECT parts.*{derived} FROM ({rows}) AS parts {joined}"


def _parquet(files: list[Path]) -> str:
    # brackets keep DuckDB from reading a folder's name as a pattern
    names = (re.sub(r"([\[*?])", r"[\1]", str(file)).replace("'", "''") for file in files)
    return "read_parquet([" + ", ".join(f"'{name}'" for name in names) + "], union_by_name = true)"


def _check_files(parts: dict[str, list[Part]], tables: list[str]) -> None:
    """Raises FileNotFoundError if a file was merged away, so that all is done again; TraceError if one is torn."""
    files = [part.file for table in tables for part in parts[table]]
    for file in files:
        file.stat()
    for file in files:
        try:
            pq.ParquetFile(file).read()
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise torn(file, error) from error


def _query_error(error: duckdb.Error) -> TraceError:
    return TraceError(f"the query failed: {error}\nTables and columns are listed in docs/traces.md.")


def _bytes_below(folder: Path) -> int:
    """Size of a folder's files; one that goes meanwhile counts nothing."""
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
