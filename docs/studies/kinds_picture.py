"""Draws what the teacher makes of each kind of evidence against what reaches the student: kinds.png beside this file.

    python docs/studies/kinds_picture.py docs/studies/data/pays_kinds_crowded docs/studies/data/pays_kinds_weak

Reads questions.parquet of the studies, nothing is trained. Needs Chromium and the extra "dev".
"""

import sys
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from pays import TEACHER, Accuracies
from screenshot import screenshot

from workbench.analysis.style import CAPABILITY, INFORMATION, MUTED, layout

THEME = "light"
CROWDED = 6  # points between two labels
STYLES = ((CAPABILITY, "circle"), (INFORMATION, "diamond"))
NAMES = {"pays_kinds_crowded": "crowded scenes, strong teacher", "pays_kinds_weak": "ordinary scenes, weak teacher"}


def gains(folder: Path) -> pd.DataFrame:
    """By kind of evidence, in points over none: the teacher's gain, and the student's with its interval."""
    answers = pd.read_parquet(folder / "questions.parquet")
    visible = answers[(answers["variant"] == TEACHER) & (answers["visibility"] == "visible")]
    teacher = 100 * visible.groupby("context", observed=True)["accuracy"].mean()
    trained = Accuracies(answers[answers["context"] == "plain"])
    rows = []
    for name in trained.names:
        if (kind := name.replace("_", "+")) != "plain":
            rows.append([kind, teacher[kind] - teacher["plain"], *trained.accuracy_apart(name, "plain")])
    return pd.DataFrame(rows, columns=["kind", "teacher", "student", "low", "high"])


def _side(x: float, others: pd.Series) -> str:
    """The side of a label: left if the next point to the right is near."""
    return "middle left" if ((others > x) & (others < x + CROWDED)).any() else "middle right"


def draw(folders: list[Path]) -> go.Figure:
    figure = go.Figure()
    for folder, (color, symbol) in zip(folders, STYLES, strict=False):
        table = gains(folder)
        figure.add_scatter(
            x=table["teacher"],
            y=table["student"],
            error_y={"array": table["high"] - table["student"], "arrayminus": table["student"] - table["low"]},
            mode="markers+text",
            text=table["kind"],
            textposition=[_side(x, table["teacher"]) for x in table["teacher"]],
            marker={"color": color[THEME], "symbol": symbol, "size": 11},
            name=NAMES.get(folder.name, folder.name),
        )
    line = {"color": MUTED[THEME], "width": 1}
    figure.add_hline(0, line=line)
    figure.add_vline(0, line=line)
    style = layout(
        THEME,
        title="What the teacher makes of the evidence, and what reaches the student",
        subtitle="accuracy on visible questions, points over the same without evidence; bars: 95 % intervals",
        height=520,
        wrap=130,
    )
    figure.update_layout(style)
    figure.update_xaxes(title="the teacher with this evidence", range=[-32, 60])
    figure.update_yaxes(title="the student that imitated it, shown none")
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "x": 0, "yanchor": "top"}, margin={"b": 90})
    return figure


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    screenshot(draw([Path(folder) for folder in sys.argv[1:]]), Path(__file__).parent / "kinds.png", width=1000)
