"""Plotly figures of this package's tables, with units on axes, the run in titles, and steps in hover texts.

An empty table becomes a figure with the table's message. `theme` is light or dark.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.analysis.style import (
    CAPABILITY,
    DASHES,
    INFORMATION,
    INK,
    LINE,
    MONO,
    MUTED,
    POLICIES,
    SANS,
    SERIES,
    SURFACE,
    VISIBILITIES,
    base_figure,
    bound,
    colorscale,
    empty_figure,
    escaped,
    extra_title_height,
    from_zero_if_constant,
    layout,
    regime_fills,
    step_axis,
    with_opacity,
)
from workbench.analysis.table import Table
from workbench.render.colors import ink
from workbench.render.text import plain, visible_text
from workbench.render.view import RegimeNote

STEP = "step"
SANKEY_HEIGHT = 420
MAX_TOKEN_LABELS = 60  # along the axis of a heatmap
MEASURES = {"position_share": "share of tokens", "loss_share": "share of loss"}


def curves(
    table: Table, *, title: str, theme: str = "light", height: int = 340, tints: Mapping[str, str] | None = None
) -> go.Figure:
    """Metrics over steps, of a table with step, metric, value and optionally run. A color per metric, a dash per run.

    tints  colors of some metrics, instead of the series' own
    """
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    figure = base_figure(theme, title=title, subtitle=f"{table.run}{_not_numbers(table.frame)}", height=height)
    frame = table.frame if "run" in table.frame else table.frame.assign(run=table.run)
    names, runs = list(frame["metric"].unique()), list(frame["run"].unique())
    for (run, name), curve in frame.groupby(["run", "metric"], sort=False):
        label = _words(name) if len(runs) == 1 else run if len(names) == 1 else f"{run}: {_words(name)}"
        by_run = len(names) == 1
        series = _series(theme, runs.index(run) if by_run else names.index(name))
        unit = table.units.get(name, "")
        figure.add_scatter(
            x=curve["step"],
            y=curve["value"],
            name=escaped(label),
            mode="lines+markers" if len(curve) < 40 else "lines",
            line={
                "width": 2,
                "color": (tints or {}).get(name, series),
                "dash": DASHES[0 if by_run else runs.index(run) % len(DASHES)],
            },
            marker={"size": 5},
            hovertemplate=f"<b>{escaped(_words(name))}</b> %{{y:.4g}} {escaped(unit)}<br>"
            f"{escaped(run)}, step %{{x}}<extra></extra>",
        )
    units = list(dict.fromkeys(table.units.get(name, "") for name in names))
    step_axis(figure, frame["step"]).update_yaxes(title_text=escaped(", ".join(unit for unit in units if unit)))
    figure.update_layout(showlegend=len(names) * len(runs) > 1)
    if all("share" in unit for unit in units):
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return from_zero_if_constant(figure)


def stacked_shares(
    table: Table,
    *,
    by: str = "position_share",
    title: str = "",
    theme: str = "light",
    min_height: int = 0,
) -> go.Figure:
    """Regimes' shares over steps as stacked areas, one panel per group; a single step as a stacked bar.

    by          position_share or loss_share
    title       added to "Token share by regime"
    min_height  pixels, to match a figure beside it
    """
    message = table.empty or _only_regime(table.frame)
    if message:
        return empty_figure(message, theme, title=_share_title(by, title))
    frame = table.frame.fillna({by: 0.0})
    counts = frame.groupby("group")["num_positions"].sum().sort_values(ascending=False)
    groups, notes = list(counts.index), _notes_of(frame)
    rows, columns = -(-len(groups) // 3), min(3, len(groups))
    figure = make_subplots(
        rows,
        columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.3 / rows if rows > 1 else 0,
        subplot_titles=[f"{escaped(name)} · {counts[name]:,} tokens" for name in groups] if len(groups) > 1 else None,
    )
    height = max(min_height, 150 + 200 * rows)
    _style_panels(figure, theme, title=_share_title(by, title), subtitle=table.run, height=height)
    fills = regime_fills(notes, theme)
    is_single = frame["step"].nunique() == 1  # an area over one step has no width
    for panel_idx, group in enumerate(groups):
        panel = frame[frame["group"] == group]
        for name, (color, pattern) in fills.items():
            part = panel[panel["regime"] == name]
            _add_share(
                figure,
                is_single,
                (color, pattern),
                theme,
                group,
                x=part["step"],
                y=part[by],
                name=escaped(_regime_label(name, notes[name])),
                legendgroup=name,
                showlegend=panel_idx == 0,
                customdata=part["num_positions"],
                hovertemplate=f"<b>{escaped(name)}</b> %{{y:.1%}} {MEASURES[by]}<br>{escaped(notes[name].meaning)}<br>"
                f"%{{customdata:,}} tokens, step %{{x}}, {escaped(group)}<extra></extra>",
                row=panel_idx // columns + 1,
                col=panel_idx % columns + 1,
            )
    if is_single:
        step = int(frame["step"].iloc[0])
        figure.update_layout(barmode="stack").update_xaxes(range=[step - 1, step + 1])
    figure.update_yaxes(range=[0, 1], tickformat=".0%").update_yaxes(title_text=MEASURES[by], col=1)
    step_axis(figure, frame["step"]).update_xaxes(showline=False, title_text="").update_xaxes(title_text=STEP, row=rows)
    return figure


def _only_regime(frame: pd.DataFrame) -> str:
    """A message in place of shares that are all 100 %; "" if there are several regimes."""
    names = frame["regime"].unique()
    return f"All tokens have regime {names[0]} at every step." if len(names) == 1 else ""


def _add_share(
    figure: go.Figure, is_single: bool, fill: tuple[str, str], theme: str, group: str, **trace: object
) -> None:
    """One regime's trace of `stacked_shares`: a bar for a single step, else an area of the group's stack."""
    color, pattern = fill
    edge = {"width": 0.8, "color": SURFACE[theme]}
    hatching = None
    if pattern:
        hatching = {
            "shape": pattern,
            "fgcolor": with_opacity("#000000", 0.28),
            "fgopacity": 0.35,
            "size": 6,
            "solidity": 0.2,
            "fillmode": "overlay",
        }
    if is_single:
        figure.add_bar(width=0.4, marker={"color": color, "pattern": hatching, "line": edge}, **trace)
    else:
        figure.add_scatter(mode="lines", stackgroup=group, line=edge, fillcolor=color, fillpattern=hatching, **trace)


def share_bars(table: Table, *, by: str = "position_share", title: str, theme: str = "light") -> go.Figure:
    """Regime shares per token type, visibility or domain, stacked, with token counts; `title` as in stacked_shares."""
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    frame = table.frame.fillna({by: 0.0})
    counts = frame.groupby("group", sort=False)["num_positions"].sum()
    labels = {
        group: f"{escaped(group)}<br><span style='color:{MUTED[theme]}'>{n:,}</span>" for group, n in counts.items()
    }
    figure = base_figure(theme, title=_share_title(by, title), subtitle=table.run, height=150 + 46 * len(counts))
    notes = _notes_of(frame)
    for name, (color, pattern) in regime_fills(notes, theme).items():
        part = frame[frame["regime"] == name]
        figure.add_bar(
            y=[labels[group] for group in part["group"]],
            x=part[by],
            orientation="h",
            name=escaped(_regime_label(name, notes[name])),
            customdata=part["num_positions"],
            marker={
                "color": color,
                "line": {"width": 1, "color": SURFACE[theme]},
                "pattern": {
                    "shape": pattern,
                    "fillmode": "overlay",
                    "fgcolor": "#000000",
                    "fgopacity": 0.22,
                    "size": 6,
                    "solidity": 0.2,
                },
            },
            text=[f"{name} {value:.0%}" if value >= 0.08 else "" for value in part[by]],
            textposition="inside",
            insidetextanchor="middle",
            textfont={"color": ink(color), "size": 12},
            textangle=0,
            hovertemplate=f"<b>{escaped(name)}</b> %{{x:.1%}} {MEASURES[by]}<br>"
            "%{customdata:,} tokens<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.28, legend_traceorder="normal")
    figure.update_xaxes(range=[0, 1], tickformat=".0%", title_text=MEASURES[by])
    return figure.update_yaxes(autorange="reversed")


def gap_curves(table: Table, *, theme: str = "light") -> go.Figure:
    """Mean size of the capability and the information gap per token over steps, a panel per visibility."""
    title = "Capability and information gap"
    styles = {
        "abs_capability_gap": {"color": CAPABILITY[theme], "dash": DASHES[0]},
        "abs_information_gap": {"color": INFORMATION[theme], "dash": DASHES[1]},
    }
    columns = [column for column in styles if not table.empty and table.frame[column].notna().any()]
    if not columns:
        message = table.empty or "This method has no privileged student, so its gap cannot be split."
        return empty_figure(message, theme, title=title)
    visibilities = list(table.frame["visibility"].unique())
    figure = make_subplots(
        1,
        len(visibilities),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[escaped(f"{visibility} tokens") for visibility in visibilities],
    )
    _style_panels(figure, theme, title=title, subtitle=table.run)
    for panel_idx, visibility in enumerate(visibilities):
        of_visibility = table.frame[table.frame["visibility"] == visibility]
        for column in columns:
            name = _words(column.removeprefix("abs_"))
            figure.add_scatter(
                x=of_visibility["step"],
                y=of_visibility[column],
                name=name,
                legendgroup=name,
                showlegend=panel_idx == 0,
                mode="lines" if len(of_visibility) > 1 else "markers",
                line={"width": 2, **styles[column]},
                meta={"label": f"{name}, {visibility} tokens"},
                customdata=of_visibility["num_positions"],
                hovertemplate=f"<b>{name}</b> %{{y:.3f}} nats per token<br>%{{customdata:,}} {escaped(visibility)}"
                " tokens, step %{x}<extra></extra>",
                row=1,
                col=panel_idx + 1,
            )
    step_axis(figure, table.frame["step"]).update_yaxes(title_text="mean size, nats per token", col=1)
    return from_zero_if_constant(figure)


def sankey(table: Table, notes: dict[str, RegimeNote], *, theme: str = "light") -> go.Figure:
    """Sankey diagram of probe tokens' regimes at two steps; `notes` of movement.regime_notes."""
    title = "Regime changes of probe tokens"
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    frame = table.frame
    first, last = int(frame["first_step"].iloc[0]), int(frame["last_step"].iloc[0])
    total, moved = frame["num_positions"].sum(), frame.loc[frame["source"] != frame["target"], "num_positions"].sum()
    subtitle = f"{table.run} · step {first} → {last} · {moved:,} of {total:,} probe tokens changed"
    figure = base_figure(theme, title=title, subtitle=subtitle, height=SANKEY_HEIGHT)
    fills = regime_fills(notes, theme)
    nodes = [(side, name) for side in ("source", "target") for name in notes if (frame[side] == name).any()]
    sizes = [int(frame.loc[frame[side] == name, "num_positions"].sum()) for side, name in nodes]
    figure.add_sankey(
        arrangement="snap",
        domain={"x": [0.02, 0.98], "y": [0, 0.94]},
        textfont={"family": SANS, "size": 13, "color": INK[theme]},
        node={
            "label": [f"{escaped(name)}  {size:,}" for (_, name), size in zip(nodes, sizes, strict=True)],
            "color": [fills[name][0] for _, name in nodes],
            "pad": 30,
            "thickness": 22,
            "line": {"color": MUTED[theme], "width": 0.6},
            "customdata": [
                f"{escaped(notes[name].meaning)}<br>step {first if side == 'source' else last}" for side, name in nodes
            ],
            "hovertemplate": "%{label} tokens<br>%{customdata}<extra></extra>",
        },
        link={
            "source": [nodes.index(("source", name)) for name in frame["source"]],
            "target": [nodes.index(("target", name)) for name in frame["target"]],
            "value": frame["num_positions"],
            "color": [
                with_opacity(fills[a][0], 0.28 if a == b else 0.72)
                for a, b in zip(frame["source"], frame["target"], strict=True)
            ],
            "line": {"color": LINE[theme], "width": 0.6},
            "customdata": [
                f"{share:.1%} of tokens · {escaped(text)}"
                for share, text in zip(frame["share"], frame["examples"], strict=True)
            ],
            "hovertemplate": "<b>%{source.label} → %{target.label}</b><br>%{value:,} tokens, "
            "%{customdata}<extra></extra>",
        },
    )
    for x, step in ((0.02, first), (0.98, last)):
        figure.add_annotation(
            text=f"step {step}",
            x=x,
            y=1.0,
            xref="paper",
            yref="paper",
            showarrow=False,
            xanchor="left" if x < 0.5 else "right",
            font={"size": 12, "color": MUTED[theme]},
        )
    return figure.update_layout(margin={"l": 16, "r": 16, "t": _below_title(figure, 72), "b": 16})


def heatmap(table: Table, *, title: str, theme: str = "light") -> go.Figure:
    """A value of one probe by token and step, of movement.values_of_probe."""
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    tokens = table.frame.drop_duplicates("position").sort_values("position")
    words = [visible_text(text) for text in tokens["token"]]
    wide = table.frame.pivot(index="step", columns="position", values="value")
    is_long = len(words) > MAX_TOKEN_LABELS
    figure = base_figure(theme, title=title, subtitle=table.run, height=max(260, 170 + 26 * len(wide)))
    shared = {"x": list(range(len(words))), "y": [str(step) for step in wide.index], "ygap": 1.5}
    shared["xgap"] = 0 if is_long else 1.5
    shared["customdata"] = [[escaped(word) for word in words] for _ in wide.index]
    figure.add_heatmap(**_value_cells(wide, table.units.get("value", ""), theme), **shared)
    if is_long:  # the axis has no room for the tokens; hovering shows each
        figure.update_xaxes(title_text="token position", tickformat=",d", showline=False)
    else:
        words = [escaped(word) for word in words]
        figure.update_xaxes(
            tickvals=shared["x"], ticktext=words, tickfont={"family": MONO, "size": 12}, showline=False, ticks=""
        )
    figure.update_yaxes(title_text=STEP, autorange="reversed", type="category", showgrid=False)
    return figure.update_layout(margin_t=_below_title(figure, 72))


def _value_cells(wide: pd.DataFrame, unit: str, theme: str) -> dict[str, object]:
    values = wide.to_numpy()
    limit = bound(values.ravel().tolist())
    has_signs = bool((wide < 0).any(axis=None))
    return {
        "z": values,
        "colorscale": colorscale("diverging" if has_signs else "growing", theme),
        "zmin": -limit if has_signs else 0,
        "zmax": limit,
        "colorbar": {
            "title": {"text": unit, "side": "top", "font": {"size": 12}},
            "tickfont": {"size": 12},
            "thickness": 10,
            "outlinewidth": 0,
            "nticks": 5,
        },
        "hovertemplate": f"<b>%{{customdata}}</b> %{{z:+.3f}} {unit}<br>position %{{x}}, step %{{y}}<extra></extra>",
    }


def bars(
    table: Table,
    label: str,
    value: str,
    *,
    count: str = "",
    title: str,
    theme: str = "light",
    reference: float | None = None,
    meaning: str = "",
    tints: Sequence[str] = (),
) -> go.Figure:
    """One horizontal bar per row, with its value and, if `count` names a column, its count at the right.

    reference, meaning  value of a line across the bars, and its label
    tints               colors of the bars; default: one for all
    """
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    frame = table.frame
    figure = base_figure(theme, title=title, subtitle=table.run, height=max(340, 160 + 34 * len(frame)))
    counted = [f" · n = {n:,}" for n in frame[count]] if count else [""] * len(frame)
    figure.add_bar(
        x=frame[value],
        y=[escaped(text) for text in frame[label]],
        orientation="h",
        marker={"color": list(tints) or SERIES[theme][0]},
        text=[f"{plain(number)}{n}" for number, n in zip(frame[value], counted, strict=True)],
        textposition="none",
        hovertemplate="<b>%{y}</b> %{text}<extra></extra>",
    )
    for name, text in zip(figure.data[0].y, figure.data[0].text, strict=True):
        figure.add_annotation(
            x=1.012, xref="paper", xanchor="left", y=name, text=text, showarrow=False, font={"size": 12}
        )
    if reference is not None:
        figure.add_vline(x=reference, line={"color": MUTED[theme], "dash": "dot", "width": 1.5})
        figure.add_annotation(
            x=reference,
            y=1,
            yref="paper",
            yanchor="bottom",
            text=escaped(meaning),
            showarrow=False,
            font={"size": 12, "color": MUTED[theme]},
        )
    figure.update_layout(
        bargap=0.35, margin={"r": 120 if count else 60, "t": _below_title(figure, 84 if meaning else 72)}
    )
    unit = textwrap.wrap(table.units.get(value, _words(value)), 44)  # fits a phone
    figure.update_xaxes(title_text="<br>".join(map(escaped, unit)), rangemode="tozero")
    return figure.update_yaxes(autorange="reversed", ticksuffix="  ")


def separation_bars(table: Table, *, theme: str = "light") -> go.Figure:
    """AUROC of each gap for privileged against visible tokens, of illusion.separation, in the gaps' colors."""
    hues = {"information": INFORMATION, "capability": CAPABILITY}
    tints = [hues.get(name.split()[0], MUTED)[theme] for name in table.frame["gap"]]
    title = "AUROC of the gaps for privileged tokens"
    return bars(table, "gap", "auroc", title=title, theme=theme, reference=0.5, meaning="no separation", tints=tints)


def accuracy_curves(table: Table, *, theme: str = "light") -> go.Figure:
    """Accuracy (solid) and confidence (dotted) by policy and context over steps, a panel per visibility and dataset."""
    title = "Accuracy and confidence"
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    frame = table.frame
    names = list(frame["visibility"].unique())
    visibilities = sorted(names, key=lambda name: ("all", "visible", "privileged", name).index(name))
    counts = [int(frame.loc[frame["visibility"] == visibility, "count"].max()) for visibility in visibilities]
    figure = make_subplots(
        1,
        len(visibilities),
        shared_yaxes=True,
        horizontal_spacing=0.035,
        subplot_titles=[f"{escaped(name)}<br>{n:,} questions" for name, n in zip(visibilities, counts, strict=True)],
    )
    _style_panels(figure, theme, title=title, subtitle=f"{table.run} · solid: accuracy, dotted: confidence", height=400)
    pairs = list(dict.fromkeys(zip(frame["policy"], frame["context"], strict=True)))
    for panel_idx, visibility in enumerate(visibilities):
        for number, (policy, context) in enumerate(pairs):
            curve = frame[
                (frame["visibility"] == visibility) & (frame["policy"] == policy) & (frame["context"] == context)
            ]
            name = escaped(f"{policy}, {context}")
            for column, dash in (("accuracy", "solid"), ("confidence", "dot")):
                figure.add_scatter(
                    x=curve["step"],
                    y=curve[column],
                    name=name,
                    legendgroup=name,
                    showlegend=panel_idx == 0 and dash == "solid",
                    mode="lines+markers",
                    line={"width": 2, "color": POLICIES[theme][number % len(POLICIES[theme])], "dash": dash},
                    marker={
                        "size": 7,
                        "symbol": ("circle", "square", "diamond", "triangle-up", "x")[number % 5],
                        "opacity": 1 if dash == "solid" else 0.6,
                    },
                    meta={"label": f"{policy}, {context}: {column}, {visibility} questions"},
                    customdata=curve["count"],
                    hovertemplate=f"<b>{name}</b> {column} %{{y:.1%}}<br>%{{customdata}} {escaped(visibility)} "
                    "questions, step %{x}<extra></extra>",
                    row=1,
                    col=panel_idx + 1,
                )
    figure.update_layout(margin_t=figure.layout.margin.t + 20)  # titles of two lines, so that they fit a phone
    figure.update_yaxes(tickformat=".0%", range=[-0.02, 1.04]).update_yaxes(title_text="accuracy, confidence", col=1)
    return step_axis(figure, frame["step"])


def reliability(table: Table, *, title: str = "Calibration", theme: str = "light") -> go.Figure:
    """Accuracy over confidence per visibility; points below the diagonal are over-confident."""
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    figure = base_figure(theme, title=title, subtitle=table.run, height=400)
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": MUTED[theme], "dash": "dot", "width": 1.5},
        name="calibrated",
        hoverinfo="skip",
    )
    for number, (visibility, curve) in enumerate(table.frame.groupby("visibility", sort=False)):
        figure.add_scatter(
            x=curve["confidence"],
            y=curve["accuracy"],
            name=escaped(visibility),
            mode="lines+markers",
            customdata=curve["count"],
            line={"width": 1.5, "color": VISIBILITIES[theme].get(visibility, MUTED[theme])},
            marker={
                "size": [7 + 20 * (n / curve["count"].max()) ** 0.5 for n in curve["count"]],
                "symbol": ("circle", "square", "diamond")[number % 3],
                "opacity": 0.85,
                "line": {"width": 1, "color": SURFACE[theme]},
            },
            hovertemplate=f"<b>{escaped(visibility)}</b> accuracy %{{y:.1%}}, confidence %{{x:.1%}}<br>"
            "%{customdata} questions<extra></extra>",
        )
    figure.update_xaxes(title_text="confidence, mean over questions", range=[-0.02, 1.03], tickformat=".0%")
    return figure.update_yaxes(title_text="accuracy, share of questions", range=[-0.04, 1.06], tickformat=".0%")


def information_share(table: Table, *, theme: str = "light") -> go.Figure:
    """Shares of loss (solid) and tokens (dotted) whose information gap is the larger in size, by visibility."""
    title = "Loss that only the evidence explains"
    if table.empty:
        return empty_figure(table.empty, theme, title=title)
    is_grouped = (table.frame["first_step"] != table.frame["step"]).any()
    grouped = " · each point: the steps since the previous point" if is_grouped else ""
    figure = base_figure(theme, title=title, subtitle=f"{table.run} · solid: of loss, dotted: of tokens{grouped}")
    for visibility, curve in table.frame.groupby("visibility", sort=False):
        for column, dash in (("loss_share", "solid"), ("position_share", "dot")):
            figure.add_scatter(
                x=curve["step"],
                y=curve[column],
                name=escaped(visibility),
                legendgroup=visibility,
                showlegend=dash == "solid",
                mode="lines",
                line={"width": 2, "color": VISIBILITIES[theme].get(visibility, MUTED[theme]), "dash": dash},
                meta={"label": f"{visibility}: {MEASURES[column]}"},
                customdata=curve["num_positions"],
                hovertemplate=f"<b>{escaped(visibility)}</b> %{{y:.1%}} {MEASURES[column]}<br>%{{customdata:,}} tokens,"
                " step %{x}<extra></extra>",
            )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%", title_text="information-dominated share")
    return step_axis(figure, table.frame["step"])


def _style_panels(figure: go.Figure, theme: str, *, title: str, subtitle: str, height: int = 340) -> None:
    """Apply the common style to a figure with several panels."""
    style = layout(theme, title=title, subtitle=subtitle, height=height)
    extra = extra_title_height(style["title"]["text"])
    figure.update_annotations(font={"size": 12.5, "color": MUTED[theme]}, yshift=2)
    figure.update_layout(
        {
            **style,
            "margin": {**style["margin"], "t": 124 + extra},
            "legend": {"y": 1 - (58 + extra) / style["height"], "yref": "container", "yanchor": "top"},
        }
    )


def _share_title(by: str, title: str) -> str:
    head = {"position_share": "Token share by regime", "loss_share": "Loss share by regime"}[by]
    return f"{head}, {title}" if title else head


def _below_title(figure: go.Figure, pixels: int) -> int:
    """Top margin of a figure: `pixels` plus the height of further subtitle lines."""
    return pixels + extra_title_height(figure.layout.title.text)


def _notes_of(frame: pd.DataFrame) -> dict[str, RegimeNote]:
    """The regimes in order, each with its meaning and its target, which determines its color."""
    named = frame.drop_duplicates("regime")
    return {
        row.regime: RegimeNote(row.meaning or "", None if pd.isna(row.target) else row.target)
        for row in named.itertuples()
    }


def _regime_label(name: str, note: RegimeNote) -> str:
    """Name and supervision for a legend: "LH: teacher, light"."""
    supervision = note.meaning.rpartition(": ")[2]
    return f"{name}: {supervision}" if supervision else name


def _series(theme: str, number: int) -> str:
    return SERIES[theme][number % len(SERIES[theme])]


def _not_numbers(frame: pd.DataFrame) -> str:
    """A note on steps whose value is not a number, where a curve has a gap or ends; "" if there are none."""
    steps = frame.loc[~np.isfinite(frame["value"].astype(float)), "step"]
    if steps.empty:
        return ""
    first, last_finite = steps.min(), frame.loc[~frame["step"].isin(steps), "step"].max()
    if steps.nunique() == 1:
        return f" · not finite at step {first:,}"
    return f" · not finite at step {first:,} and later" if first < last_finite else f" · not finite from step {first:,}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", ": ", 1)
