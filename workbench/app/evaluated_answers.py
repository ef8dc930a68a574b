"""Answers of evaluations in Browse: columns of their list, and one of them with what was recorded of it."""

from collections.abc import Mapping
from html import escape
from urllib.parse import urlencode

from workbench.app.components import Column, remount
from workbench.app.related_answers import grade_html

COLUMNS = (
    Column("answer"),
    Column("right", "grade", "right"),
    Column("confidence", kind="share"),
    Column("step", kind="number"),
    Column("policy", kind="short"),
    Column("context", kind="short"),
    Column("visibility", kind="short"),
    Column("tokens", "", "number"),
    Column("question"),
    Column("expected", kind="short"),
    Column("dataset", "set", "short"),
)
SORTABLE = ("step", "tokens", "reward", "confidence", "domain", "example")
FILTERS = {"at_step": "step", "domain": "domain", "visibility": "visibility"}  # parameter of the address -> field


def answer_html(row: Mapping, run: str) -> str:
    """One answer: question, text, grade, and a link that opens its example in Data, where it can be scored.

    row  of EvaluationAnswers.get
    """
    right = None if row["reward"] is None else row["reward"] == 1.0
    facts = {
        "step": f"{row['step']:,}",
        "policy": f"{row['policy']}, given {row['context']}",
        "expected": row["answer"],
        "confidence": f"{100 * row['confidence']:.1f}%",
        "tokens": f"{row['num_positions']:,}{'' if row['finished'] else ', not finished'}",
        "domain": row["domain"],
        "visibility": row["visibility"],
        "set": row["dataset"],
        "example": row["example_id"],
    }
    lines = "".join(
        f'<tr><th scope="row">{name}</th><td dir="auto">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
        if value
    )
    query = urlencode({"run": run, "tab": "data", "example": row["example_id"], "context": row["context"]}, safe="/")
    link = f'<a href="?{escape(query, quote=True)}">Open its image and evidence in Data, and score it there</a>'
    note = "An evaluation records the answer and its confidence, and no tokens."
    return remount(
        f'<div class="wbu-evaluated"><p class="wbu-ask" dir="auto">{escape(row["question"])}</p>'
        f'<p class="wbu-text" dir="auto">{escape(row["completion"])} {grade_html(right)}</p>'
        f'<table><tbody>{lines}</tbody></table><p class="wbu-aside">{note} {link}.</p></div>'
    )
