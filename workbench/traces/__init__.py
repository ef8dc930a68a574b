"""Traces: every token with its scores under each view, its regime and its loss, stored as Parquet.

schema.py     name, type, unit and meaning of every column; source of docs/traces.md
parts.py      Parquet files of a table: names, precedence, merging, deletion
checksums.py  checksums of these files
writer.py     write traced batches
totals.py     aggregate positions per rollout and per cell
views.py      SQL views over the files
selection.py  conditions and order of answers, read from text
reader.py     query the files with DuckDB; the only way to the data
export.py     export as a Hugging Face dataset
"""
