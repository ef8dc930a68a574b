"""The tab of movement: probes over training, as fragments and figures."""

from failures import raises
from test_answers import keys

from workbench.app.components import TRACES
from workbench.app.context import AppContext
from workbench.app.tabs import movement
from workbench.errors import TraceError

VALUE, FIRST, LAST, VISIBILITY, SPLIT, MEASURE, LISTED, MAP, HEATMAP, FLOW, SHARES, MOVED = range(12)


def draw(context: AppContext, run: str = "dopd", **values: str) -> tuple:
    return movement.draw(context, run, "light", values)


def test_movement_no_address_draws_most_moved_probe(context: AppContext) -> None:
    drawn = draw(context)
    rows = keys(drawn[LISTED])
    assert len(rows) == 3 and "wb-movement" in drawn[MAP].value and drawn[MAP].visible
    assert drawn[FIRST].value == "0" and drawn[LAST].value == "4"
    assert (
        not drawn[HEATMAP].visible and drawn[FLOW].value.data[0].type == "sankey"
        if hasattr(drawn[FLOW].value, "data")
        else True
    )


def test_movement_address_chooses_probe(context: AppContext) -> None:
    assert "probe 2" in draw(context, probe="1", rollout="2")[MAP].value


def test_draw_probe_gap_returns_heatmap_or_reason(context: AppContext) -> None:
    traces = TRACES.of(context.run_dir("dopd"))
    html, figure = movement.draw_probe(traces, {"process": 0, "rollout": 0}, "information_gap", "dark")
    assert html == "" and figure.data[0].type == "heatmap"
    opd = TRACES.of(context.run_dir("opd"))
    html, figure = movement.draw_probe(opd, {"process": 0, "rollout": 0}, "information_gap", "dark")
    assert figure is None and "information gap" in html


def test_draw_flow_unprobed_step_raises(context: AppContext) -> None:
    traces = TRACES.of(context.run_dir("dopd"))
    assert movement.draw_flow(traces, "0", "4", "", "light").data[0].type == "sankey"
    with raises(TraceError, "probed"):
        movement.draw_flow(traces, "0", "3", "", "light")
    drawn = draw(context, **{"from": "3", "to": "2", "of": "visible", "panels": "no such"})
    assert drawn[FIRST].value == "0", "a step of another run falls back"
    assert drawn[LAST].value == "2" and drawn[VISIBILITY] == "visible" and drawn[SPLIT] == ""


def test_draw_shares_by_domain_has_panel_each(context: AppContext) -> None:
    traces = TRACES.of(context.run_dir("dopd"))
    item, many = (movement.draw_shares(traces, split, "loss_share", "light") for split in ("", "domain"))
    assert len(many.data) == 3 * len(item.data), "three probes, each of a domain of its own"


def test_movement_no_probes_names_config_key(context: AppContext) -> None:
    assert "trace.probes" in draw(context, "begun")[MAP]
