"""Leakage: capability gain against imitation of evidence that the student lacks; worst cases open in Answers."""

from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr

from workbench.analysis import figures, illusion, regimes
from workbench.analysis.style import VISIBILITIES
from workbench.analysis.table import Table, table
from workbench.app.components import (
    TRACES,
    Column,
    answer_address,
    aside_html,
    empty_html,
    fragment_component,
    plot_component,
    rows_component,
    rows_html,
)
from workbench.app.context import AppContext, Shared, persistent_params, show_errors
from workbench.app.finding_cards import findings_html
from workbench.app.live_updates import follow_run
from workbench.evals.findings import INTERVALS
from workbench.traces.reader import Traces
from workbench.types import PRIVILEGED

KEY = ("step", "process", "rollout", "position")
SURE_KEY = ("example", "context")
WORST_COLUMNS = (
    Column("token", kind="token"),
    Column("visibility", kind="short"),
    Column("regime", kind="short"),
    Column("target", kind="short"),
    Column("information_gap", kind="signed"),
    Column("capability_gap", kind="signed"),
    Column("loss", kind="number"),
    Column("question"),
    Column("answer"),
    Column("expected", kind="short"),
    Column("step", kind="number"),
    Column("rollout", kind="number"),
)
SURE_COLUMNS = (
    Column("confidence", kind="share"),
    Column("question"),
    Column("text", "answer"),
    Column("answer", "expected", "short"),
    Column("visibility", kind="short"),
    Column("context", kind="short"),
)
ACCURACY_COLUMNS = (
    Column("policy", kind="short"),
    Column("context", kind="short"),
    Column("visibility", "questions", "short"),
    Column("step", kind="number"),
    Column("count", kind="number"),
    Column("accuracy", kind="share"),
    Column("confidence", kind="share"),
    Column("overconfidence", "over-confidence", "points"),
    Column("calibration_error", kind="share"),
    Column("length", kind="number"),
    Column("truncated", kind="share"),
)


def draw(context: AppContext, run: str | None, theme: str, curve_of: str | None) -> tuple:
    """Headline, choices of the calibration curve, figures, tables.

    curve_of  "policy, context" of the calibration curve
    """
    run_dir = context.run_dir(run)
    traces = TRACES.of(run_dir)
    accuracy = illusion.accuracy(run_dir)
    pairs = [] if accuracy.empty else list(dict.fromkeys(f"{row['policy']}, {row['context']}" for row in accuracy.rows))
    curve_of = curve_of if curve_of in pairs else pairs[0] if pairs else ""
    dominated = illusion.information_dominated_loss(traces or run_dir)
    separation = illusion.separation(traces or run_dir)
    over, group = overconfidence(accuracy)
    return (
        headline(run_dir, accuracy, dominated, separation),
        figures.accuracy_curves(accuracy, theme=theme),
        gr.Dropdown(choices=pairs, value=curve_of or None, visible=bool(pairs)),
        draw_reliability(run_dir, curve_of, theme),
        figures.bars(
            over,
            "policy",
            "overconfidence",
            count="count",
            title=f"Over-confidence on {group} questions",
            theme=theme,
            reference=0.0,
            meaning="calibrated",
            tints=[VISIBILITIES[theme][group]] * len(over.frame),
        ),
        figures.information_share(dominated, theme=theme),
        figures.curves(
            entropies(traces, run_dir),
            title="Student entropy",
            theme=theme,
            tints={f"{visibility} tokens": tint for visibility, tint in VISIBILITIES[theme].items()},
        ),
        figures.separation_bars(separation, theme=theme),
        rows_html(
            illusion.worst_cases(traces or run_dir),
            WORST_COLUMNS,
            label="worst cases",
            key=KEY,
            title="Largest loss on tokens that only the evidence explains: choose one to open it in Answers",
            tall=440,
        ),
        draw_wrong(illusion.confidently_wrong(run_dir)),
        rows_html(
            illusion.newest(accuracy),
            ACCURACY_COLUMNS,
            label="accuracy",
            title="Accuracy and confidence, last evaluation",
            tall=340,
        ),
    )


def draw_wrong(answers: Table) -> str:
    """Wrong answers of the last evaluation by confidence; a row opens its question in Data."""
    title = "Confidently wrong"
    if not answers.empty:
        title += f" at step {answers.rows[0]['step']}: choose one to open it in Data"
    return rows_html(answers, SURE_COLUMNS, label="confidently wrong", key=SURE_KEY, title=title, tall=478)


def headline(run_dir: Path, accuracy: Table, dominated: Table, separation: Table) -> str:
    """The cards of findings, and two numbers on imitation with what they are computed over."""
    if accuracy.empty:
        return empty_html(accuracy.empty)
    tiles = []
    shares = [row for row in dominated.rows if row["visibility"] == "all" and row["loss_share"] is not None]
    if shares:
        end = shares[-1]
        tiles.append(
            (
                f"{end['loss_share']:.0%}",
                "information-dominated loss",
                f"{_steps(end)}, {end['num_positions']:,} tokens; {shares[0]['loss_share']:.0%} at {_steps(shares[0])}",
            )
        )
    for row in separation.rows:
        if row["gap"] != illusion.HEADLINE_GAP:
            continue
        tiles.append(
            (
                f"{row['auroc']:.2f}",
                "AUROC of the information gap's size",
                f"{row['num_privileged']:,} privileged and {row['num_visible']:,} visible tokens; 0.5 = no separation",
            )
        )
    cards = "".join(
        f"<div><b>{escape(number)}</b><span>{escape(name)}</span><small>{escape(detail)}</small></div>"
        for number, name, detail in tiles
    )
    label = f"headline of {escape(run_dir.name, quote=True)}"
    numbers = f'<div class="wbu-tiles" role="group" aria-label="{label}">{cards}</div>' if tiles else ""
    return findings_html(run_dir) + numbers + aside_html(f"{INTERVALS}. {illusion.CONFIDENCE_NOTE}")


def _steps(row: Mapping) -> str:
    return f"step {row['step']}" if row["first_step"] == row["step"] else f"steps {row['first_step']} to {row['step']}"


def draw_reliability(run_dir: Path, curve_of: str | None, theme: str) -> object:
    """Accuracy over confidence of one policy under one context."""
    policy, _, context = (curve_of or "student, plain").partition(", ")
    return figures.reliability(
        illusion.reliability(run_dir, policy=policy, context=context),
        title=f"Calibration: {policy}, {context}",
        theme=theme,
    )


def overconfidence(accuracy: Table) -> tuple[Table, str]:
    """Over-confidence in points at the first and newest step of each policy and context, and the group of questions.

    The group is privileged questions, or all where the data does not mark them.
    """
    if accuracy.empty:
        return accuracy, "all"
    frame = accuracy.frame
    steps = frame.groupby(["policy", "context"])["step"]
    is_end = (frame["step"] == steps.transform("min")) | (frame["step"] == steps.transform("max"))
    ends = frame[is_end].sort_values(["policy", "context", "step"], kind="stable")
    rows = Table(ends.reset_index(drop=True), accuracy.run).rows
    visibilities = {row["visibility"] for row in rows}
    group = PRIVILEGED if PRIVILEGED in visibilities else "all"
    in_group = [
        {
            **row,
            "policy": f"{row['policy']}, {row['context']} (step {row['step']})",
            "overconfidence": 100 * row["overconfidence"],
        }
        for row in rows
        if row["visibility"] == group
    ]
    columns = ["policy", "overconfidence", "count"]
    units = {"overconfidence": f"points: confidence minus accuracy on {group} questions"}
    return table(in_group, columns, run=accuracy.run, empty=accuracy.empty, units=units), group


def entropies(traces: Traces | None, run_dir: Path) -> Table:
    """The student's entropy over steps, a curve per visibility, for figures.curves."""
    gaps = regimes.gaps_over_steps(traces or run_dir)
    rows = [
        {"step": row["step"], "metric": f"{row['visibility']} tokens", "value": row["entropy"]}
        for row in gaps.rows
        if row["entropy"] is not None
    ]
    empty = gaps.empty or "This run's traces hold no entropies."
    return table(
        rows,
        ["step", "metric", "value"],
        run=gaps.run,
        empty=empty,
        units={row["metric"]: "nats per token" for row in rows},
    )


def worst_address(address: Mapping | None, key: Mapping) -> dict:
    """The address of a worst case in Answers."""
    return persistent_params(address, but="answers") | answer_address(
        int(key["step"]), int(key["rollout"]), process=int(key["process"]), token=int(key["position"])
    )


def wrong_address(address: Mapping | None, key: Mapping) -> dict:
    """The address of an evaluated question and its context in Data."""
    return persistent_params(address) | {"example": str(key["example"]), "context": str(key["context"])}


def build_tab(context: AppContext, shared: Shared) -> None:
    """Headline, figures, worst cases, wrong answers, accuracy table."""
    follow_run(context, shared, "leakage", "rollouts")
    head = fragment_component("headline", elem_id="leakage-headline")
    accuracy = plot_component("accuracy and confidence", elem_id="leakage-accuracy")
    with gr.Row():
        with gr.Column(min_width=420):
            share = plot_component("information-dominated loss")
        with gr.Column(min_width=420):
            over = plot_component("over-confidence")
    with gr.Row():
        with gr.Column(min_width=420):
            entropy = plot_component("entropy")
        with gr.Column(min_width=420):
            separation = plot_component("separation")
    worst = rows_component("worst cases", elem_id="leakage-worst")
    with gr.Row():
        with gr.Column(min_width=420):
            curve_of = gr.Dropdown([], label="calibration of", elem_id="leakage-who")
            reliability = plot_component("calibration")
        with gr.Column(min_width=420):
            wrong = rows_component("confidently wrong", elem_id="leakage-wrong")
    measured = rows_component("accuracy", elem_id="leakage-table")

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    inputs = [shared.run, shared.theme, curve_of]
    outputs = [head, accuracy, curve_of, reliability, over, share, entropy, separation, worst, wrong, measured]
    shared.on_show("leakage", show_errors(partial(draw, context), len(outputs)), inputs, outputs)
    curve_of.input(
        show_errors(lambda run, theme, curve_of: draw_reliability(context.run_dir(run), curve_of, theme)),
        inputs,
        reliability,
        **quiet,
    )

    def open_case(event: gr.EventData, address: dict) -> tuple:
        return worst_address(address, event.key), "answers"

    def open_wrong(event: gr.EventData, address: dict) -> tuple:
        return wrong_address(address, event.key), "data"

    worst.select(show_errors(open_case, 2), shared.address, [shared.address, shared.tab], **quiet)
    wrong.select(show_errors(open_wrong, 2), shared.address, [shared.address, shared.tab], **quiet)
