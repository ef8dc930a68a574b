"""What DOPD's paper leaves open, and how much of the routing hangs on it: every reading, on the same recorded tokens.

    python docs/studies/open_points.py runs/regimes all-adaptive     after    workbench study configs/studies/regimes.yaml

Writes open-points.md beside this file. Routing is a function of recorded log-probs, so each reading is applied to the very
tokens of the runs (one run per seed) and compared with the default; no training differs.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

import workbench as wb
from workbench.methods.dopd import Options, route
from workbench.traces.reader import Traces
from workbench.types import RouteBatch, TokenScores

HERE = Path(__file__).parent
REGIMES = ("LH", "LL", "HT", "HS")
PER_MICRO_BATCH = 8  # answers
READINGS = {  # reading: (what it changes, options)
    "nothing is trimmed": {"trim": 0.0},
    "gap and probabilities are trimmed, each by its own 5 %": {"trim_target": "gap+probability"},
    "all are z-scored before they are compared": {"normalise": "zscore"},
    "all are scaled to 0 to 1": {"normalise": "minmax"},
    f"means over micro-batches of {PER_MICRO_BATCH} answers": {"stat_scope": "micro_batch"},
}


def main() -> None:
    study, variant = Path(sys.argv[1]), sys.argv[2]
    runs = [wb.open_traces(folder) for folder in sorted(study.glob(f"{variant}-s*"))]
    if not runs:
        sys.exit(f"{study} has no run named {variant}-s*. Run the study first.")
    batches = [batch for run in runs for batch in recorded(run)]
    default = torch.cat([route(batch, Options()).regime for batch in batches])
    rows = [row("the default", default, default)]
    for reading, options in READINGS.items():
        rows.append(row(reading, torch.cat([route(batch, Options(**options)).regime for batch in batches]), default))
    dropped = torch.cat([route(batch, Options(trim_drops_loss=True)).weight == 0 for batch in batches])
    (HERE / "open-points.md").write_text(page(pd.DataFrame(rows), default, dropped, len(runs), len(batches)))


def recorded(run: Traces) -> list[RouteBatch]:
    """One batch per recorded step: what the router was given."""
    query = """SELECT step, rollout_idx, position, logprob_teacher, logprob_self FROM positions
               ORDER BY step, rollout_idx, position"""
    batches = []
    for _, frame in run.sql(query).to_pandas().groupby("step"):
        sequence = torch.tensor(frame["rollout_idx"].rank(method="dense").to_numpy().astype("int64") - 1)
        empty = torch.zeros(len(frame))
        scores = {
            name: TokenScores(torch.tensor(frame[f"logprob_{name}"].to_numpy()), empty, empty, empty.long())
            for name in ("teacher", "self")
        }
        position = torch.tensor(frame["position"].to_numpy().astype("int64"))
        batches.append(RouteBatch(scores, sequence, position, sequence // PER_MICRO_BATCH, (), 0))
    return batches


def row(reading: str, regime: torch.Tensor, default: torch.Tensor) -> dict:
    shares = {name: float((regime == place).double().mean()) for place, name in enumerate(REGIMES)}
    return {"reading": reading, **shares, "moved": float((regime != default).double().mean())}


def page(rows: pd.DataFrame, default: torch.Tensor, dropped: torch.Tensor, num_runs: int, num_steps: int) -> str:
    lines = [
        "# What the paper leaves open",
        "",
        f"`python docs/studies/open_points.py {sys.argv[1]} {sys.argv[2]}`, after `workbench study configs/studies/regimes.yaml`: "
        f"{default.numel():,} tokens of {num_steps} recorded steps of {num_runs} runs, each routed by every reading.",
        "",
        "| reading | " + " | ".join(REGIMES) + " | tokens in another regime than by default |",
        "|---|" + "---|" * (len(REGIMES) + 1),
    ]
    for one in rows.to_dict("records"):
        moved = "" if one["reading"] == "the default" else f"{one['moved']:.1%}"
        lines.append(f"| {one['reading']} | " + " | ".join(f"{one[name]:.1%}" for name in REGIMES) + f" | {moved} |")
    lost = {name: float((default[dropped] == place).double().mean()) for place, name in enumerate(REGIMES)}
    lines += [
        "",
        f"If trimmed tokens lose their supervision, that is {float(dropped.double().mean()):.1%} of all tokens, of which "
        f"{lost['HT']:.0%} are HT and {lost['HS']:.0%} HS: {float(dropped[default >= 2].double().mean()):.0%} of all tokens with a high gap.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
