"""Does the gap know? How well what a router sees tells privileged tokens from visible ones, over the seeds of a study.

    python docs/studies/does_the_gap_know.py runs/gap dopd      after    workbench study configs/studies/gap.yaml

Writes does-the-gap-know.md and .png beside this file (needs Chromium and the extra "dev"). The runs of one variant are
its seeds; every number is a mean over them with the 95 % interval of Student's t.
"""

import sys
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from intervals import came_from, interval
from screenshot import screenshot

import workbench as wb
from workbench.analysis.illusion import auroc
from workbench.config.schema import read_yaml

HERE = Path(__file__).parent
SCORES = {
    "advantage gap, the size of teacher's minus privileged self's log-prob": "abs(logprob_teacher - logprob_self)",
    "capability gap (signed)": "logprob_teacher - logprob_self",
    "information gap (signed)": "logprob_self - logprob_student",
    "size of the information gap": "abs(logprob_self - logprob_student)",
    "size of the total gap": "abs(logprob_teacher - logprob_student)",
    "entropy of the student": "entropy_student",
    "entropy of the teacher": "entropy_teacher",
    "entropy that the evidence takes from the student": "entropy_student - entropy_self",
    "surprise: minus the student's log-prob": "-logprob_student",
    "regime is HT or HS (high gap)": "CAST(regime IN ('HT', 'HS') AS FLOAT)",
    "regime is HS (privileged self leads)": "CAST(regime = 'HS' AS FLOAT)",
}
TASKS = {
    "privileged or visible, tags alone": ("token_type = 'tag'", "visibility = 'privileged'"),
    "privileged or visible, all tokens": ("visibility IS NOT NULL", "visibility = 'privileged'"),
    "says something (tag, place, attribute) or template": ("true", "token_type IN ('tag', 'location', 'attribute')"),
}
KINDS = {
    "tag": "tags",
    "location": "places",
    "attribute": "attributes",
    "answer": "answers",
    "template": "template words",
}


def main() -> None:
    study, variant = Path(sys.argv[1]), sys.argv[2]
    runs = [wb.open_traces(folder) for folder in sorted(study.glob(f"{variant}-s*"))]
    if len(runs) < 2:
        sys.exit(f"{study} has {len(runs)} runs named {variant}-s*; an interval needs two. Run the study first.")
    frame = pd.concat([measured(run, seed) for seed, run in enumerate(runs)])
    kinds = pd.concat([by_kind(run, seed) for seed, run in enumerate(runs)])
    drift = pd.concat([probed(run, seed) for seed, run in enumerate(runs)])
    folders = sorted(study.glob(f"{variant}-s*"))
    config = read_yaml(folders[0] / "config.yaml")
    (HERE / "does-the-gap-know.md").write_text(page(frame, kinds, drift, config, len(runs), came_from(folders)))
    screenshot(figure(frame), HERE / "does-the-gap-know.png", width=1100)


def measured(run, seed: int) -> pd.DataFrame:
    """AUROC of every score for every task, in the first and the last third of the steps."""
    columns = ", ".join(f"{sql} AS score_{idx}" for idx, sql in enumerate(SCORES.values()))
    last = run.sql("SELECT max(step) AS last FROM tokens")["last"][0].as_py()
    rows = []
    for part, where in (("first third", f"step <= {last / 3}"), ("last third", f"step > {2 * last / 3}")):
        for task, (among, positive) in TASKS.items():
            positions = run.sql(
                f"SELECT {positive} AS positive, {columns} FROM tokens WHERE {where} AND {among}"
            ).to_pandas()
            is_positive = positions["positive"].to_numpy(dtype=bool)
            for idx, score in enumerate(SCORES):
                value = auroc(positions[f"score_{idx}"].to_numpy(dtype=float), is_positive)
                rows.append((seed, part, task, score, value, int(is_positive.sum()), int((~is_positive).sum())))
    return pd.DataFrame(rows, columns=["seed", "part", "task", "score", "auroc", "positive", "negative"])


def by_kind(run, seed: int) -> pd.DataFrame:
    """AUROC of every score for one kind of token against all others, over all steps."""
    columns = ", ".join(f"{sql} AS score_{idx}" for idx, sql in enumerate(SCORES.values()))
    positions = run.sql(f"SELECT token_type, {columns} FROM tokens").to_pandas()
    rows = []
    for kind in KINDS:
        is_kind = (positions["token_type"] == kind).to_numpy(dtype=bool)
        for idx, score in enumerate(SCORES):
            value = auroc(positions[f"score_{idx}"].to_numpy(dtype=float), is_kind)
            rows.append((seed, kind, score, value, int(is_kind.sum())))
    return pd.DataFrame(rows, columns=["seed", "kind", "score", "auroc", "count"])


def probed(run, seed: int) -> pd.DataFrame:
    """Mean sizes of both gaps on the tags of the probes, the same tokens throughout."""
    query = """SELECT step, visibility,
               avg(abs(information_gap)) AS information, avg(abs(capability_gap)) AS capability,
               count(*) AS num
               FROM probe_tokens WHERE token_type = 'tag' AND visibility IS NOT NULL GROUP BY ALL ORDER BY ALL"""
    return run.sql(query).to_pandas().assign(seed=seed)


def figure(frame: pd.DataFrame) -> go.Figure:
    """One row per score, one dot per task and third."""
    chart = go.Figure()
    for (task, part), color, symbol in zip(
        [(task, part) for task in list(TASKS)[:2] for part in ("first third", "last third")],
        ("#0072B2", "#0072B2", "#D55E00", "#D55E00"),
        ("circle-open", "circle", "diamond-open", "diamond"),
        strict=True,
    ):
        aurocs = frame[(frame["task"] == task) & (frame["part"] == part)].groupby("score", sort=False)["auroc"]
        points = {score: interval(values) for score, values in aurocs}
        chart.add_scatter(
            x=[points[score][0] for score in SCORES],
            y=list(SCORES),
            error_x={"array": [points[score][1] for score in SCORES], "thickness": 1.2},
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 10},
            name=f"{task}, {part}",
        )
    chart.add_vline(x=0.5, line_dash="dot", line_color="#888")
    chart.update_layout(
        template="plotly_white",
        height=580,
        title="What tells privileged tokens from visible ones (AUROC; 0.5 knows nothing)",
        xaxis={"range": [0, 1], "title": "AUROC, mean over seeds with 95 % interval"},
        yaxis={"autorange": "reversed"},
        legend={"orientation": "h", "y": -0.18},
        margin={"l": 20, "r": 20, "t": 60, "b": 20},
    )
    return chart


def page(
    frame: pd.DataFrame, kinds: pd.DataFrame, drift: pd.DataFrame, config: dict, num_seeds: int, source: str
) -> str:
    steps, method = config["training"]["steps"], config["method"]
    lines = [
        "# Does the gap know?",
        "",
        f"`python docs/studies/does_the_gap_know.py {sys.argv[1]} {sys.argv[2]}`, after `workbench study` has made the "
        f"runs ({source}): "
        f"{num_seeds} seeds of {method['name']}, shown the {method['privilege']}, {steps} steps, rate "
        f"{config['training']['learning_rate']:g}. On the built-in scenes it is known of every token whether the "
        "picture shows it.",
        "",
        "AUROC: the chance that a token of the first kind has the larger value; 0.5 knows nothing, 0 and 1 know all. "
        "Mean over",
        "seeds ± half of the 95 % interval (Student's t). *first* and *last* are thirds of the steps.",
        "",
        "![What tells privileged tokens from visible ones](does-the-gap-know.png)",
        "",
    ]
    lines += _task_tables(frame)
    lines += _kind_table(kinds)
    return "\n".join([*lines, *_drift_table(drift)]) + "\n"


def _task_tables(frame: pd.DataFrame) -> list[str]:
    """Tables of AUROC by score, one for each task."""
    lines = []
    for task in TASKS:
        selected = frame[frame["task"] == task]
        counts = selected[selected["score"] == next(iter(SCORES))].groupby("part")[["positive", "negative"]].sum()
        numbers = "; ".join(
            f"{part}: {int(row.positive):,} against {int(row.negative):,}" for part, row in counts.iterrows()
        )
        lines += [
            f"## {task[0].upper()}{task[1:]}",
            "",
            f"Tokens, all seeds, {numbers}.",
            "",
            "| score | first | last |",
            "|---|---|---|",
        ]
        for score in SCORES:
            cells = []
            for part in ("first third", "last third"):
                mean, half = interval(selected[(selected["score"] == score) & (selected["part"] == part)]["auroc"])
                cells.append(f"{mean:.2f} ± {half:.2f}")
            lines.append(f"| {score} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _kind_table(kinds: pd.DataFrame) -> list[str]:
    """Table of AUROC by score and kind of token."""
    lines = [
        "## One kind of token against all others",
        "",
        "All steps. In brackets, tokens of that kind, all seeds.",
        "",
        "| score | "
        + " | ".join(
            f"{name} ({kinds[(kinds['kind'] == kind) & (kinds['score'] == next(iter(SCORES)))]['count'].sum():,})"
            for kind, name in KINDS.items()
        )
        + " |",
        "|---" * (len(KINDS) + 1) + "|",
    ]
    for score in SCORES:
        selected = kinds[kinds["score"] == score]
        cells = ["{:.2f} ± {:.2f}".format(*interval(selected[selected["kind"] == kind]["auroc"])) for kind in KINDS]
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return lines


def _drift_table(drift: pd.DataFrame) -> list[str]:
    """Table of the mean gaps on probes by step."""
    lines = [
        "",
        "## Drift, on probes",
        "",
        "Mean size of the gaps on tags of the same answers, written before training and scored again through the run, "
        "in nats; in",
        "brackets its change since step 0, seed by seed.",
        "",
        "| step | visibility | information | capability | tags a seed |",
        "|---|---|---|---|---|",
    ]
    start = drift[drift["step"] == 0].set_index(["visibility", "seed"])
    for step in sorted(drift["step"].unique()):
        for visibility in ("visible", "privileged"):
            selected = drift[(drift["step"] == step) & (drift["visibility"] == visibility)].set_index(
                ["visibility", "seed"]
            )
            if len(selected) < 2:
                continue
            cells = []
            for name in ("information", "capability"):
                cell = "{:.2f} ± {:.2f}".format(*interval(selected[name]))
                change = interval((selected[name] - start[name]).dropna())
                cells.append(cell + (" ({:+.2f} ± {:.2f})".format(*change) if step else ""))
            lines.append(f"| {step} | {visibility} | {' | '.join(cells)} | {selected['num'].mean():.0f} |")
    return lines


if __name__ == "__main__":
    main()
