"""Common style of figures: fonts, colors and axes, light and dark. Regimes have the colors of the token view."""

import functools
import math
import textwrap
from collections.abc import Iterable

import plotly.graph_objects as go

from workbench.errors import require_one_of
from workbench.render import colors
from workbench.render.view import RegimeNote

THEMES = ("light", "dark")
SANS = 'Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif'
MONO = '"JetBrains Mono", ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
INK = {"light": "#12161b", "dark": "#e9ecef"}
MUTED = {"light": "#565e68", "dark": "#a4adb7"}
LINE = {"light": "#dfe2e6", "dark": "#333940"}
SURFACE = {"light": "#ffffff", "dark": "#15181c"}
CAPABILITY = {"light": "#0072b2", "dark": "#4aa9e6"}
INFORMATION = {"light": "#b5588c", "dark": "#dd93bd"}
# Okabe and Ito's hues; those of lines adjusted for a contrast of 3 : 1 on the page
SERIES = {
    "light": ("#0072b2", "#c25a00", "#00785a", "#b5588c", "#8a6d00", "#2b7bab", "#565e68"),
    "dark": ("#4aa9e6", "#f08f4c", "#3fbf97", "#dd93bd", "#e6c229", "#8ad0f5", "#a4adb7"),
}
# of runs and of metrics in charts: 3 : 1 on the page, and at least 30 apart in CIELAB for all kinds of color vision
CURVES = {
    "light": ("#304e88", "#da622d", "#00a299", "#3c002f", "#a17af2", "#594d3d"),
    "dark": ("#71b1fd", "#c66618", "#c3ffc1", "#de99b6", "#535ace", "#6f6754"),
}
# without the hues of visibilities, which appear on the same page
POLICIES = {
    theme: tuple(hue for hue_idx, hue in enumerate(hues) if hue_idx not in (2, 3)) for theme, hues in SERIES.items()
}
VISIBILITIES = {
    theme: {"all": INK[theme], "visible": hues[2], "privileged": hues[3], "unmarked": MUTED[theme]}
    for theme, hues in SERIES.items()
}
DASHES = ("solid", "dash", "dot", "dashdot")
WRAP = 56  # characters per subtitle line of a figure that is as wide as a phone
MAX_SINGLE_TICKS = 8  # steps with a tick each; for more, plotly chooses
PATTERNS = {"self": "/", "self-light": "/", "weak": ".", "sky": "-", "data": "-", "reward": ".", "yellow": "."}


def base_figure(theme: str, *, title: str, subtitle: str = "", height: int = 340, wrap: int = WRAP) -> go.Figure:
    """A figure without data in the common style. Raises ConfigError for an unknown theme."""
    return go.Figure(layout=layout(theme, title=title, subtitle=subtitle, height=height, wrap=wrap))


def layout(theme: str, *, title: str, subtitle: str = "", height: int = 340, wrap: int = WRAP) -> dict:
    """The layout of `base_figure`, for figures with several panels. Raises ConfigError for an unknown theme.

    wrap  characters per line of the subtitle, so that it fits its card
    """
    require_one_of("theme", theme, THEMES)
    head = f"<b>{escaped(title)}</b>"
    for line in textwrap.wrap(subtitle, wrap) or ["\u00a0"]:  # an empty line keeps the title at the same height
        head += f'<br><span style="font-size:12px;color:{MUTED[theme]}">{escaped(line)}</span>'
    extra = extra_title_height(head)
    return {
        "template": _template(theme),
        "title": {
            "text": head,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "font": {"size": 15},
            "pad": {"t": 16, "l": 16},
        },
        "height": height + extra,
        "margin": {"l": 64, "r": 24, "t": 96 + extra, "b": 48},
        "hovermode": "closest",
    }


def extra_title_height(head: str) -> int:
    """Height in pixels of the lines of a title beyond the second."""
    return 15 * max(0, head.count("<br>") - 1)


@functools.cache
def _template(theme: str) -> go.layout.Template:
    axis = {
        "gridcolor": LINE[theme],
        "linecolor": LINE[theme],
        "zerolinecolor": LINE[theme],
        "tickcolor": LINE[theme],
        "tickfont": {"size": 12, "color": MUTED[theme]},
        "title": {"font": {"size": 12, "color": MUTED[theme]}, "standoff": 8},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {"family": SANS, "size": 13, "color": INK[theme]},
            "paper_bgcolor": SURFACE[theme],
            "plot_bgcolor": SURFACE[theme],
            "colorway": SERIES[theme],
            "xaxis": {**axis, "showgrid": False, "zeroline": False, "showline": True, "ticks": "outside", "ticklen": 4},
            "yaxis": {**axis, "zeroline": True, "exponentformat": "e"},
            "hoverlabel": {
                "font": {"family": SANS, "size": 12.5, "color": INK[theme]},
                "bgcolor": SURFACE[theme],
                "bordercolor": MUTED[theme],
                "align": "left",
            },
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 12.5},
                "bgcolor": "rgba(0,0,0,0)",
                "title": {"text": ""},
            },
            "separators": ".\u2009",
        }
    )


def step_axis(figure: go.Figure, steps: Iterable[int]) -> go.Figure:
    """Label the x axis as steps, with ticks at whole numbers only."""
    steps = list(steps)
    is_short = not steps or max(steps) - min(steps) <= MAX_SINGLE_TICKS
    return figure.update_xaxes(title_text="step", dtick=1 if is_short else None, tickformat=",d")


def from_zero_if_constant(figure: go.Figure) -> go.Figure:
    """Start the y axis at zero if all values are equal.

    Plotly's default range is value - 1 to value + 1, which puts a learning rate of 1e-4 on the zero line.
    """
    values = [value for trace in figure.data for value in trace.y if value is not None and math.isfinite(value)]
    size = max(map(abs, values), default=0.0)
    return figure.update_yaxes(rangemode="tozero") if values and max(values) - min(values) <= 1e-6 * size else figure


def empty_figure(message: str, theme: str = "light", *, title: str = "", height: int = 240) -> go.Figure:
    """A figure with a message instead of data."""
    figure = base_figure(theme, title=title, height=height).update_layout(margin_l=24)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    figure.add_annotation(
        text="<br>".join(_wrapped(escaped(message), 46)),
        showarrow=False,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        font={"size": 14, "color": MUTED[theme]},
    )
    return figure


def regime_fills(notes: dict[str, RegimeNote], theme: str) -> dict[str, tuple[str, str]]:
    """Color and hatching of each regime."""
    slots = colors.regime_slots(notes)
    return {name: (getattr(colors.SLOTS[slot], theme), PATTERNS.get(slot, "")) for name, slot in slots.items()}


def colorscale(kind: str, theme: str) -> list[tuple[float, str]]:
    """A plotly color scale. kind: "diverging" around zero, or "growing" from zero."""
    fills = {"diverging": colors.DIVERGING, "growing": colors.GROWING}[kind]
    return [(step_idx / (len(fills) - 1), getattr(fill, theme)) for step_idx, fill in enumerate(fills)]


def with_opacity(color: str, opacity: float) -> str:
    """A hex color with opacity as CSS rgba()."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def escaped(text: object) -> str:
    """Escape text for plotly, which renders some HTML tags."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def bound(values: list[float | None]) -> float:
    """A round number above the absolute value of nearly all values."""
    return colors.scale_bound([value for value in values if value is not None and math.isfinite(value)])


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
