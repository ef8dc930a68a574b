"""Figures of the geometry of an update with its random control, for the app, `workbench geometry` and studies."""

from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from workbench.analysis.geometry.files import Measured
from workbench.analysis.geometry.measure import ATOLS, RANDOM, RATIOS, TOPS, UPDATE
from workbench.analysis.style import MUTED, SERIES, base_figure, escaped, extra_title_height, layout, with_opacity
from workbench.render import render_page

READING = (  # how to read each figure, in the order of all_figures
    "Long bar: most weights did not change. If the bfloat16 bar is long and the float32 bar is short, rounding leaves "
    "the "
    "weights unchanged. Only the part that exceeds the gray control is sparser than chance.",
    "Height: size of the update of a layer relative to the norm of its weights. A flat line means that all layers "
    "changed "
    "by the same relative amount.",
    "At x = k: share of the update in its k largest directions. A line far above the gray one means that the update is "
    "concentrated in a few directions. Band: quartiles over matrices.",
    "Share of the update inside the largest directions of the original weights. Above the gray line, training scaled "
    "existing directions; on it, the update is independent of them.",
    "Above 1: changed weights are of that kind more often than by chance; below 1: less often. Rounding hides small "
    "changes "
    "of large weights, so compare each bar with its gray control.",
)
_NAMES = {UPDATE: "the update", RANDOM: "random, same norm"}
_PLOT = {"displaylogo": False, "responsive": True, "displayModeBar": False}


def all_figures(measured: Measured, theme: str = "light") -> list[go.Figure]:
    """All figures, in the order of READING."""
    return [draw(measured, theme) for draw in (sparsity, sizes, spectrum, projection, enrichment)]


def page(measured: Measured, theme: str = "light") -> str:
    """All figures as a self-contained HTML document."""
    drawn = "".join(
        f"{plot.to_html(full_html=False, include_plotlyjs=False, config=_PLOT)}<p>{escape(text)}</p>"
        for plot, text in zip(all_figures(measured, theme), READING, strict=True)
    )
    return render_page(
        [f"<script>{get_plotlyjs()}</script>{drawn}"], f"Geometry of {measured.facts['name']}", theme=theme
    )


def sparsity(measured: Measured, theme: str = "light") -> go.Figure:
    """Share of unchanged coordinates by group: in float32, rounded to bfloat16, and the rounded control."""
    bars = [
        ("float32", UPDATE, "float32"),
        ("bfloat16", UPDATE, "rounded to bfloat16"),
        ("bfloat16", RANDOM, "random, same norm, rounded to bfloat16"),
    ]
    figure = _grouped(
        measured,
        theme,
        "Unchanged coordinates",
        [(precision, delta, "unchanged", name) for precision, delta, name in bars],
    )
    return figure.update_xaxes(range=[0, 1], tickformat=".0%", title_text="share of unchanged coordinates")


def sizes(measured: Measured, theme: str = "light") -> go.Figure:
    """Relative size of the update by layer, a line per part of the model."""
    figure = base_figure(theme, title="Size of the update, by layer", subtitle=measured.title)
    frame = measured.geometry.tensors
    updates = frame[(frame["precision"] == "float32") & (frame["delta"] == UPDATE)].dropna(subset=["layer"])
    for part_idx, (part, layers) in enumerate(updates.groupby("part", sort=False)):
        energy = (
            layers.assign(delta=layers["delta_norm"] ** 2, source=layers["source_norm"] ** 2)
            .groupby("layer")[["delta", "source"]]
            .sum()
        )
        figure.add_scatter(
            x=energy.index,
            y=(energy["delta"] / energy["source"]) ** 0.5,
            name=escaped(part),
            mode="lines+markers",
            line={"width": 2, "color": SERIES[theme][part_idx]},
            hovertemplate=f"<b>{escaped(part)}</b>, layer %{{x}}<br>%{{y:.3%}} of the weights' norm<extra></extra>",
        )
    return figure.update_xaxes(title_text="layer", dtick=1 if updates["layer"].nunique() < 12 else None).update_yaxes(
        title_text="||D|| / ||W0||", tickformat=".2%", rangemode="tozero"
    )


def spectrum(measured: Measured, theme: str = "light") -> go.Figure:
    """Share of the update in its k largest directions: median over matrices, with quartiles."""
    figure = _over(
        measured,
        theme,
        "Energy in the update's largest directions",
        [(num_directions, f"energy_top_{num_directions}") for num_directions in TOPS],
    )
    return figure.update_xaxes(title_text="singular directions of the update", type="log", tickvals=TOPS).update_yaxes(
        title_text="share of ||D||², median of matrices"
    )


def projection(measured: Measured, theme: str = "light") -> go.Figure:
    """Share of the update inside the source's principal directions: median over matrices, with quartiles."""
    figure = _over(
        measured,
        theme,
        "Energy in the source's principal directions",
        [(ratio, f"projection_{100 * ratio:g}pct") for ratio in RATIOS],
    )
    return figure.update_xaxes(
        title_text="share of the source's directions, left and right", tickformat=".0%", tickvals=RATIOS
    ).update_yaxes(title_text="share of ||D||², median of matrices")


def enrichment(measured: Measured, theme: str = "light") -> go.Figure:
    """Enrichment of principal and small weights among changed coordinates, by group, in bfloat16; 1 = chance."""
    kinds = {"principal": "principal weights", "low": "smallest weights"}
    height = _height(measured, 3)  # that of `sparsity`, which is beside it
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=list(kinds.values()))
    figure.update_layout(
        layout(theme, title="Which weights changed, rounded to bfloat16", subtitle=measured.title, height=height)
    )
    figure.update_annotations(font={"size": 12.5, "color": MUTED[theme]})
    for panel_idx, kind in enumerate(kinds, start=1):
        column = f"enrichment_{kind}_10pct_{ATOLS[0]:.0e}"
        bars = [("bfloat16", delta, column, _NAMES[delta]) for delta in (UPDATE, RANDOM)]
        _add_bars(figure, measured, theme, bars, {"row": 1, "col": panel_idx}, is_named=panel_idx == 1)
        figure.add_vline(x=1, line={"color": MUTED[theme], "dash": "dot", "width": 1}, row=1, col=panel_idx)
    figure.update_layout(
        barmode="group",
        bargap=0.25,
        legend={"traceorder": "normal", "y": 1 - 52 / height, "yref": "container", "yanchor": "top"},
        margin_t=112,
    )
    return figure.update_xaxes(title_text="enrichment; 1 = as by chance", rangemode="tozero").update_yaxes(
        ticksuffix="  "
    )


def _grouped(measured: Measured, theme: str, title: str, bars: list[tuple[str, str, str, str]]) -> go.Figure:
    """Horizontal bars per group. bars: (precision, delta, column, name)."""
    figure = base_figure(theme, title=title, subtitle=measured.title, height=_height(measured, len(bars)))
    _add_bars(figure, measured, theme, bars)
    top = 76 + 20 * len(bars) + extra_title_height(figure.layout.title.text)
    figure.update_layout(barmode="group", bargap=0.25, legend={"traceorder": "normal"}, margin_t=top)
    return figure.update_yaxes(ticksuffix="  ")


def _height(measured: Measured, num_bars: int) -> int:
    return 130 + (17 * measured.geometry.groups["group"].nunique() + 20) * num_bars


def _add_bars(
    figure: go.Figure,
    measured: Measured,
    theme: str,
    bars: list[tuple[str, str, str, str]],
    cell: dict | None = None,
    *,
    is_named: bool = True,
) -> None:
    """Add the bars of one panel, the first group at the top; groups without any of these numbers are left out."""
    groups = measured.geometry.groups
    has_any = groups[list({column for _, _, column, _ in bars})].notna().any(axis=1)
    names = list(dict.fromkeys(groups["group"][has_any]))[::-1]
    for number, (precision, delta, column, name) in enumerate(bars):
        values = (
            groups[(groups["precision"] == precision) & (groups["delta"] == delta)]
            .set_index("group")[column]
            .reindex(names)
        )
        figure.add_bar(
            y=names,
            x=pd.to_numeric(values),
            orientation="h",
            name=escaped(name),
            legendgroup=name,
            showlegend=is_named,
            marker={"color": SERIES[theme][number] if delta == UPDATE else with_opacity(SERIES[theme][-1], 0.5)},
            hovertemplate=f"<b>%{{y}}</b> %{{x:.4g}}<br>{escaped(name)}<extra></extra>",
            **(cell or {}),
        )


def _over(measured: Measured, theme: str, title: str, points: list[tuple[float, str]]) -> go.Figure:
    """Medians over matrices with a band of quartiles, of the update and its control. points: (x, column)."""
    figure = base_figure(theme, title=title, subtitle=measured.title)
    frame = measured.geometry.tensors
    for delta, color in ((UPDATE, SERIES[theme][0]), (RANDOM, SERIES[theme][-1])):
        shares = frame[(frame["precision"] == "float32") & (frame["delta"] == delta)][[column for _, column in points]]
        low, middle, high = (shares.astype(float).quantile(level).tolist() for level in (0.25, 0.5, 0.75))
        x = [level for level, _ in points]
        figure.add_scatter(
            x=[*x, *x[::-1]],
            y=[*low, *high[::-1]],
            fill="toself",
            fillcolor=with_opacity(color, 0.15),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=x,
            y=middle,
            name=_NAMES[delta],
            mode="lines+markers",
            line={"width": 2, "color": color},
            hovertemplate=f"<b>{_NAMES[delta]}</b> %{{y:.2%}} at %{{x}}<br>"
            f"median of {len(shares.dropna(how='all'))} matrices<extra></extra>",
        )
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")
