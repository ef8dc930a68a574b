"""Compare every row of a study with any other row, from stored answers. Nothing is run or written.

The tables of a study compare with one baseline; here any row is allowed. The folder is a study's or one of the shipped
ones (docs/studies/data), which hold questions.parquet. Intervals are those of workbench.studies.bootstrap.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workbench.errors import ConfigError, RunError, unknown
from workbench.studies.measures import OF_DOMAIN, Arm, compare
from workbench.studies.plan import TEACHER, UNTRAINED
from workbench.studies.report import (
    READING,
    aligned,
    difference_text,
    interval_text,
    markdown_table,
    title_of,
    value_text,
)
from workbench.types import PRIVILEGED, VISIBLE

SHOWN = (
    ("accuracy", VISIBLE),
    ("accuracy", PRIVILEGED),
    ("overconfidence", PRIVILEGED),
    ("confidence", PRIVILEGED),
    ("entropy", "all"),
)


def compare_with_baseline(folder: str | Path, name: str) -> str:
    """Markdown tables of every row's difference to the row `name`, with intervals, per dataset and context.

    Raises: RunError if the folder holds no answers; ConfigError if it has no such row.
    """
    arms = read_arms(folder)
    if name not in [arm.name for arm in arms]:
        raise ConfigError(f"{folder}: {unknown('row', name, [arm.name for arm in arms])}")
    comparisons = compare(arms, name)
    parts = [f"# {Path(folder).name}, against {name}", READING]
    for data, context in dict.fromkeys((item.data, item.context) for item in comparisons):
        group = [item for item in comparisons if (item.data, item.context) == (data, context)]
        domains = dict.fromkeys(item.visibility for item in group if item.visibility.endswith(OF_DOMAIN))
        parts.append(f"## {data}, shown {context}")
        for measure, visibility in (*SHOWN, *(("accuracy", domain) for domain in domains)):
            alone = {
                item.variant: item
                for item in group
                if (item.measure, item.visibility, item.against) == (measure, visibility, None)
            }
            apart = {
                item.variant: item
                for item in group
                if (item.measure, item.visibility, item.against) == (measure, visibility, name)
            }
            if apart:
                lines = [[row, value_text(item), *_difference(apart.get(row), item)] for row, item in alone.items()]
                count = next(iter(alone.values())).count
                parts += [
                    f"### {title_of(measure, visibility)} ({count} questions)",
                    markdown_table(["", "mean", "difference [95 % interval]", ""], lines),
                ]
    return "\n\n".join(parts) + "\n"


def read_arms(folder: str | Path) -> list[Arm]:
    """Read the rows of a study from its questions.parquet; a peer's starting model is a row of its own.

    Raises: RunError if the file cannot be read.
    """
    file = Path(folder) / "questions.parquet"
    try:
        questions = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(
            f"{file} cannot be read ({error}). A study writes it at its end: workbench study FILE."
        ) from None
    if not {"variant", "seed"} <= set(questions.column_names):
        raise RunError(
            f"{file} belongs to a single run. Give the folder of its study, {Path(folder).resolve().parent}, or the "
            "study's file."
        )
    if "visibility" not in questions.column_names:
        raise RunError(f"{file} is of an earlier version of the workbench. Write it again: workbench study FILE.")
    arms = []
    for name in dict.fromkeys(questions["variant"].to_pylist()):
        answers = questions.filter(pc.equal(questions["variant"], name))
        seeds = [seed for seed in dict.fromkeys(answers["seed"].to_pylist()) if seed is not None]
        tables = [answers.filter(pc.equal(answers["seed"], seed)) for seed in seeds] or [answers]
        kind = "variant" if seeds else TEACHER if name.split()[0] == TEACHER else "student"
        arms.append(Arm(name, kind, tuple(seeds) or (0,), aligned(tables), untrained=UNTRAINED))
    return arms


def _difference(apart: Any, alone: Any) -> list[str]:
    return ["", ""] if apart is None else [f"{difference_text(apart)} {interval_text(apart, alone)}", apart.verdict]
