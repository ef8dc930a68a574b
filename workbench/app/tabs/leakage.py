"""Leakage: is a run's gain capability, or imitation of evidence that the student lacks?

1. Four tiles: a number, its interval, and a sentence that claims no more than the interval.
2. Two charts: accuracy with confidence, and loss that only the evidence explains.
3. Confident errors beside the answers before training, and tokens that the evidence drives; both open in Answers.
4. Details: calibration, over-confidence of all policies, entropy, separation, the table of accuracies.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import gradio as gr

from workbench.analysis import figures, illusion, regimes
from workbench.analysis.leakage import SURE, confident_error_rates, confident_errors, loss_shares, verdicts
from workbench.analysis.style import VISIBILITIES
from workbench.analysis.table import Table, has_gaps, table
from workbench.app.components import (
    TRACES,
    Column,
    aside_html,
    fragment_component,
    plot_component,
    rows_component,
    rows_html,
)
from workbench.app.context import AppContext, Shared, choice, show_errors, sync_to_url
from workbench.app.live_updates import follow_run
from workbench.app.verdict_tiles import tiles_html
from workbench.evals.findings import INTERVALS
from workbench.traces.reader import Traces
from workbench.types import PRIVILEGED

KEY = ("step", "process", "rollout", "position")
ERROR_KEY = ("step", "rollout")
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
ERROR_COLUMNS = (
    Column("confidence", kind="share"),
    Column("question"),
    Column("text", "answer"),
    Column("expected", kind="short"),
    Column("before", "answer before training"),
    Column("confidence_before", "confidence before", "share"),
    Column("right_before", "graded before", "right"),
    Column("visibility", "evidence needed", "short"),
    Column("context", kind="short"),
)
PARTS = (("all recorded steps", ""), ("first quarter of training", "first"), ("last quarter of training", "last"))
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


def draw(context: AppContext, run: str | None, theme: str, address: Mapping | None, curve_of: str | None) -> tuple:
    """Tiles, the two charts, confident errors, the part of the run and its tokens, then the details.

    curve_of  "policy, context" of the calibration curve
    """
    run_dir = context.run_dir(run)
    traces = TRACES.of(run_dir)
    accuracy = illusion.accuracy(run_dir)
    part = choice(address, "leakage", "part", [value for _, value in PARTS])
    return (
        headline(run_dir, traces),
        figures.accuracy_curves(accuracy, theme=theme),
        figures.information_share(illusion.information_dominated_loss(traces or run_dir), theme=theme),
        draw_errors(run_dir),
        part,
        draw_tokens(traces, run_dir, part),
        *draw_details(run_dir, traces, accuracy, theme, curve_of),
    )


def headline(run_dir: Path, traces: Traces | None) -> str:
    """The four tiles, and how to read them."""
    reading = f"{INTERVALS}; of the loss over recorded steps. {illusion.CONFIDENCE_NOTE}"
    return tiles_html(verdicts(run_dir, traces), run_dir.name) + aside_html(reading)


def draw_errors(run_dir: Path) -> str:
    """Wrong answers of the last evaluation by confidence, beside the answers before training."""
    errors = confident_errors(run_dir)
    title = "Confident errors"
    if not errors.empty:
        title += f" at step {errors.rows[0]['step']}: choose one to open it in Answers"
    html = rows_html(errors, ERROR_COLUMNS, label="confident errors", key=ERROR_KEY, title=title, tall=430)
    counts = [
        f"step {row['step']}: {row['errors']} of {row['count']} {row['visibility']} questions "
        f"({row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}])"
        for row in confident_error_rates(run_dir).rows
    ]
    reading = f"Wrong with a confidence of at least {SURE:.0%}, without evidence. {'; '.join(counts)}."
    return html + (aside_html(reading) if counts else "")


def draw_tokens(traces: Traces | None, run_dir: Path, part: str) -> str:
    """Tokens with the largest loss that only the evidence explains, of a part of the run."""
    between, title = None, "Evidence-driven tokens by loss: choose one to open it in Answers"
    parts = loss_shares(traces) if traces is not None and has_gaps(traces) and part else []
    if parts:
        chosen = parts[0 if part == "first" else -1]
        between, title = (chosen.first_step, chosen.last_step), f"{title} ({chosen.steps})"
    cases = illusion.worst_cases(traces or run_dir, between=between)
    return rows_html(cases, WORST_COLUMNS, label="evidence-driven tokens", key=KEY, title=title, tall=440)


def draw_details(
    run_dir: Path, traces: Traces | None, accuracy: Table, theme: str, curve_of: str | None
) -> tuple[object, ...]:
    """Choices of the calibration curve, the curve, over-confidence, entropy, separation, table of accuracies."""
    pairs = [] if accuracy.empty else list(dict.fromkeys(f"{row['policy']}, {row['context']}" for row in accuracy.rows))
    curve_of = curve_of if curve_of in pairs else pairs[0] if pairs else ""
    over, group = overconfidence(accuracy)
    return (
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
        figures.curves(
            entropies(traces, run_dir),
            title="Student entropy",
            theme=theme,
            tints={f"{visibility} tokens": tint for visibility, tint in VISIBILITIES[theme].items()},
        ),
        figures.separation_bars(illusion.separation(traces or run_dir), theme=theme),
        rows_html(
            illusion.newest(accuracy),
            ACCURACY_COLUMNS,
            label="accuracy",
            title="Accuracy and confidence, last evaluation",
            tall=340,
        ),
    )


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


def build_tab(context: AppContext, shared: Shared) -> None:
    """Tiles, charts, confident errors, evidence-driven tokens, details."""
    follow_run(context, shared, "leakage", "rollouts")
    head = fragment_component("four verdicts", elem_id="leakage-headline")
    with gr.Row():
        with gr.Column(min_width=420):
            accuracy = plot_component("accuracy and confidence", elem_id="leakage-accuracy")
        with gr.Column(min_width=420):
            share = plot_component("loss that only the evidence explains", elem_id="leakage-share")
    errors = rows_component("confident errors", elem_id="leakage-wrong")
    with gr.Row(elem_classes="wbu-bar"):
        part = gr.Radio(PARTS, value="", label="tokens of", elem_id="leakage-part")
    worst = rows_component("evidence-driven tokens", elem_id="leakage-worst")
    gr.HTML("<h2>Details</h2>", elem_classes="wbu wbu-words", apply_default_css=False)
    with gr.Row():
        with gr.Column(min_width=420):
            curve_of = gr.Dropdown([], label="calibration of", elem_id="leakage-who")
            reliability = plot_component("calibration")
        with gr.Column(min_width=420):
            over = plot_component("over-confidence")
    with gr.Row():
        with gr.Column(min_width=420):
            entropy = plot_component("entropy")
        with gr.Column(min_width=420):
            separation = plot_component("separation")
    measured = rows_component("accuracy", elem_id="leakage-table")

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    inputs = [shared.run, shared.theme, shared.address, curve_of]
    outputs = [head, accuracy, share, errors, part, worst]
    outputs += [curve_of, reliability, over, entropy, separation, measured]
    shared.on_show("leakage", show_errors(partial(draw, context), len(outputs)), inputs, outputs)
    sync_to_url(shared, {"part": part}, tab="leakage")
    curve_of.input(
        show_errors(lambda run, theme, curve_of: draw_reliability(context.run_dir(run), curve_of, theme)),
        [shared.run, shared.theme, curve_of],
        reliability,
        **quiet,
    )

    case = {"step": "step", "rollout": "rollout", "process": "process", "token": "position"}
    shared.on_choose(worst, case, but="answers", tab="answers")
    error = {name: name for name in ERROR_KEY}
    shared.on_choose(errors, error, but="answers", fixed={"evaluation": "1"}, tab="answers")
