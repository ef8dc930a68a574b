"""Dots with intervals: how every row differs from the baseline, one panel per measure."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.style import INK, LINE, MUTED, SERIES, empty_figure, escaped
from workbench.analysis.style import figure as styled
from workbench.studies.measures import GAP_RECOVERED, Comparison, measure_of
from workbench.types import PRIVILEGED, VISIBLE

_WIDE = 180  # characters: this figure has a page to itself
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
    """Differences to the baseline with 95 % intervals; filled where clear of zero. data: default the first."""
    data = next((one.data for one in comparisons), None) if data is None else data
    own = [one for one in comparisons if (one.data, one.context) == (data, context)]
    apart = {(one.variant, one.measure, one.truth): one for one in own if one.against == baseline}
    alone = {(one.variant, one.measure, one.truth): one for one in own if one.against is None}
    names = list(dict.fromkeys(one.variant for one in own if any(key[0] == one.variant for key in apart)))
    panels = [key for key in PANELS if any(one[1:] == key for one in apart)]
    if ("accuracy", VISIBLE) in panels:
        panels = [key for key in panels if key not in (("accuracy", "all"), ("calibration_error", "all"))]
    if not panels:
        return empty_figure(f"No finished run can be compared with {baseline} yet.", theme, title=title)
    heads = [_head(*key, alone.get((baseline, *key)), baseline) for key in panels]
    made = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=heads)
    height = 190 + 27 * len(names)
    counts = sorted({one.num_seeds for one in apart.values() if one.num_seeds})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    seeds += " seed" if counts[-1] == 1 else " seeds"
    subtitle = f"{data}, {context} · difference to {baseline}, paired 95 % intervals over {seeds} and questions · filled: clear of zero"
    made.update_layout(styled(theme, title=title, subtitle=subtitle, height=height, wrap=_WIDE).layout)
    for place, key in enumerate(panels, start=1):
        scale = 100.0 if measure_of(key[0]).unit == "%" else 1.0
        shown = [(name, apart[name, *key]) for name in names if (name, *key) in apart]
        colors = [_color(one.verdict, theme) for _, one in shown]
        made.add_scatter(
            x=[scale * one.value for _, one in shown],
            y=[escaped(name) for name, _ in shown],
            mode="markers",
            showlegend=False,
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [scale * (one.high - one.value) for _, one in shown],
                "arrayminus": [scale * (one.value - one.low) for _, one in shown],
                "thickness": 1.6,
                "width": 3,
                "color": MUTED[theme],
            },
            marker={
                "size": 9,
                "color": colors,
                "line": {
                    "width": 1.6,
                    "color": [SERIES[theme][6] if color == "rgba(0,0,0,0)" else color for color in colors],
                },
            },
            customdata=[[one.verdict, scale * one.low, scale * one.high, one.num_seeds] for _, one in shown],
            hovertemplate=f"<b>%{{y}}</b> {escaped(measure_of(key[0]).label)}<br>%{{x:+.3g}} [%{{customdata[1]:+.3g}}, %{{customdata[2]:+.3g}}], %{{customdata[3]}} seeds<br>%{{customdata[0]}}<extra></extra>",
            row=1,
            col=place,
        )
        made.add_vline(x=0, line={"color": INK[theme], "width": 1}, row=1, col=place)
        unit = "percentage points" if scale == 100.0 else measure_of(key[0]).unit
        made.update_xaxes(title_text=unit, showgrid=True, gridcolor=LINE[theme], row=1, col=place)
    made.update_yaxes(
        autorange="reversed",
        categoryorder="array",
        categoryarray=[escaped(name) for name in names],
        showgrid=False,
        ticksuffix="  ",
    )
    made.update_annotations(font={"size": 12.5, "color": MUTED[theme]})
    return made.update_layout(margin={"t": 112, "b": 52})


def _head(measure: str, truth: str, own: Comparison | None, baseline: str) -> str:
    known = measure_of(measure)
    name = known.label + ("" if truth == "all" else f", {truth}")
    if own is None:
        return escaped(name)
    value = f"{100 * own.value:.{known.digits}f} %" if known.unit == "%" else f"{own.value:.{known.digits}f}"
    return f"{escaped(name)}<br>{escaped(baseline)}: {value}"


def _color(verdict: str, theme: str) -> str:
    return {
        "better": SERIES[theme][2],
        "worse": SERIES[theme][1],
        "higher": SERIES[theme][0],
        "lower": SERIES[theme][0],
    }.get(verdict, "rgba(0,0,0,0)")
