"""Traces: what every token was, what every view thought of it, who supervised it, and with how much loss.

schema.py   every column: name, type, unit, meaning. docs/traces.md is made from it
parts.py    the Parquet files of a table: names, which row counts, merging, deleting
writer.py   a traced batch -> Parquet
totals.py   what positions add up to, per answer and per cell of positions that are alike
views.py    files -> SQL views
reader.py   Parquet -> tables, with DuckDB. The only way to the data
"""
