"""Figures say what their tables say, with units, run and step, in both themes; and nothing becomes a sentence."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from failures import raises

from workbench.analysis import figures, illusion, movement, regimes
from workbench.analysis import runs as run_tables
from workbench.analysis.style import INK, SERIES, SURFACE, base_figure
from workbench.analysis.table import Table, table
from workbench.errors import ConfigError
from workbench.render.colors import contrast

# the models are random, so their runs have no privileged token
SEPARATION = {"gap": "information gap", "auroc": 0.75, "num_privileged": 8, "num_visible": 40}
UNITS = {"auroc": "area under the ROC curve", "num_privileged": "tokens", "num_visible": "tokens"}


def drawn(dopd: Path, theme: str) -> dict[str, go.Figure]:
    """One of every kind."""
    notes = movement.regime_notes(dopd)
    return {
        "curves": figures.curves(run_tables.metrics(dopd, ("loss",)), title="Loss", theme=theme),
        "stacked": figures.stacked_shares(regimes.shares_over_steps(dopd, split="token_type"), theme=theme),
        "bars of shares": figures.share_bars(regimes.shares_by(dopd, "token_type"), title="Kinds", theme=theme),
        "gaps": figures.gap_curves(regimes.gaps_over_steps(dopd), theme=theme),
        "sankey": figures.sankey(movement.transitions(dopd), notes, theme=theme),
        "numbers": figures.heatmap(movement.values_of_probe(dopd, 0, value="loss"), title="Probe", theme=theme),
        "bars": figures.separation_bars(
            table([SEPARATION], list(SEPARATION), run="dopd", units=UNITS, empty=""), theme=theme
        ),
        "accuracy": figures.accuracy_curves(illusion.accuracy(dopd), theme=theme),
        "reliability": figures.reliability(illusion.reliability(dopd), theme=theme),
        "information": figures.information_share(illusion.information_dominated_loss(dopd), theme=theme),
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_in_both_themes_name_run_and_units(dopd: Path, theme: str) -> None:
    for kind, created in drawn(dopd, theme).items():
        assert "dopd" in created.layout.title.text, kind
        assert created.layout.template.layout.paper_bgcolor == SURFACE[theme] and len(created.data), kind
        if kind not in ("sankey",):
            titles = [axis.title.text for axis in (*created.select_xaxes(), *created.select_yaxes())]
            assert any(titles), kind
        for trace in created.data:
            displayed = (
                [trace.node.hovertemplate, trace.link.hovertemplate] if kind == "sankey" else [trace.hovertemplate]
            )
            assert trace.hoverinfo == "skip" or all("<extra></extra>" in text for text in displayed), kind
        created.to_json()


def test_curves_values_equal_table(dopd: Path) -> None:
    table = run_tables.metrics(dopd, ("loss",))
    (trace,) = figures.curves(table, title="Loss").data
    assert list(trace.y) == table.frame["value"].tolist() and list(trace.x) == [1, 2, 3, 4]
    assert "nats" in trace.hovertemplate and "step %{x}" in trace.hovertemplate


def test_sankey_links_equal_table_rows(dopd: Path) -> None:
    table = movement.transitions(dopd)
    created = figures.sankey(table, movement.regime_notes(dopd))
    link = created.data[0].link
    assert list(link.value) == table.frame["num_positions"].tolist()
    moved = table.frame.loc[table.frame["source"] != table.frame["target"], "num_positions"].sum()
    assert f"{moved:,} of {table.frame['num_positions'].sum():,} probe tokens changed" in created.layout.title.text


def test_stacked_shares_sum_to_one(dopd: Path) -> None:
    created = figures.stacked_shares(regimes.shares_over_steps(dopd))
    labels = ["LH: teacher, light", "LL: privileged student, weak", "HT: teacher, strong"]
    assert [trace.name for trace in created.data] == [*labels, "HS: privileged student, light"]
    assert [sum(values) for values in zip(*(trace.y for trace in created.data), strict=True)] == pytest.approx(
        [1.0] * 4
    )
    assert len({trace.fillcolor for trace in created.data}) == 4


def test_stacked_shares_single_step_is_stacked_bar(dopd: Path) -> None:
    result = regimes.shares_over_steps(dopd)
    first = replace(result, frame=result.frame[result.frame["step"] == 1])
    created = figures.stacked_shares(first)
    assert {trace.type for trace in created.data} == {"bar"} and created.layout.barmode == "stack"
    assert sum(trace.y[0] for trace in created.data) == pytest.approx(1.0)


def test_figures_empty_table_shows_message() -> None:
    nothing = Table(pd.DataFrame(), empty="Wait for the first step, then <b>look</b> again.")
    for draw in (figures.curves, figures.share_bars, figures.heatmap):
        created = draw(nothing, title="Nothing")
        assert "Wait for the first step, then &lt;b&gt;look&lt;/b&gt; again." in created.layout.annotations[
            0
        ].text.replace("<br>", " ")
    for draw in (figures.stacked_shares, figures.gap_curves, figures.accuracy_curves, figures.information_share):
        assert draw(nothing).layout.annotations[0].text
    assert figures.sankey(nothing, {}).layout.annotations[0].text


def test_gap_curves_missing_gaps_show_message(dopd: Path, opd: Path) -> None:
    assert "no privileged student" in figures.gap_curves(regimes.gaps_over_steps(opd)).layout.annotations[0].text
    gaps = regimes.gaps_over_steps(dopd)
    drawn = figures.gap_curves(replace(gaps, frame=gaps.frame.assign(abs_capability_gap=float("nan"))))
    assert {trace.name for trace in drawn.data} == {"information gap"}, "as of a method without a teacher"


def test_stacked_shares_one_regime_show_message(opd: Path) -> None:
    drawn = figures.stacked_shares(regimes.shares_over_steps(opd))
    assert not drawn.data and "regime ALL at every step" in drawn.layout.annotations[0].text


def curve(*values: float) -> go.Figure:
    rows = [{"step": step, "metric": "learning_rate", "value": value} for step, value in enumerate(values, start=1)]
    return figures.curves(Table(pd.DataFrame(rows), run="run"), title="Learning rate")


def test_curve_constant_values_axis_starts_at_zero() -> None:
    """Plotly draws a constant in the middle of an axis from one below it to one above it, unless it must reach zero."""
    for values in ((1e-4,) * 3, (-1e-4,) * 3, (0.0,) * 2, (1e-4,), (1e-4, 1e-4 + 1e-13)):
        assert curve(*values).layout.yaxis.rangemode == "tozero", values
    assert curve(1e-4, 2e-4).layout.yaxis.rangemode is None
    frame = pd.DataFrame(
        [
            {
                "step": step,
                "visibility": "visible",
                "abs_capability_gap": 0.1,
                "abs_information_gap": 0.1,
                "num_positions": 3,
            }
            for step in (1, 2)
        ]
    )
    gaps = figures.gap_curves(Table(frame, run="run"))
    assert gaps.layout.yaxis.rangemode == "tozero"
    assert [trace.name for trace in gaps.data] == ["capability gap", "information gap"]


def test_curve_nan_values_are_named_in_title() -> None:
    nan = float("nan")
    for values, output in (
        ((1, nan, nan), "not finite from step 2<"),
        ((1, nan, 3), "not finite at step 2<"),
        ((1, nan, 3, nan), "not finite at step 2 and later<"),
        ((nan,), "not finite at step 1<"),
        ((1, float("inf")), "not finite at step 2<"),
    ):
        assert output in curve(*values).layout.title.text, values
    assert "not finite" not in curve(1, 2).layout.title.text
    thinned = run_tables.thin(
        pd.DataFrame({"step": range(5000), "metric": "loss", "value": [1.0] * 2000 + [nan] * 3000})
    )
    assert thinned["step"].iloc[-1] == 4999 and thinned["value"].isna().sum() == 2 and 2000 in set(thinned["step"])


def test_heatmap_long_answer_has_no_tick_labels() -> None:
    rows = [
        {"step": step, "position": index, "token": "word", "value": 0.5} for step in (0, 20) for index in range(838)
    ]
    created = figures.heatmap(Table(pd.DataFrame(rows), run="run"), title="Probe")
    assert created.layout.xaxis.ticktext is None and created.layout.xaxis.title.text == "token position"
    assert created.layout.height >= 260, "room for the numbers of the color bar"


def test_base_figure_user_text_is_escaped() -> None:
    assert "&lt;script&gt;" in base_figure("light", title="<script>", subtitle="a&b").layout.title.text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_theme_colors_have_enough_contrast(theme: str) -> None:
    assert contrast(INK[theme], SURFACE[theme]) >= 7
    assert all(contrast(color, SURFACE[theme]) >= 3 for color in SERIES[theme])


def test_base_figure_unknown_theme_raises() -> None:
    with raises(ConfigError, "drak", "dark"):
        base_figure("drak", title="")
