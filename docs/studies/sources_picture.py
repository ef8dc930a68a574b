"""Draws how often each source is right on the visible tokens of a regime: python docs/studies/sources_picture.py

Reads the first table of regimes of what-sources-know.md (DOPD, weak teacher), writes sources.png beside it. Needs
Chromium and the extra "dev".
"""

import re
from pathlib import Path

import plotly.graph_objects as go
from screenshot import screenshot

from workbench.analysis.style import CAPABILITY, INFORMATION, INK, layout

FOLDER = Path(__file__).parent
THEME = "light"
SOURCES = {
    "teacher": (CAPABILITY[THEME], "circle"),
    "privileged self": (INFORMATION[THEME], "circle"),
    "student": (INK[THEME], "circle-open"),
}
REGIMES = {
    "HS": "HS: asks the self",
    "HT": "HT: asks the teacher",
    "LL": "LL: asks the self",
    "LH": "LH: asks the teacher",
}
_SHARE = re.compile(r"([\d.]+) ± ([\d.]+) %")


def read_table(text: str) -> dict[str, tuple[str, list[tuple[float, float]]]]:
    """Share of tokens, and accuracy with half of its interval by source, of each regime on visible tokens."""
    table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:1] == ["visible"] and cells[1] in REGIMES and cells[1] not in table:
            accuracies = [tuple(map(float, _SHARE.match(cell).groups())) for cell in cells[3:6]]
            table[cells[1]] = cells[2], accuracies
    return table


def draw(text: str) -> go.Figure:
    table = read_table(text)
    rows = [f"{label}, {table[regime][0]} of tokens" for regime, label in REGIMES.items()]
    plot = go.Figure()
    for idx, (source, (color, symbol)) in enumerate(SOURCES.items()):
        values = [table[regime][1][idx] for regime in REGIMES]
        plot.add_scatter(
            x=[value for value, _ in values],
            y=rows,
            mode="markers",
            name=source,
            marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}},
            error_x={"array": [half for _, half in values], "thickness": 1.5, "width": 0},
        )
    title, subtitle = (
        "Where DOPD asks a source, it is mostly the better one",
        "visible tokens right after a right prefix, %; ordinary scenes, weak teacher; five seeds, 95 % intervals",
    )
    plot.update_layout(layout(THEME, title=title, subtitle=subtitle, height=360, wrap=150))
    plot.update_yaxes(autorange="reversed", automargin=True)
    plot.update_layout(legend={"orientation": "h", "y": -0.2, "x": 0, "yanchor": "top"}, margin={"l": 20, "b": 80})
    return plot


if __name__ == "__main__":
    screenshot(draw((FOLDER / "what-sources-know.md").read_text(encoding="utf-8")), FOLDER / "sources.png")
