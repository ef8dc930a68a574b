"""Accuracies on common questions, flips of two runs, and both answers with changed words, as HTML and CSV."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from workbench.analysis.common_questions import FLIPS, both_answers, common_accuracy, flips
from workbench.analysis.table import Table, names_of
from workbench.app.components import Column, aside_html, remount, rows_html
from workbench.app.related_answers import cards_html, cut_text, grade_html, words_changed
from workbench.render.text import NONE, signed

MAX_FLIPS = 200  # rows on the page; the CSV file has all
READING = (
    "Student, context plain, newest evaluation of each run. Intervals: 95%, paired over questions, normal; they are "
    "too narrow for a few flips and do not cover another seed."
)


def draw_common(runs: Sequence[Path]) -> str:
    """Accuracy of every run on common questions, with its difference to the first run."""
    result = common_accuracy(*runs)
    table = result.accuracies
    notes = [f"{name} has no graded plain answer of its student and is left out." for name in result.unanswered]
    left_out = ", ".join(f"{count:,} of {name}" for name, count in result.left_out.items())
    notes = [f"{result.common:,} common questions; not common, so left out: {left_out}.", *notes, READING]
    title = "Accuracy on common questions"
    if table.empty:
        return rows_html(table, (), label="accuracy on common questions", title=title) + aside_html(notes[0])
    baseline = table.rows[0]["run"]
    intervals = [_interval(row["low"], row["high"]) for row in table.rows]
    listed = Table(table.frame.assign(interval=intervals), table.run, table.units)
    columns = (
        Column("visibility", "questions", "short"),
        Column("run", kind="short"),
        Column("step", kind="number"),
        Column("count", "common", "number"),
        Column("accuracy", kind="share"),
        Column("difference", f"difference to {baseline}", "points"),
        Column("interval", "95% interval", "right-text"),
        Column("gained", FLIPS[0], "number"),
        Column("lost", FLIPS[1], "number"),
    )
    html = rows_html(listed, columns, label="accuracy on common questions", title=title, tall=430)
    return html + aside_html(" ".join(notes))


def draw_flips(first: Path, second: Path, example: str) -> tuple[str, str]:
    """Questions right in one run and wrong in the other, and both answers to the chosen or the first of them.

    example  the chosen question; one that is common but no flip is listed too
    """
    flipped = flips(first, second)
    chosen = both_answers(first, second, example) if example else None
    if chosen is None and not flipped.empty:
        chosen = both_answers(first, second, flipped.rows[0]["example"])
    key = None if chosen is None else {"example": chosen[0].example_id}
    counts = flipped.frame["flip"].value_counts()
    title = f"Flips from {' to '.join(names_of(first, second))}"
    if not flipped.empty:
        title += ": " + ", ".join(f"{counts.get(flip, 0):,} {flip}" for flip in FLIPS)
    columns = (
        Column("flip", kind="short"),
        Column("question"),
        Column("expected", kind="short"),
        Column("answer_a", "answer"),
        Column("answer_b", "answer"),
        Column("visibility", "evidence needed", "short"),
        Column("example", kind="short"),
    )
    listed = Table(flipped.frame.head(MAX_FLIPS), flipped.run, flipped.units, flipped.empty)
    html = rows_html(listed, columns, label="flips", key=("example",), chosen=key, title=title, tall=330, follow=True)
    if len(flipped.frame) > MAX_FLIPS:
        html += aside_html(f"The first {MAX_FLIPS} of {len(flipped.frame):,} flips; the CSV file has all.")
    if chosen is None:
        return html, ""
    names = names_of(first, second)
    heads = [
        f"{escape(name)}<span>step {answer.step:,}</span>{grade_html(answer.reward == 1)}"
        for name, answer in zip(names, chosen, strict=True)
    ]
    question = f"{chosen[0].question or chosen[0].example_id} · expected {chosen[0].answer}"
    return html, words_html(question, heads, [answer.text for answer in chosen])


def words_html(question: str, heads: Sequence[str], texts: Sequence[str]) -> str:
    """Two answers beside each other, the second with the words that differ from the first. heads: as HTML."""
    before, after = map(cut_text, texts)
    bodies = (escape(before), words_changed(before, after))
    cards = "".join(
        f'<article><header>{head}</header><p dir="auto">{body}</p></article>'
        for head, body in zip(heads, bodies, strict=True)
    )
    words = "the same words" if before == after else "<ins>new words</ins> and <del>dropped words</del>"
    title = f'<h3>{escape(question)} <span class="wbu-pairs">{words}</span></h3>'
    return remount(f'<div class="wbu-related">{title}{cards_html(cards, is_pair=True)}</div>')


def common_csv(runs: Sequence[Path]) -> str:
    """All rows of the accuracies on common questions as CSV."""
    return common_accuracy(*runs).accuracies.frame.to_csv(index=False)


def flips_csv(runs: Sequence[Path]) -> str:
    """All flips of the first two runs as CSV; the answers' columns are named by run."""
    result = flips(*runs[:2])
    return result.frame.rename(columns={name: f"answer of {run}" for name, run in result.units.items()}).to_csv(
        index=False
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or low != low:
        return NONE
    return f"[{signed(100 * low, 1)}, {signed(100 * high, 1)}]"
