"""Movement: changes of regime over training, on probes, whose tokens stay the same."""

from collections.abc import Mapping
from functools import partial

import gradio as gr

from workbench.analysis import figures, movement, regimes
from workbench.analysis.table import NO_PROBES, Table
from workbench.app.components import (
    TRACES,
    Column,
    empty_html,
    evenly_spaced,
    fragment_component,
    int_param,
    plot_component,
    remount,
    rows_component,
    rows_html,
)
from workbench.app.context import CHOICES, AppContext, Shared, choice, show_errors, sync_to_url
from workbench.app.live_updates import follow_run
from workbench.render import render_movement
from workbench.traces.reader import Traces

VALUES = (
    ("regime", "regime"),
    ("capability gap", "capability_gap"),
    ("information gap", "information_gap"),
    ("loss", "loss"),
    ("student entropy", "entropy_student"),
)
SPLITS = (("all tokens", ""), ("by token type", "token_type"), ("by visibility", "visibility"), ("by domain", "domain"))
MEASURES = (("tokens", "position_share"), ("loss", "loss_share"))
VISIBILITIES = (("all tokens", ""), ("visible tokens", "visible"), ("privileged tokens", "privileged"))
PROBE_KEY = ("process", "rollout")
PROBES = "Probes: fixed answers, scored again every few steps. Choose one to see its tokens over training"
PROBE_COLUMNS = (
    Column("rollout", "probe", "number"),
    Column("domain", kind="short"),
    Column("question"),
    Column("answer"),
    Column("right", "grade", "right"),
    Column("tokens", "", "number"),
    Column("changes", "regime changes", "number"),
)
MOVED_KEY = ("process", "rollout", "position", "last_step")
MOVED_COLUMNS = (
    Column("token", kind="token"),
    Column("token_type", "token type", "short"),
    Column("visibility", kind="short"),
    Column("changes", kind="number"),
    Column("way", "regime path", "short"),
    Column("information_gap", kind="signed"),
    Column("rollout", "probe", "number"),
    Column("example", kind="short"),
)


def draw(
    context: AppContext,
    run: str | None,
    theme: str,
    address: Mapping | None,
) -> tuple:
    """Choices, probes, one probe as a fragment or a figure, flow between steps, shares, moved tokens."""
    traces = TRACES.of(context.run_dir(run))
    chosen = partial(choice, address, "movement")
    value, visibility, split, measure = (
        chosen(name, [option for _, option in allowed])
        for name, allowed in (("color", VALUES), ("of", VISIBILITIES), ("panels", SPLITS), ("share", MEASURES))
    )
    if traces is None or not traces.steps("probe_rollouts"):
        nothing = gr.Plot(visible=False)
        steps = gr.Dropdown(choices=[], value=None)
        return value, steps, steps, visibility, split, measure, "", empty_html(NO_PROBES), nothing, nothing, nothing, ""
    steps = [str(step) for step in traces.steps("probe_rollouts")]
    first, last = chosen("from", steps) or steps[0], chosen("to", steps) or steps[-1]
    listed, key = draw_probes(traces, address)
    fragment, figure = draw_probe(traces, key, value, theme)
    return (
        value,
        gr.Dropdown(choices=evenly_spaced(steps), value=first, allow_custom_value=True),
        gr.Dropdown(choices=evenly_spaced(steps), value=last, allow_custom_value=True),
        visibility,
        split,
        measure,
        listed,
        gr.HTML(value=fragment, visible=figure is None),
        gr.Plot(value=figure, visible=figure is not None),
        gr.Plot(value=draw_flow(traces, first, last, visibility, theme), visible=True),
        gr.Plot(value=draw_shares(traces, split, measure, theme), visible=True),
        draw_moved(traces),
    )


def draw_probes(traces: Traces, address: Mapping | None) -> tuple[str, dict | None]:
    """The probes as a table, and the key of the open one: the address's, else the one with the most changes."""
    probes = movement.probes(traces)
    keys = [{name: row[name] for name in PROBE_KEY} for row in probes.rows]
    wanted = None
    if (address or {}).get("probe"):
        wanted = {"process": int_param(address, "process") or 0, "rollout": int_param(address, "rollout")}
    most = max(range(len(keys)), key=lambda probe_idx: probes.rows[probe_idx]["changes"], default=None)
    key = wanted if wanted in keys else None if most is None else keys[most]
    html = rows_html(
        probes, PROBE_COLUMNS, label="probes", key=PROBE_KEY, chosen=key, title=PROBES, tall=270, follow=True
    )
    return html, key


def draw_probe(traces: Traces, key: Mapping | None, value: str, theme: str) -> tuple[str, object | None]:
    """One probe over training: regimes as a fragment, other values as a figure."""
    if key is None:
        return empty_html(NO_PROBES), None
    rollout, process = int(key["rollout"]), int(key["process"])
    if value == "regime":
        moved = movement.of_probe(traces, rollout, process=process)
        if moved.empty:
            return empty_html(moved.empty), None
        return remount(
            render_movement(moved.steps, moved.tokens, moved.regimes, moved.notes, title=moved.title, standalone=False)
        ), None
    values = movement.values_of_probe(traces, rollout, value=value, process=process)
    if not values.empty and values.frame["value"].isna().all():
        label = {name: text for text, name in VALUES}[value]
        return empty_html(
            f"Not recorded for this method: {label}. Choose another value, or a run of another method."
        ), None
    return "", figures.heatmap(values, title=f"Probe {rollout}: {value.replace('_', ' ')}", theme=theme)


def draw_flow(traces: Traces, first: str, last: str, visibility: str | None, theme: str) -> object:
    """Sankey diagram of the tokens' regimes at two probed steps."""
    flows = movement.transitions(traces, int(first), int(last), visibility=visibility or None)
    return figures.sankey(flows, movement.regime_notes(traces), theme=theme)


def draw_shares(traces: Traces, split: str | None, measure: str, theme: str) -> object:
    """Regime shares of the probes' tokens or loss over steps."""
    shares = regimes.shares_over_steps(traces, split=split or None, probe=True)
    return figures.stacked_shares(shares, by=measure, title="probes", theme=theme, min_height=figures.SANKEY_HEIGHT)


def draw_moved(traces: Traces) -> str:
    """Tokens with the most regime changes; a row opens its answer."""
    moved: Table = movement.most_moved(traces)
    return rows_html(
        moved,
        MOVED_COLUMNS,
        label="tokens with regime changes",
        key=MOVED_KEY,
        title="Tokens with the most regime changes: choose one to open it in Answers",
        tall=420,
    )


def build_tab(context: AppContext, shared: Shared) -> None:
    """A probe over training, flow between two steps, shares over steps, moved tokens."""
    follow_run(context, shared, "movement", "probe_rollouts")
    listed = rows_component("probes", elem_id="movement-probes")
    value = gr.Radio(VALUES, value="regime", label="color by", elem_id="movement-value")
    fragment = fragment_component("one probe over training", elem_id="movement-map")
    heatmap = plot_component("one probe over training", visible=False)
    with gr.Row():
        with gr.Column(min_width=420):
            with gr.Row():
                first = gr.Dropdown(
                    [], label="from step", min_width=90, allow_custom_value=True, elem_id="movement-first"
                )
                last = gr.Dropdown([], label="to step", min_width=90, allow_custom_value=True, elem_id="movement-last")
                visibility = gr.Dropdown(VISIBILITIES, value="", label="tokens", min_width=140)
            flow = plot_component("regime flow", elem_id="movement-flow")
        with gr.Column(min_width=420):
            with gr.Row():
                split = gr.Dropdown(SPLITS, value="", label="panels", min_width=120, elem_id="movement-split")
                measure = gr.Dropdown(MEASURES, value="position_share", label="share of", min_width=120)
            shares = plot_component("shares over steps", elem_id="movement-shares")
    moved = rows_component("tokens with regime changes", elem_id="movement-moved")

    boxes = [value, first, last, visibility, split, measure]
    outputs = [*boxes, listed, fragment, heatmap, flow, shares, moved]
    shared.on_show(
        "movement",
        show_errors(partial(draw, context), len(outputs)),
        [shared.run, shared.theme, shared.address],
        outputs,
    )
    sync_to_url(shared, dict(zip(CHOICES["movement"], boxes, strict=True)), tab="movement")

    probe = {"rollout": "rollout", "process": "process"}
    # the step stays, so that the probe's answer opens at the same step
    shared.on_choose(listed, probe, keeps=["step"], fixed={"probe": "1"})
    token = {"step": "last_step", **probe, "token": "position"}
    shared.on_choose(moved, token, but="answers", fixed={"probe": "1"}, tab="answers")
