"""Plot every row's difference to the baseline as a dot with its interval, one panel per measure."""

from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.style import INK, LINE, MUTED, SERIES, base_figure, empty_figure, escaped
from workbench.studies.measures import GAP_RECOVERED, Comparison, Measure, measure_of
from workbench.studies.report import title_of, value_text
from workbench.types import PRIVILEGED, VISIBLE

_WIDE = 180  # characters per subtitle line: this figure has its own page
PANELS = (
    ("accuracy", VISIBLE),
    (GAP_RECOVERED, VISIBLE),
    ("overconfidence", PRIVILEGED),
    ("entropy", "all"),
    ("accuracy", "all"),
    ("calibration_error", "all"),
)


def figure(
    comparisons: list[Comparison],
    *,
    baseline: str,
    title: str,
    data: str | None = None,
    context: str = "plain",
    theme: str = "light",
) -> go.Figure:
    """Plot differences to the baseline with 95 % intervals. Dots are filled where the interval is clear of zero.

    data  label of a question set; None = the first
    """
    data = next((comparison.data for comparison in comparisons), None) if data is None else data
    selected = [comparison for comparison in comparisons if (comparison.data, comparison.context) == (data, context)]
    by_row = {(row.variant, row.measure, row.visibility): row for row in selected if row.against == baseline}
    baselines = {
        (row.measure, row.visibility): row for row in selected if (row.variant, row.against) == (baseline, None)
    }
    names = [name for name in dict.fromkeys(row.variant for row in selected) if any(key[0] == name for key in by_row)]
    panels = [panel for panel in PANELS if any(key[1:] == panel for key in by_row)]
    if ("accuracy", VISIBLE) in panels:
        panels = [panel for panel in panels if panel not in (("accuracy", "all"), ("calibration_error", "all"))]
    if not panels:
        return empty_figure(f"No finished run can be compared with {baseline} yet.", theme, title=title)
    titles = [_panel_title(*panel, baselines.get(panel), baseline) for panel in panels]
    plot = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    subtitle = (
        f"{data}, {context} · difference to {baseline}, paired 95 % intervals over {_seeds(by_row.values())} "
        "and questions · filled: clear of zero"
    )
    height = 190 + 27 * len(names)
    plot.update_layout(base_figure(theme, title=title, subtitle=subtitle, height=height, wrap=_WIDE).layout)
    for column, panel in enumerate(panels, start=1):
        rows = [by_row[name, *panel] for name in names if (name, *panel) in by_row]
        _add_panel(plot, column, measure_of(panel[0]), rows, theme)
    plot.update_yaxes(
        autorange="reversed",
        categoryorder="array",
        categoryarray=[escaped(name) for name in names],
        showgrid=False,
        ticksuffix="  ",
    )
    plot.update_annotations(font={"size": 12.5, "color": MUTED[theme]})
    return plot.update_layout(margin={"t": 112, "b": 52})


def _add_panel(plot: go.Figure, column: int, measure: Measure, rows: list[Comparison], theme: str) -> None:
    """Add one measure: a dot with its interval for each row, and the line at zero."""
    scale = 100.0 if measure.unit == "%" else 1.0
    colors = [_color(row.verdict, theme) for row in rows]
    outlines = [SERIES[theme][6] if color == "rgba(0,0,0,0)" else color for color in colors]
    plot.add_scatter(
        x=[scale * row.value for row in rows],
        y=[escaped(row.variant) for row in rows],
        mode="markers",
        showlegend=False,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [scale * (row.high - row.value) for row in rows],
            "arrayminus": [scale * (row.value - row.low) for row in rows],
            "thickness": 1.6,
            "width": 3,
            "color": MUTED[theme],
        },
        marker={"size": 9, "color": colors, "line": {"width": 1.6, "color": outlines}},
        customdata=[[row.verdict, scale * row.low, scale * row.high, row.num_seeds] for row in rows],
        hovertemplate=(
            f"<b>%{{y}}</b> {escaped(measure.label)}<br>"
            "%{x:+.3g} [%{customdata[1]:+.3g}, %{customdata[2]:+.3g}], %{customdata[3]} seeds<br>"
            "%{customdata[0]}<extra></extra>"
        ),
        row=1,
        col=column,
    )
    plot.add_vline(x=0, line={"color": INK[theme], "width": 1}, row=1, col=column)
    unit = "percentage points" if measure.unit == "%" else measure.unit
    plot.update_xaxes(title_text=unit, showgrid=True, gridcolor=LINE[theme], row=1, col=column)


def _seeds(comparisons: Iterable[Comparison]) -> str:
    """The number of seeds behind the intervals, or its range."""
    counts = sorted({comparison.num_seeds for comparison in comparisons if comparison.num_seeds})
    numbers = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{numbers} {'seed' if counts[-1] == 1 else 'seeds'}"


def _panel_title(measure: str, visibility: str, baseline_mean: Comparison | None, baseline: str) -> str:
    name = title_of(measure, visibility)
    if baseline_mean is None:
        return escaped(name)
    return f"{escaped(name)}<br>{escaped(baseline)}: {value_text(baseline_mean)}"


def _color(verdict: str, theme: str) -> str:
    return {
        "better": SERIES[theme][2],
        "worse": SERIES[theme][1],
        "higher": SERIES[theme][0],
        "lower": SERIES[theme][0],
    }.get(verdict, "rgba(0,0,0,0)")
