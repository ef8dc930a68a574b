"""The dose map of collapse: which rows of a study collapsed at which rate, and how early the first warning came.

    python docs/studies/dose.py runs/dose                # after workbench study configs/studies/dose.yaml
    python docs/studies/dose.py docs/studies/data/dose   # the same from its stored metrics; nothing is trained

A run has collapsed if the accuracy of its sampled answers, averaged over ten steps, ended below half of its best such
average, or of the mean accuracy of all runs' first steps if that is higher. Warnings are those of
workbench.training.health, replayed from the run's metrics. Writes dose.png beside this file (needs Chromium and the
extra "dev") and, from a study's own folder, health.parquet: the metrics that the monitor reads.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pays import markdown
from screenshot import screenshot

from workbench.analysis.style import INK, layout
from workbench.runs.folder import RunFolder
from workbench.training.health import WINDOW, HealthMonitor

MONITORED = ("entropy", "duplicate_rate", "truncated", "accuracy", "distinct_tokens", "supervised", "teacher_share")
THEME = "light"
LOST = 0.5  # of the best moving average of accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    metrics = monitored_metrics(parser.parse_args().folder)
    start = metrics.loc[metrics["step"] == metrics["step"].min(), "accuracy"].mean()
    runs = pd.DataFrame(
        [
            {"arm": arm, "rate": rate, "seed": seed, **judge(run, start)}
            for (arm, rate, seed), run in metrics.groupby(["arm", "rate", "seed"])
        ]
    )
    print(collapse_table(runs))
    print(warning_table(runs))
    screenshot(draw(runs), Path(__file__).parent / "dose.png", width=900)


def monitored_metrics(folder: Path) -> pd.DataFrame:
    """Metrics of every training step of a study's runs: arm, rate, seed, step and the columns of MONITORED."""
    file = folder / "health.parquet"
    lines = [
        {
            "arm": arm,
            "rate": float(rate),
            "seed": int(seed),
            "step": line["step"],
            **{name: line.get(name) for name in MONITORED},
        }
        for run in sorted(folder.glob("*-s*/metrics.jsonl"))
        for name, _, seed in [run.parent.name.rpartition("-s")]
        for arm, _, rate in [name.partition("-learning_rate=")]
        for line in RunFolder.open(run.parent).metrics("train")
    ]
    if not lines:
        return pd.read_parquet(file)
    table = pd.DataFrame(lines)
    table.to_parquet(file, compression="zstd", index=False)
    return table


def judge(run: pd.DataFrame, start: float) -> dict:
    """Ten-step accuracy at the end of a run, the step of its collapse (NaN without one), and its first warning.

    start  accuracy before training
    """
    run = run.sort_values("step").dropna(axis="columns", how="all")
    average = run["accuracy"].rolling(WINDOW).mean().fillna(start).to_numpy()
    is_low = average < LOST * np.maximum.accumulate(np.maximum(average, start))
    step = float(run["step"].to_numpy()[np.flatnonzero(~is_low)[-1] + 1]) if is_low[-1] else np.nan
    monitor, warnings = HealthMonitor(), {}
    for line in run.to_dict("records"):
        before = set(monitor.warnings)
        monitor.update(line["step"], line)
        warnings |= dict.fromkeys(set(monitor.warnings) - before, line["step"])
    first = min(warnings, key=lambda name: (warnings[name], name)) if warnings else None
    return {"last": average[-1], "collapsed": step, "warned": warnings.get(first, np.nan), "warning": first}


def collapse_table(runs: pd.DataFrame) -> str:
    """Share of seeds that collapsed, and accuracy of the last ten steps, by row and rate."""
    rates = sorted(runs["rate"].unique())
    rows = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        cells = [
            f"{at['collapsed'].notna().sum()} of {len(at)}; {100 * at['last'].mean():.0f} %"
            for at in (of_arm[of_arm["rate"] == rate] for rate in rates)
        ]
        rows.append([arm, *cells])
    return markdown(["collapsed; accuracy at the end", *(f"{rate:g}" for rate in rates)], rows)


def warning_table(runs: pd.DataFrame) -> str:
    """Of runs that collapsed: steps from the first warning to the collapse. Of the others: how many were warned of."""
    rows = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        fallen, others = of_arm[of_arm["collapsed"].notna()], of_arm[of_arm["collapsed"].isna()]
        ahead = (fallen["collapsed"] - fallen["warned"]).dropna()
        names = ", ".join(fallen["warning"].dropna().value_counts().index)
        spread = f"{ahead.median():+.0f} ({ahead.min():+.0f} to {ahead.max():+.0f})" if len(ahead) else ""
        rows.append(
            [
                arm,
                f"{fallen['warned'].notna().sum()} of {len(fallen)}",
                spread,
                names,
                f"{others['warned'].notna().sum()} of {len(others)}",
            ]
        )
    head = [
        "",
        "collapsed runs that were warned of",
        "steps from warning to collapse, median (range)",
        "first warning",
        "warned of, not collapsed",
    ]
    return markdown(head, rows)


def draw(runs: pd.DataFrame) -> go.Figure:
    """One cell per row and rate: how many runs collapsed, and the accuracy of the last ten steps."""
    ends = runs.pivot_table(index="arm", columns="rate", values="last", sort=False)
    num_collapsed = runs.assign(fell=runs["collapsed"].notna()).pivot_table("fell", "arm", "rate", "sum", sort=False)
    counts = runs.pivot_table("last", "arm", "rate", "count", sort=False)
    texts = [
        [
            f"{fell:.0f} of {count:.0f} collapsed<br>{100 * end:.0f} % right"
            for fell, count, end in zip(*row, strict=True)
        ]
        for row in zip(num_collapsed.to_numpy(), counts.to_numpy(), ends.to_numpy(), strict=True)
    ]
    cells = go.Heatmap(
        z=100 * ends.to_numpy(),
        x=[f"rate {rate:g}" for rate in ends.columns],
        y=list(ends.index),
        text=texts,
        texttemplate="%{text}",
        textfont={"color": INK[THEME]},
        colorscale=[[0, "#EE8A4A"], [0.5, "#F5E6D8"], [1, "#6BB0E0"]],
        zmin=0,
        zmax=60,
        xgap=3,
        ygap=3,
        colorbar={"title": "% right"},
    )
    figure = go.Figure(cells)
    style = layout(
        THEME,
        title="Which self collapses at which rate",
        subtitle="sampled answers, last ten steps",
        height=90 + 52 * len(ends),
    )
    figure.update_layout(style)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(side="top", showgrid=False)
    return figure


if __name__ == "__main__":
    main()
