"""What DOPD's paper leaves open, and how much of the routing hangs on it: every reading, on the same recorded tokens.

    workbench study configs/studies/regimes.yaml
    python docs/studies/open_points.py runs/regimes all-adaptive

Writes open-points.md beside this file. Routing is a function of recorded log-probs, so each reading is applied to the
very tokens of the runs (one run per seed) and compared with the default; no training differs.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from intervals import came_from, interval

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
    "all are z-scored before they are compared": {"normalize": "zscore"},
    "all are scaled to 0 to 1": {"normalize": "minmax"},
    f"means over micro-batches of {PER_MICRO_BATCH} answers": {"stat_scope": "micro_batch"},
}


def main() -> None:
    study, variant = Path(sys.argv[1]), sys.argv[2]
    folders = sorted(study.glob(f"{variant}-s*"))
    if len(folders) < 2:
        sys.exit(f"{study} has {len(folders)} runs named {variant}-s*; an interval needs two. Run the study first.")
    runs = [recorded(wb.open_traces(folder)) for folder in folders]
    default = [regimes(run) for run in runs]
    rows = [row("the default", default, default)]
    rows += [row(reading, [regimes(run, **options) for run in runs], default) for reading, options in READINGS.items()]
    dropped = [torch.cat([route(batch, Options(trim_drops_loss=True)).weight == 0 for batch in run]) for run in runs]
    (HERE / "open-points.md").write_text(page(rows, default, dropped, sum(map(len, runs)), came_from(folders)))


def regimes(run: list[RouteBatch], **options: object) -> torch.Tensor:
    """The regime of every recorded token of a run under one reading."""
    return torch.cat([route(batch, Options(**options)).regime for batch in run])


def recorded(run: Traces) -> list[RouteBatch]:
    """One batch per recorded step: what the router was given."""
    query = """SELECT step, rollout_idx, position, logprob_teacher, logprob_self FROM tokens
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


def row(reading: str, regimes: list[torch.Tensor], default: list[torch.Tensor]) -> list[str]:
    """Shares of tokens by regime and of those that moved, means over runs with half of their 95 % interval."""
    cells = [share(regime == idx for regime in regimes) for idx in range(len(REGIMES))]
    moved = "" if regimes is default else share(regime != usual for regime, usual in zip(regimes, default, strict=True))
    return [reading, *cells, moved]


def share(chosen: Iterable[torch.Tensor]) -> str:
    mean, half = interval([float(flags.double().mean()) for flags in chosen])
    return f"{mean:.1%} ± {100 * half:.1f}"


def page(
    rows: list[list[str]], default: list[torch.Tensor], dropped: list[torch.Tensor], num_steps: int, source: str
) -> str:
    lines = [
        "# What the paper leaves open",
        "",
        f"`python docs/studies/open_points.py {sys.argv[1]} {sys.argv[2]}`, after `workbench study "
        "configs/studies/regimes.yaml` "
        f"({source}): {sum(map(len, default)):,} tokens of {num_steps} recorded steps of {len(default)} runs, each "
        "routed by every "
        "reading. Means over runs ± half of the 95 % interval (Student's t).",
        "",
        "| reading | " + " | ".join(REGIMES) + " | tokens in another regime than by default |",
        "|---|" + "---|" * (len(REGIMES) + 1),
        *("| " + " | ".join(cells) + " |" for cells in rows),
    ]
    pairs = list(zip(dropped, default, strict=True))
    lost = {name: share(regime[gone] == idx for gone, regime in pairs) for idx, name in enumerate(REGIMES)}
    lines += [
        "",
        f"If trimmed tokens lose their supervision, that is {share(dropped)} of all tokens, of which "
        f"{lost['HT']} are HT and {lost['HS']} HS: {share(gone[regime >= 2] for gone, regime in pairs)} of all tokens "
        "with a high gap.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
