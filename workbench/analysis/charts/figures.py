"""Figures of curves as plain plotly JSON: a dictionary of data and layout, built without plotly's slow validation.

Title and legend are in the figure for export; the page draws them beside the axes, from `layout.meta`:

    title, subtitle
    legend    its entries: key, label, color, dash; those of several series are `metrics`, since all charts of a page
              share the legend of the series
    metrics   entries of the metrics alone, with a dash each
    notes     what is not drawn, and why

A trace's `meta` has its series, its metric and, of a line, its `curve`: the label. Its `customdata` has step, raw
value, number of seeds, low and high.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.charts.curves import Curves, thin
from workbench.analysis.charts.groups import Chart, title_of
from workbench.analysis.charts.recorded import AXES
from workbench.analysis.charts.seeds import BANDS, Series
from workbench.analysis.runs import unit_of
from workbench.analysis.style import CURVES, DASHES, MAX_SINGLE_TICKS, MUTED, escaped, layout, with_opacity

Figure = dict[str, Any]
HEIGHT = 250
MAX_Y_TITLE = 30  # characters of a line beside the axis, which the figure's height has room for
MAX_MARKERS = 40  # points of a curve that has a marker at each
WRONG = {"light": "#c0392b", "dark": "#ff7b6b"}
SYMBOLS = {"checkpoint": "triangle-up", "evaluation": "circle-open", "not finite": "x"}
POINT = ("step", "value", "count", "low", "high")  # numbers of a point beside its place
NOTHING = "The ticked runs have not recorded this yet."


def series_style(theme: str, number: int) -> tuple[str, str]:
    """Color and dash of the series of this number: each hue once, then again with another dash."""
    hues = CURVES[theme]
    return hues[number % len(hues)], DASHES[number // len(hues) % len(DASHES)]


def chart_figure(curves: Curves, chart: Chart, *, theme: str = "light", log: bool = False) -> Figure:
    """One chart: a color per series, or of a single series a color per metric; then a dash per metric.

    log  whether the y axis is logarithmic; values of zero and below are left out and counted
    """
    names = chart.metrics_for(len(curves.series))
    parts = {(item.name, name): curves.parts.get((item.name, name)) for item in curves.series for name in names}
    drawn = [item for item in curves.series if any(parts[item.name, name] is not None for name in names)]
    several = len(curves.series) > 1
    titles = short_titles(names)
    data: list[dict] = []
    legend, notes = [], [] if drawn else [NOTHING]
    for series_idx, item in enumerate(curves.series):
        for name_idx, name in enumerate(names):
            part = parts[item.name, name]
            if part is None:
                continue
            color, dash = _style(theme, several, series_idx, name_idx)
            label = _label(item, titles[name], several, len(names) > 1)
            legend.append({"key": f"metric:{name}", "label": label, "color": color, "dash": dash})
            traces = _curve_traces(thin(part), label, (color, dash), curves, unit_of(name), log=log)
            data += [trace | {"meta": {"series": item.name, "metric": name, **trace["meta"]}} for trace in traces]
            notes += _not_finite_note(part, label) + (_log_note(part, label) if log else [])
    for series_idx, item in enumerate(curves.series):
        color = series_style(theme, series_idx)[0] if several else MUTED[theme]
        data += _mark_traces(curves.marks[item.name], names, item.name if several else "", color, theme)
    meta = {"title": chart.title, "subtitle": ", ".join(item.name for item in drawn), "legend": legend, "notes": notes}
    meta["metrics"] = [
        {
            "key": f"metric:{name}",
            "label": titles[name],
            "color": MUTED[theme],
            "dash": DASHES[name_idx % len(DASHES)],
        }
        for name_idx, name in enumerate(names)
    ]
    return {"data": data, "layout": _layout(curves, names, meta, theme, log=log)}


def short_titles(metrics: Sequence[str]) -> dict[str, str]:
    """The part of each name that tells it from the others of a chart; whole names if that is not enough."""
    last = {name: name.rpartition("/")[2].rpartition("=")[2].replace("_", " ") for name in metrics}
    return last if len(set(last.values())) == len(last) else {name: title_of(name) for name in metrics}


def is_constant(curves: Sequence[np.ndarray]) -> bool:
    """Whether all finite values are equal: plotly would draw them on an axis from one below to one above."""
    values = np.concatenate([*curves, np.empty(0)])
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool(np.ptp(finite) <= 1e-6 * np.abs(finite).max())


def _style(theme: str, several: bool, series_idx: int, name_idx: int) -> tuple[str, str]:
    if not several:
        return series_style(theme, name_idx)
    color, dash = series_style(theme, series_idx)
    return color, DASHES[(DASHES.index(dash) + name_idx) % len(DASHES)]


def _label(item: Series, title: str, several: bool, has_names: bool) -> str:
    if not has_names:
        return item.name
    return f"{item.name}: {title}" if several else title


def _curve_traces(
    part: pd.DataFrame, label: str, style: tuple[str, str], curves: Curves, unit: str, *, log: bool
) -> list[dict]:
    """Band, raw values and line of one curve."""
    color, dash = style
    x = _numbers(part["x"])
    y = {name: _numbers(part[name], above_zero=log) for name in ("value", "smoothed", "low", "high")}
    common = {"type": "scatter", "x": x, "legendgroup": label}
    silent = {**common, "mode": "lines", "hoverinfo": "skip", "showlegend": False, "meta": {}}
    traces: list[dict] = []
    if part["low"].notna().any():
        traces.append({**silent, "y": y["high"], "line": {"width": 0}})
        traces.append(
            {**silent, "y": y["low"], "line": {"width": 0}, "fill": "tonexty", "fillcolor": with_opacity(color, 0.18)}
        )
    if curves.smoothing:
        traces.append({**silent, "y": y["value"], "line": {"width": 1, "color": with_opacity(color, 0.35)}})
    seeds = "" if (part["count"] == 1).all() else f", mean of %{{customdata[2]}} seeds; band: {BANDS[curves.seeds]}"
    raw = ", raw %{customdata[1]:.4g}" if curves.smoothing else ""
    step = "" if curves.axis == "step" else ", step %{customdata[0]}"
    line = {
        **common,
        "y": y["smoothed"],
        "name": escaped(label),
        "mode": "lines+markers" if len(part) < MAX_MARKERS else "lines",
        "line": {"width": 2, "color": color, "dash": dash},
        "marker": {"size": 5},
        "customdata": list(zip(*(_numbers(part[name]) for name in POINT), strict=True)),
        "meta": {"curve": label},
        "hovertemplate": f"%{{y:.4g}} {escaped(unit)}{raw}{seeds}{step}",
    }
    return [*traces, line]


def _mark_traces(marks: pd.DataFrame, names: tuple[str, ...], run: str, color: str, theme: str) -> list[dict]:
    """Marks on the x axis, in a second y axis over the first. run: its name, "" for a single run."""
    traces = []
    for kind, symbol in SYMBOLS.items():
        part = marks[(marks["kind"] == kind) & (marks["metric"].isin(["", *names]))].drop_duplicates("x")
        if len(part):
            marker = {"symbol": symbol, "size": 8, "color": WRONG[theme] if kind == "not finite" else color}
            traces.append(
                {
                    "type": "scatter",
                    "x": _numbers(part["x"]),
                    "y": [0.0] * len(part),
                    "yaxis": "y2",
                    "mode": "markers",
                    "name": f"{kind} of {escaped(run)}" if run else kind,
                    "showlegend": False,
                    "meta": {"series": run},
                    "cliponaxis": False,
                    "marker": marker,
                    "hoverinfo": "skip",
                }
            )
    return traces


def _layout(curves: Curves, names: tuple[str, ...], meta: dict, theme: str, *, log: bool) -> dict[str, Any]:
    """Layout for export, with title and legend; meta as in the module's docstring."""
    parts = [part for (_, name), part in curves.parts.items() if name in names]
    units = list(dict.fromkeys(unit for unit in map(unit_of, names) if unit))
    x_axis: dict[str, Any] = {"title": {"text": AXES[curves.axis]}, "showspikes": True, "spikemode": "across"}
    x_axis |= {"spikethickness": 1, "spikedash": "solid", "spikecolor": MUTED[theme]}
    if curves.axis == "step":
        ends = [int(step) for part in parts for step in (part["step"].min(), part["step"].max()) if step == step]
        is_short = not ends or max(ends) - min(ends) <= MAX_SINGLE_TICKS
        x_axis |= {"tickformat": ",d", **({"dtick": 1} if is_short else {})}
    y_title = "<br>".join(map(escaped, textwrap.wrap(", ".join(units), MAX_Y_TITLE)))
    y_axis: dict[str, Any] = {"title": {"text": y_title}, "automargin": True}
    if log:
        y_axis |= {"type": "log", "exponentformat": "e"}
    elif bool(units) and all("share" in unit for unit in units):
        y_axis |= {"tickformat": ".0%", "rangemode": "tozero"}
    elif is_constant([part["value"].to_numpy(float) for part in parts]):
        y_axis |= {"rangemode": "tozero"}
    return {
        **layout(theme, title=meta["title"], subtitle=meta["subtitle"], height=HEIGHT),
        "template": _template_json(theme),
        "hovermode": "x unified",
        "hoverdistance": -1,
        "showlegend": len(meta["legend"]) > 1,
        "xaxis": x_axis,
        "yaxis": y_axis,
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "meta": meta,
    }


@cache
def _template_json(theme: str) -> dict:
    return layout(theme, title="")["template"].to_plotly_json()


def _numbers(values: Iterable[float], *, above_zero: bool = False) -> list[float | None]:
    """Numbers as JSON: None for values that are not finite, and for those that a log axis lacks."""
    return [
        value if math.isfinite(value) and (value > 0 or not above_zero) else None
        for value in np.asarray(values, dtype=float).tolist()
    ]


def _log_note(part: pd.DataFrame, label: str) -> list[str]:
    hidden = int((part["smoothed"] <= 0).sum())
    if not hidden:
        return []
    return [f"{label}: {hidden:,} of {len(part):,} values are not above zero, so a log axis has no room for them."]


def _not_finite_note(part: pd.DataFrame, label: str) -> list[str]:
    """A note on steps whose value is infinite or not a number."""
    steps = part.loc[~np.isfinite(part["value"].astype(float)), "step"]
    if steps.empty:
        return []
    first, last_finite = steps.min(), part.loc[~part["step"].isin(steps), "step"].max()
    if len(steps) == 1:
        when = f"at step {first:,}"
    else:
        when = f"at {len(steps):,} steps, the first {first:,}" if first < last_finite else f"from step {first:,}"
    return [f"{label}: not finite {when}."]
