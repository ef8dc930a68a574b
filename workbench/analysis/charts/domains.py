"""Metrics by domain, token type and visibility, from evaluation records and traces.

eval/accuracy/student/plain/domain=read    and confidence, of each evaluation
share/HT/domain=read                       share of the step's tokens of this domain in a regime
supervised_by/teacher/token_type=tag       share of the step's tokens of this type whose loss pulls toward a target
"""

from pathlib import Path

import pandas as pd

from workbench.analysis.charts.groups import EVAL
from workbench.analysis.evals import answers_of
from workbench.analysis.regimes import shares_over_steps
from workbench.analysis.table import traces_of
from workbench.evals.records import EvalRecord, measure
from workbench.traces.reader import Traces

MAX_STEPS = 400  # a longer run is merged into as many stretches of steps


def metrics_by(run_dir: Path, split: str) -> pd.DataFrame:
    """Columns step, metric, value, as in recorded.py; no rows if the run has neither domains nor traces.

    split  domain, token_type or visibility
    """
    rows = accuracy_rows(answers_of(run_dir)) if split == "domain" else []
    frame = pd.DataFrame(rows, columns=["step", "metric", "value"])
    traces = traces_of(run_dir)
    shares = None if traces is None else share_rows(traces, split)
    return frame if shares is None or shares.empty else pd.concat([frame, shares]) if rows else shares


def accuracy_rows(records: list[EvalRecord]) -> list[dict]:
    """Accuracy and confidence of every evaluation by policy, context and domain."""
    groups: dict[tuple[int, str], list[EvalRecord]] = {}
    for record in records:
        if record.domain:
            key = record.step, f"{record.policy}/{record.context}/domain={record.domain}"
            groups.setdefault(key, []).append(record)
    rows = []
    for (step, name), group in groups.items():
        measured = measure(group)
        if measured is not None:
            rows.append({"step": step, "metric": f"{EVAL}accuracy/{name}", "value": measured.accuracy})
            rows.append({"step": step, "metric": f"{EVAL}confidence/{name}", "value": measured.confidence})
    return sorted(rows, key=lambda row: (row["metric"], row["step"]))


def share_rows(traces: Traces, split: str) -> pd.DataFrame:
    """Token shares by regime and by target in each domain, token type or visibility."""
    shares = shares_over_steps(traces, split=split, bins=MAX_STEPS)
    if shares.empty:
        return pd.DataFrame(columns=["step", "metric", "value"])
    frame = shares.frame[shares.frame["group"] != "not known"]
    suffix = f"/{split}=" + frame["group"]
    by_regime = pd.DataFrame(
        {"step": frame["step"], "metric": "share/" + frame["regime"] + suffix, "value": frame["position_share"]}
    )
    by_target = frame.assign(metric="supervised_by/" + frame["target"].fillna("nothing") + suffix)
    by_target = by_target.groupby(["metric", "step"], as_index=False)["position_share"].sum()
    by_target = by_target.rename(columns={"position_share": "value"})
    both = pd.concat([by_regime, by_target[["step", "metric", "value"]]], ignore_index=True)
    return both.sort_values(["metric", "step"], ignore_index=True)
