"""`workbench runs`: the table of runs as text or JSON, and the actions on one run."""

import argparse
import json

from workbench.analysis.run_columns import filter_rows, row_values, sort_rows, table_texts
from workbench.analysis.run_table import list_run_rows
from workbench.analysis.summary import format_table
from workbench.errors import RunError
from workbench.files.terminal import clean
from workbench.runs.folder import find_run_dir
from workbench.runs.jobs import read_job
from workbench.runs.labels import label_run
from workbench.runs.manage import delete_run, rename_run, runs_that_use


def run_command(options: argparse.Namespace) -> str:
    """Make the table, or change one run. Returns the text to print. Raises RunError and ConfigError as the actions."""
    if options.action is None:
        return _table(options)
    runs_dir, name = options.runs, options.name
    if options.action == "rename":
        return rename_run(runs_dir, name, options.new_name)
    if options.action == "tag":
        return ", ".join(label_run(runs_dir, name, tags=options.tags).tags) or f"{name} has no tags"
    if options.action == "note":
        return label_run(runs_dir, name, note=options.text).note or f"{name} has no note"
    if options.action == "delete":
        return _delete(runs_dir, name, options.yes)
    label_run(runs_dir, name, archived=options.action == "archive")
    return f"{options.action}d {name}"


def _table(options: argparse.Namespace) -> str:
    rows = list_run_rows(options.runs)
    listed = sort_rows(filter_rows(rows, options.filter, archived=options.archived), options.sort)
    if options.json:
        return json.dumps([row_values(row) for row in listed], indent=1, ensure_ascii=False)
    lines = [format_table(*table_texts(listed))] if listed else []
    lines += [f"  {clean(row.name)}: {clean(row.reason)}" for row in listed if row.reason]
    num_archived = 0 if options.archived else sum(row.labels.archived for row in rows)
    num_filtered = len(rows) - len(listed) - num_archived
    left_out = [f"{num_filtered} do not match the filter"] if num_filtered else []
    left_out += [f"{num_archived} are archived (--archived)"] if num_archived else []
    count = f"{len(listed)} {'run' if len(listed) == 1 else 'runs'} in {options.runs}"
    return "\n".join([*lines, "; ".join([count, *left_out])])


def _delete(runs_dir: str, name: str, is_sure: bool) -> str:
    run_dir = find_run_dir(runs_dir, name)
    read_job(run_dir)
    if not is_sure:
        users = runs_that_use(runs_dir, name)
        uses = f" {', '.join(users)} uses its files." if users else ""
        raise RunError(f"{run_dir} is still there: deleting it cannot be undone.{uses} Confirm it with --yes.")
    delete_run(runs_dir, name)
    return f"deleted {run_dir}"
