"""Compare in Answers: ticked runs on common questions; two of them on the same example, token by token."""

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr

from workbench.analysis import compare
from workbench.analysis.common_questions import both_answers
from workbench.analysis.compare import RunPair
from workbench.analysis.illusion import CONFIDENCE_NOTE
from workbench.analysis.runs import config_difference
from workbench.analysis.table import Table, names_of
from workbench.app.common_accuracy import common_csv, draw_common, draw_flips, flips_csv, words_html
from workbench.app.components import (
    TRACES,
    Column,
    aside_html,
    empty_html,
    fragment_component,
    read_asset,
    remount,
    rows_component,
    rows_html,
)
from workbench.app.context import (
    AppContext,
    Shared,
    choice,
    further_runs,
    sentence,
    show_errors,
    sync_to_url,
)
from workbench.app.live_updates import follow_run
from workbench.errors import RunError, WorkbenchError
from workbench.render import TokenView, colors, render_tokens
from workbench.render.text import NONE, signed, visible_text

NO_OTHER = "Tick a second run in the list at the left, for example another method on the same data."


def draw(context: AppContext, run: str | None, address: Mapping | None) -> tuple:
    """Common accuracies, flips, answers to a flip, accuracies, configurations, examples, changed words, aligned tokens,
    layout, token views."""
    address = address or {}
    layout = choice(address, "compare", "layout", ("under", "beside"))
    runs = ticked(context, run, address)
    if len(runs) < 2:
        return empty_html(NO_OTHER), *[""] * 7, gr.Radio(value=layout, visible=False), ""
    first, second = runs[:2]
    example = str(address.get("example") or "")
    listed, row = draw_examples(first, second, example)
    words, aligned, views = draw_pair(first, second, row, layout)
    return (
        draw_common(runs),
        *draw_flips(first, second, example),
        draw_accuracy(first, second),
        draw_difference(first, second),
        listed,
        words,
        aligned,
        gr.Radio(value=layout, visible=row is not None),
        views,
    )


def ticked(context: AppContext, run: str | None, address: Mapping | None) -> list[Path]:
    """Folders of the ticked runs, the selected one first. Raises RunError if one does not exist."""
    return [context.run_dir(run), *map(context.run_dir, further_runs(address, run))]


def draw_examples(first: Path, second: Path, wanted: str) -> tuple[str, dict | None]:
    """Examples of both runs as HTML, and the row of the wanted example, else the first row.

    No row if the wanted example was evaluated without a trace: tokens of another one would not belong to it.
    """
    shared = compare.shared_examples(TRACES.of(first) or first, TRACES.of(second) or second)
    row = next((candidate for candidate in shared.rows if candidate["example"] == wanted), None)
    is_evaluated = bool(wanted) and both_answers(first, second, wanted) is not None
    if row is None and not shared.empty and not is_evaluated:
        row = shared.rows[0]
    chosen = None if row is None else {"example": row["example"]}
    listed = Table(shared.frame.head(200), shared.run, shared.units, shared.empty)
    words = listed.frame.assign(
        probe=listed.frame["probe"].map({True: "yes", False: "no"}),
        same_answer=listed.frame["same_answer"].map({True: "yes", False: "no"}),
    )
    listed = Table(words, shared.run, shared.units, shared.empty)
    names = names_of(first, second)
    columns = (
        Column("example", kind="short"),
        Column("question"),
        Column("probe", kind="short"),
        *(Column(f"step_{side}", f"step in {name}", "number") for side, name in zip("ab", names, strict=True)),
        Column("same_answer", kind="short"),
    )
    html = rows_html(
        listed, columns, label="examples of both runs", key=("example",), chosen=chosen, tall=210, follow=True
    )
    return html, row


def draw_pair(first: Path, second: Path, row: Mapping | None, layout: str) -> tuple[str, str, str]:
    """The two answers with changed words, aligned by token, and both token views. layout: beside or under."""
    if row is None:
        return "", "", ""
    try:
        pair = compare.pair(TRACES.of(first) or first, TRACES.of(second) or second, dict(row))
    except WorkbenchError as error:
        return "", empty_html(sentence(error)), ""
    names = names_of(first, second)
    heads = [f"{escape(name)}<span>step {row[f'step_{side}']:,}</span>" for name, side in zip(names, "ab", strict=True)]
    words = words_html(pair.first.question, heads, [pair.first.answer, pair.second.answer])
    views = "".join(
        f'<section class="wbu-side" aria-label="{escape(name, quote=True)}"><h3>{escape(name)}</h3>'
        f"{render_tokens(view, standalone=False)}</section>"
        for name, view in zip(names, (pair.first, pair.second), strict=True)
    )
    css_class = "wbu-sides" if layout == "beside" else "wbu-stack"
    return words, remount(aligned_html(pair, *names)), remount(f'<div class="{css_class}">{views}</div>')


def aligned_html(pair: RunPair, first: str, second: str) -> str:
    """Both answers as rows of a table, each token above its partner, with regime and information gap.

    Differences of regime are marked if the two methods have a regime in common.
    """
    if pair.aligned.empty:
        return empty_html(pair.aligned.empty)
    rows = pair.aligned.rows
    same = sum(row["same_regime"] for row in rows)
    matched = sum(row["same_token"] for row in rows)
    lines = []
    for suffix, name, view in (("a", first, pair.first), ("b", second, pair.second)):
        slots = colors.regime_slots(view.all_regimes)
        cells = "".join(_aligned_cell(row, suffix, slots) for row in rows)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    is_common = bool(set(pair.first.all_regimes) & set(pair.second.all_regimes))
    marks = "".join(
        f"<td>{'·' if not row['same_token'] else '≠' if is_common and not row['same_regime'] else ''}</td>"
        for row in rows
    )
    lines.insert(1, f'<tr class="wbu-marks" aria-hidden="true"><th></th>{marks}</tr>')
    legend = _legend((first, pair.first), (second, pair.second))
    regimes = (
        f"{same} of {matched} common tokens have the same regime. Between the rows: ≠ different regime, · different "
        "token."
        if is_common
        else f"{matched} common tokens. The two methods have no regime in common, so compare the gaps. "
        "Between the rows: · different token."
    )
    caption = f"Matched by {pair.by}: {regimes}"
    return (
        '<div class="wb-root"><div class="wbu-scroll">'
        '<table class="wbu-aligned" aria-label="both answers, token by token">'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="wb-faint wbu-said">{escape(caption)}</p>{legend}</div>'
    )


def _aligned_cell(row: Mapping, suffix: str, slots: Mapping[str, str]) -> str:
    text, regime = row[f"token_{suffix}"], row[f"regime_{suffix}"]
    if text is None:
        return '<td class="wbu-gone" aria-label="no matching token"></td>'
    gaps = {name: row[f"{name}_gap_{suffix}"] for name in ("information", "capability")}
    gap_texts = ", ".join(f"{name} {signed(value)} nats" for name, value in gaps.items() if value is not None)
    title = escape(f"{visible_text(text)} · {regime}" + (f" · {gap_texts}" if gap_texts else ""), quote=True)
    information = NONE if gaps["information"] is None else signed(gaps["information"], 1)
    return (
        f'<td title="{title}">'
        f'<span class="wbu-token wb-s-{slots.get(regime, "none")}">{escape(visible_text(text))}</span>'
        f"<small>{escape(regime)}</small><small>{information}</small></td>"
    )


def _legend(*named: tuple[str, TokenView]) -> str:
    items = []
    for name, view in named:
        slots = colors.regime_slots(view.all_regimes)
        swatches = "".join(
            f'<span class="wb-item"><span class="wb-swatch wb-s-{slots[regime]}"></span><b>{escape(regime)}</b> '
            f"{escape(note.meaning)}</span>"
            for regime, note in view.all_regimes.items()
        )
        items.append(f'<div class="wb-maplegend"><span class="wb-faint">{escape(name)}</span>{swatches}</div>')
    return (
        "".join(dict.fromkeys(items))
        + '<p class="wb-faint wbu-said">under each token: its regime and its information gap in nats</p>'
    )


def draw_accuracy(first: Path, second: Path) -> str:
    """Per policy, context and visibility: both runs' first and newest accuracy, and newest confidence."""
    accuracies = compare.accuracy_beside(first, second)
    if accuracies.empty:
        return empty_html(accuracies.empty, title="Accuracy")
    columns = [
        Column("policy", kind="short"),
        Column("context", kind="short"),
        Column("visibility", "questions", "short"),
    ]
    for side in "ab":
        columns += [
            Column(f"count_{side}", "count", "number"),
            Column(f"first_{side}", "accuracy, first", "share"),
            Column(f"last_{side}", "accuracy, newest", "share"),
            Column(f"confidence_{side}", "confidence", "share"),
        ]
    title = "Accuracy and confidence on all questions of each run, first and newest evaluation"
    return rows_html(accuracies, columns, label="accuracy of both runs", title=title, tall=380) + aside_html(
        CONFIDENCE_NOTE
    )


def draw_difference(first: Path, second: Path) -> str:
    """Configuration keys that differ between the runs."""
    differences = config_difference(first, second)
    names = [name for name in differences.frame.columns if name != "key"]
    columns = (Column("key", kind="mono"), *(Column(name, name, "mono") for name in names))
    return rows_html(
        differences, columns, label="difference of configurations", title="Differences of the configurations", tall=380
    )


def build_tab(context: AppContext, shared: Shared) -> None:
    """All ticked runs on common questions, flips, accuracies, configurations, then the answers to one example."""
    follow_run(context, shared, "compare", "rollouts")
    common = fragment_component("accuracy on common questions", elem_id="compare-common")
    flipped = rows_component("flips", elem_id="compare-flips")
    with gr.Row():
        for label, name, csv_of in (
            ("CSV of accuracies", "common-accuracy", common_csv),
            ("CSV of flips", "flips", flips_csv),
        ):
            _csv_button(context, shared, label, name, csv_of)
    answers = fragment_component("answers to a flip", elem_id="compare-answers")
    accuracy = fragment_component("accuracy of both runs", elem_id="compare-accuracy")
    difference = fragment_component("difference of configurations", elem_id="compare-config")
    listed = rows_component("examples of both runs", elem_id="compare-examples")
    words = fragment_component("both answers with changed words", elem_id="compare-words")
    aligned = gr.HTML(
        label="both answers",
        js_on_load=None,
        elem_classes="wbu",
        css_template=read_asset("compare.css"),
        apply_default_css=False,
        elem_id="compare-aligned",
    )
    layout = gr.Radio(
        (("stacked", "under"), ("side by side", "beside")), value="under", label="layout", elem_id="compare-layout"
    )
    views = gr.HTML(
        label="both answers in full",
        js_on_load=None,
        css_template=read_asset("compare.css"),
        apply_default_css=False,
        elem_id="compare-views",
    )

    outputs = [common, flipped, answers, accuracy, difference, listed, words, aligned, layout, views]
    drawing = show_errors(partial(draw, context), len(outputs))
    shared.on_show("compare", drawing, [shared.run, shared.address], outputs)
    sync_to_url(shared, {"layout": layout}, tab="compare")
    for rows in (flipped, listed):
        shared.on_choose(rows, {"example": "example"})


def _csv_button(context: AppContext, shared: Shared, label: str, name: str, csv_of: Callable) -> None:
    """A button that saves a table of the ticked runs as NAME.csv."""
    button = gr.Button(label, size="sm", scale=0, min_width=150, elem_id=f"compare-{name}-csv")
    text = gr.Textbox(visible="hidden")

    def write(run: str | None, address: Mapping | None) -> str:
        runs = ticked(context, run, address)
        if len(runs) < 2:
            raise RunError(NO_OTHER)
        return csv_of(runs)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    saved = button.click(show_errors(write), [shared.run, shared.address], text, **quiet)
    saved.then(None, text, text, js=f"(text) => {{ workbenchFigures.saveCsv('{name}.csv', text); return ''; }}")
