"""What do the sources of a study's runs know, and does the gap know it? Measured on the sampled tokens.

    python docs/studies/what_sources_know.py runs/pays_weak dopd dopd_live opsd

1. How well do the gaps, by sign and by size, tell privileged from visible tokens, and wrong from right ones (AUROC)?
2. How often is each source right on the tokens that it supervised, and how often would the other have been?

A token is right if it continues the worked reference answer. Only tokens whose prefix agrees with that reference
count, and only those that state something (tag, place, attribute, answer). The runs of a variant are its seeds: each
number is a mean over them with half of its 95 % interval (Student's t). The runs need trace.top_k_rollouts of the
whole batch, as pays_weak.yaml has it.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from intervals import interval
from pays import markdown

import workbench as wb
from workbench.analysis.illusion import auroc

SCORES = {
    "capability gap": "logprob_teacher - logprob_self",
    "size of the capability gap": "abs(logprob_teacher - logprob_self)",
    "information gap": "logprob_self - logprob_student",
    "size of the information gap": "abs(logprob_self - logprob_student)",
    "total gap": "logprob_teacher - logprob_student",
    "surprise: minus the student's log-prob": "-logprob_student",
}
STATEMENTS = ("tag", "location", "attribute", "answer")
SOURCES = ("teacher", "self", "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", nargs="+")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        runs = sorted(arguments.folder.glob(f"{variant}-s*"))
        tokens = [judged_tokens(folder) for folder in runs]
        print(f"## {variant}, {len(runs)} seeds, {sum(map(len, tokens)):,} tokens\n")
        print(gap_table(tokens))
        print(source_table(tokens))


def judged_tokens(folder: Path) -> pd.DataFrame:
    """Statement tokens of a run's traces whose prefix agrees with the reference, and the right answer to each.

    Columns: regime, visibility, the scores of SCORES, right (of the written token), and right_VIEW for each source.
    """
    run = wb.open_traces(folder)
    columns = run.sql("SELECT * FROM tokens LIMIT 0").column_names
    views = [view for view in SOURCES if f"logprob_{view}" in columns]
    scores = {name: sql for name, sql in SCORES.items() if all(part in columns for part in _columns_of(sql))}
    top = ", ".join(f"top_k_{view}[1].text AS top_{view}" for view in views)
    scored = ", ".join(f'{sql} AS "{name}"' for name, sql in scores.items())
    frame = run.sql(
        f"""SELECT step, process_rank, rollout_idx, position, token_text, token_type, visibility, regime, reference,
                   {top}, {scored}
            FROM tokens JOIN rollouts USING (step, process_rank, rollout_idx)
            WHERE reference IS NOT NULL ORDER BY ALL"""
    ).to_pandas()
    frame = frame.sort_values(["step", "process_rank", "rollout_idx", "position"])
    texts = frame.groupby(["step", "process_rank", "rollout_idx"])["token_text"]
    prefix = texts.transform(lambda column: column.cumsum().shift(fill_value=""))
    agrees = np.array([reference.startswith(text) for reference, text in zip(frame["reference"], prefix, strict=True)])
    frame["rest"] = [reference[len(text) :] for reference, text in zip(frame["reference"], prefix, strict=True)]
    frame = frame[agrees & frame["token_type"].isin(STATEMENTS) & frame[f"top_{views[0]}"].notna()].copy()
    for name, column in {"right": "token_text", **{f"right_{view}": f"top_{view}" for view in views}}.items():
        frame[name] = [rest.startswith(text) for rest, text in zip(frame["rest"], frame[column], strict=True)]
    return frame


def _columns_of(sql: str) -> list[str]:
    return [word.strip("()-") for word in sql.replace("abs", "").split() if "logprob" in word]


def gap_table(runs: list[pd.DataFrame]) -> str:
    """AUROC of every score: privileged against visible tags, and wrong against right tokens."""
    rows = []
    for name in (name for name in SCORES if name in runs[0]):
        tags = [run[run["visibility"].notna() & (run["token_type"] == "tag")] for run in runs]
        hidden = [auroc(run[name].to_numpy(float), (run["visibility"] == "privileged").to_numpy()) for run in tags]
        wrong = [auroc(run[name].to_numpy(float), ~run["right"].to_numpy(bool)) for run in runs]
        rows.append([name, _cell(hidden), _cell(wrong)])
    return markdown(["AUROC of", "privileged tag, not visible tag", "wrong token, not right one"], rows)


def source_table(runs: list[pd.DataFrame]) -> str:
    """Share of tokens in each regime, and the accuracy of each source there."""
    views = [view for view in SOURCES if f"right_{view}" in runs[0]]
    rows = []
    for visibility in ("visible", "privileged", "all"):
        for regime in sorted({regime for run in runs for regime in run["regime"].unique()}):
            parts = [run[run["regime"] == regime] for run in runs]
            if visibility != "all":
                parts = [part[part["visibility"] == visibility] for part in parts]
            if min(map(len, parts)) < 20:
                continue
            shares = [len(part) / len(run) for part, run in zip(parts, runs, strict=True)]
            accuracies = [_cell([part[f"right_{view}"].mean() for part in parts], percent=True) for view in views]
            ahead = ""
            if {"teacher", "self"} <= set(views):
                ahead = _cell(
                    [part["right_teacher"].mean() - part["right_self"].mean() for part in parts], percent=True
                )
            rows.append([visibility, regime, f"{np.mean(shares):.0%}", *accuracies, ahead])
    return markdown(["tokens", "regime", "share", *(f"{view} right" for view in views), "teacher - self"], rows)


def _cell(values: list[float], percent: bool = False) -> str:
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f} %" if percent else f"{mean:.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
