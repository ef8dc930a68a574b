"""SQL views over the files of a trace, with overwritten rows excluded and derived columns added."""

import re
from pathlib import Path

import pyarrow as pa

from workbench.traces.parts import TraceFile
from workbench.traces.schema import Header, derived_columns


def regime_table(header: Header) -> pa.Table:
    """Build the table `regimes`."""
    regimes = [
        {"idx": idx, "regime": name, **vars(spec), "loss_weight": spec.loss_weight}
        for idx, (name, spec) in enumerate(header.regimes.items())
    ]
    texts = [(name, pa.string()) for name in ("regime", "target", "divergence", "meaning")]
    return pa.Table.from_pylist(regimes, pa.schema([("idx", pa.int32()), *texts, ("loss_weight", pa.float32())]))


def without_rows(schema: pa.Schema) -> pa.Table:
    """Build an empty table, with the types that DuckDB gives to Parquet columns."""
    wide = [field.with_type(pa.float32()) if field.type == pa.float16() else field for field in schema]
    return pa.schema(wide).empty_table()


def view_sql(table: str, parts: list[TraceFile], header: Header, stored: set[str]) -> str:
    """Build CREATE VIEW over the files, without rows that a newer file replaces, plus derived columns."""
    plain = [part.file for part in parts if not part.hidden]
    reads = [f"SELECT * FROM {_parquet(plain)}"] if plain else []
    for part in parts:
        if part.hidden:
            pairs = ", ".join(str(pair) for pair in part.hidden)
            reads.append(f"SELECT * FROM {_parquet([part.file])} WHERE (step, process_rank) NOT IN ({pairs})")
    if not parts or any(stored - part.columns for part in parts):  # columns that older files lack are NULL
        reads.insert(0, f"SELECT * FROM no_{table}")  # only then, since it triples the time to plan a query
    derived = ""
    for name, sql in derived_columns(table, stored).items():
        sql = re.sub(r"\bregimes\.(\w+)", lambda match: _fact_sql(header, match[1]), sql)
        derived += f", {sql} AS {name}"
    return f"CREATE TEMP VIEW {table} AS SELECT parts.*{derived} FROM ({' UNION ALL BY NAME '.join(reads)}) AS parts"


def _fact_sql(header: Header, fact: str) -> str:
    """Build a CASE expression for a property of the regime. A join would keep filters from reaching the files."""
    facts = {name: getattr(regime, fact) for name, regime in header.regimes.items()}
    cases = "".join(f" WHEN {_quoted(name)} THEN {_literal(fact)}" for name, fact in facts.items() if fact is not None)
    dtype = "FLOAT" if fact == "loss_weight" else "VARCHAR"
    return f"CAST(CASE regime{cases} ELSE NULL END AS {dtype})" if cases else f"CAST(NULL AS {dtype})"


def _literal(fact: str | float) -> str:
    return _quoted(fact) if isinstance(fact, str) else repr(float(fact))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parquet(files: list[Path]) -> str:
    # brackets keep DuckDB from treating a folder's name as a pattern
    names = (_quoted(re.sub(r"([\[*?])", r"[\1]", str(file))) for file in files)
    # else DuckDB takes a folder named step=3 for a partition and puts its 3 in place of the recorded steps
    return f"read_parquet([{', '.join(names)}], union_by_name = true, hive_partitioning = false)"
