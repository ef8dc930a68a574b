"""Draws what each method of a study pays_* gained with right and with wrong evidence, and the over-confidence it cost.

    python docs/studies/pays_picture.py docs/studies/data/pays_crowded "Crowded scenes, strong teacher"

Reads questions.parquet of the folder, writes pays_crowded.png beside this file. Needs Chromium and the extra "dev".
"""

import sys
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from pays import UNTRAINED, WRONG, Accuracies
from plotly.subplots import make_subplots
from screenshot import screenshot

from workbench.analysis.style import CAPABILITY, INFORMATION, LINE, MUTED, layout

LABELS = {
    "opd": "OPD, plain view",
    "opd_forward": "OPD, plain view, forward KL",
    "naive": "OPD, teacher sees the crop",
    "naive_forward": "OPD, teacher sees the crop, forward KL",
    "dopd": "DOPD, frozen self",
    "dopd_live": "DOPD, live self (as published)",
    "random_mask": "OPD with crop, random 86 %",
    "opsd": "OPSD: frozen self sees the crop",
    "opsd_forward": "OPSD, forward KL",
    "vision_opd": "Vision-OPD: own average sees the crop",
    "opsa": "OPSA: no teacher",
}
THEME = "light"


def draw(folder: Path, title: str) -> go.Figure:
    answers = pd.read_parquet(folder / "questions.parquet")
    answers = Accuracies(answers[answers["context"] == "plain"])
    names = [name for name in answers.names if not name.endswith(WRONG)]
    rows = [LABELS.get(name, name) for name in names]
    plot = make_subplots(
        1,
        2,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        column_widths=[0.62, 0.38],
        subplot_titles=[
            "accuracy gained on visible questions, points",
            "over-confidence added on hidden answers, points",
        ],
    )
    style = layout(
        THEME,
        title=title,
        subtitle="five seeds, 95 % intervals over seeds and questions · untrained student: 0",
        height=200 + 34 * len(names),
        wrap=150,
    )
    plot.update_layout(style)
    controls = [name for name in names if name + WRONG in answers.names]
    labels = [LABELS.get(name, name) for name in controls]
    for column, apart in ((1, answers.accuracy_apart), (2, answers.overconfidence_apart)):
        for name in controls:
            ends = [apart(other, UNTRAINED)[0] for other in (name, name + WRONG)]
            line = {"color": LINE[THEME], "width": 5}
            bar = go.Scatter(x=ends, y=[LABELS.get(name, name)] * 2, mode="lines", line=line, showlegend=False)
            plot.add_trace(bar, 1, column)
        gained = [apart(name, UNTRAINED) for name in names]
        wrong = [apart(name + WRONG, UNTRAINED) for name in controls]
        legend = column == 1
        _add(plot, column, gained, rows, "with its evidence", CAPABILITY[THEME], "circle", legend=legend)
        label = "with another example's evidence"
        _add(plot, column, wrong, labels, label, INFORMATION[THEME], "circle-open", legend=legend)
        plot.add_vline(0, line={"color": MUTED[THEME], "width": 1}, row=1, col=column)
    plot.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=rows, automargin=True)
    plot.update_layout(legend={"orientation": "h", "y": -30 / (34 * len(names)), "x": 0, "yanchor": "top"})
    plot.update_layout(margin={"l": 20, "b": 80})
    plot.update_annotations(font={"size": 13})
    return plot


def _add(
    plot: go.Figure,
    column: int,
    values: list,
    rows: list[str],
    name: str,
    color: str,
    symbol: str,
    *,
    legend: bool = True,
) -> None:
    middle, low, high = zip(*values, strict=True)
    errors = {
        "array": [end - mean for end, mean in zip(high, middle, strict=True)],
        "arrayminus": [mean - end for mean, end in zip(middle, low, strict=True)],
        "thickness": 1.5,
        "width": 0,
    }
    marker = {"color": color, "size": 11, "symbol": symbol, "line": {"width": 2, "color": color}}
    dots = go.Scatter(x=middle, y=rows, mode="markers", name=name, marker=marker, error_x=errors, showlegend=legend)
    plot.add_trace(dots, 1, column)


def main(folder: str, title: str) -> None:
    plot = draw(Path(folder), title)
    screenshot(plot, Path(__file__).parent / f"{Path(folder).name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
