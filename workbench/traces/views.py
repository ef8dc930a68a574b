"""A trace's tables as SQL views over its files: which rows count, and what is derived from them."""

import re
from pathlib import Path

import pyarrow as pa

from workbench.traces.parts import Part
from workbench.traces.schema import Header, derived_columns


def regime_table(header: Header) -> pa.Table:
    """The table `regimes`."""
    regimes = [{"idx": idx, "regime": name, **vars(one)} for idx, (name, one) in enumerate(header.regimes.items())]
    names = ("regime", "source", "divergence", "meaning")
    return pa.Table.from_pylist(regimes, pa.schema([("idx", pa.int32()), *((name, pa.string()) for name in names)]))


def without_rows(schema: pa.Schema) -> pa.Table:
    """An empty table, with the types that DuckDB gives a table that was read."""
    wide = [field.with_type(pa.float32()) if field.type == pa.float16() else field for field in schema]
    return pa.schema(wide).empty_table()


def view_sql(table: str, parts: list[Part], header: Header, stored: set[str]) -> str:
    """CREATE VIEW over the files, less the rows that another file holds more recently, plus derived columns."""
    plain = [part.file for part in parts if not part.hidden]
    reads = [f"SELECT * FROM {_parquet(plain)}"] if plain else [f"SELECT * FROM no_{table}"]
    for part in parts:
        if part.hidden:
            pairs = ", ".join(str(pair) for pair in part.hidden)
            reads.append(f"SELECT * FROM {_parquet([part.file])} WHERE (step, process_rank) NOT IN ({pairs})")
    derived = ""
    for name, sql in derived_columns(table, stored).items():
        table_name, _, fact = sql.partition(".")
        derived += f", {_fact_sql(header, fact) if table_name == 'regimes' else sql} AS {name}"
    return f"CREATE TEMP VIEW {table} AS SELECT parts.*{derived} FROM ({' UNION ALL BY NAME '.join(reads)}) AS parts"


def _fact_sql(header: Header, fact: str) -> str:
    """A fact of the row's regime, written out: a join would keep filters from reaching the files."""
    known = {name: getattr(regime, fact) for name, regime in header.regimes.items()}
    cases = "".join(f" WHEN {_quoted(name)} THEN {_quoted(text)}" for name, text in known.items() if text is not None)
    return f"CASE regime{cases} ELSE NULL END" if cases else "CAST(NULL AS VARCHAR)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parquet(files: list[Path]) -> str:
    # brackets keep DuckDB from reading a folder's name as a pattern
    names = (_quoted(re.sub(r"([\[*?])", r"[\1]", str(file))) for file in files)
    return f"read_parquet([{', '.join(names)}], union_by_name = true)"
