"""Compare two runs: the same example token by token, and accuracies."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.analysis.evals import answers_of, no_evals
from workbench.analysis.table import Table, names_of, run_name, table, traces_of
from workbench.errors import TraceError
from workbench.evals.records import tabulate
from workbench.render.from_trace import token_view
from workbench.render.view import TokenView
from workbench.traces.reader import TracedRollout, Traces

_NUMBERS = ("regime", "capability_gap", "information_gap", "loss")
ALIGNED_COLUMNS = [f"{name}_{side}" for side in "ab" for name in ("position", "token", *_NUMBERS)]
ALIGNED_COLUMNS += ["same_token", "same_regime"]


@dataclass(frozen=True)
class RunPair:
    """One example in two runs. `aligned`: a row per token of either answer; `by`: how the tokens were matched."""

    first: TokenView
    second: TokenView
    aligned: Table
    by: str


def shared_examples(first: str | Path | Traces, second: str | Path | Traces) -> Table:
    """Examples that both runs answered, with their latest steps: as probes if possible, otherwise in training."""
    columns = ["example", "question", "probe", "step_a", "rollout_a", "step_b", "rollout_b", "same_answer"]
    traces = [traces_of(first), traces_of(second)]
    empty = (
        "These runs have no recorded example in common. Train both on the same data or with the same data.probes, and "
        "with trace.every above 0."
    )
    if None in traces:
        return table([], columns, run="", empty=empty)
    parts = []
    for is_probe, name in ((True, "probe_rollouts"), (False, "rollouts")):
        query = f"""
            SELECT example_id AS example, question, step, rollout_idx AS rollout, completion FROM {name}
            WHERE process_rank = 0
            QUALIFY row_number() OVER (PARTITION BY example_id ORDER BY step DESC, rollout_idx) = 1
            ORDER BY example_id"""
        frames = [opened.sql(query).to_pandas() for opened in traces]
        both = frames[0].merge(frames[1].drop(columns="question"), on="example", suffixes=("_a", "_b"))
        both["probe"], both["same_answer"] = is_probe, both["completion_a"] == both["completion_b"]
        parts.append(both)
    joined = pd.concat(parts).drop_duplicates("example")
    return table(joined, columns, run=f"{run_name(traces[0])}, {run_name(traces[1])}", empty=empty)


def pair(first: str | Path | Traces, second: str | Path | Traces, row: dict) -> RunPair:
    """Align the two answers of a row of `shared_examples`. Raises TraceError if an answer was deleted."""
    traced = []
    names = []
    for run, side in ((first, "a"), (second, "b")):
        traces = traces_of(run)
        if traces is None:
            raise TraceError(f"{run} has no traces; they may have been deleted. Choose another run.")
        step, rollout = int(row[f"step_{side}"]), int(row[f"rollout_{side}"])
        traced.append(traces.rollout(step, rollout, probe=bool(row["probe"])))
        names.append(run_name(traces))
    rows, by = align(*traced)
    units = {name: "nats" for name in ALIGNED_COLUMNS if "gap" in name or "loss" in name}
    aligned = table(rows, ALIGNED_COLUMNS, run=", ".join(names), empty="Both answers are empty.", units=units)
    views = [token_view(answer, run=name) for answer, name in zip(traced, names, strict=True)]
    return RunPair(views[0], views[1], aligned, by)


def align(first: TracedRollout, second: TracedRollout) -> tuple[list[dict], str]:
    """Align the tokens of two answers. Returns a row per pair, None for a missing partner, and the kind of match."""
    ids = [[position["token_id"] for position in answer.tokens] for answer in (first, second)]
    if ids[0] == ids[1]:
        pairs = [(token_idx, token_idx) for token_idx in range(len(ids[0]))]
        by = "same tokens"
    else:
        pairs, by = _matched(*ids), "longest common runs of tokens"
    rows = []
    for place_a, place_b in pairs:
        row: dict[str, object] = {}
        for suffix, token_idx, answer in (("a", place_a, first), ("b", place_b, second)):
            position = {} if token_idx is None else answer.tokens[token_idx]
            row |= {f"position_{suffix}": token_idx, f"token_{suffix}": position.get("token_text")}
            row |= {f"{name}_{suffix}": position.get(name) for name in _NUMBERS}
        row["same_token"] = None not in (place_a, place_b) and ids[0][place_a] == ids[1][place_b]
        row["same_regime"] = row["same_token"] and row["regime_a"] == row["regime_b"]
        rows.append(row)
    return rows, by


def _matched(first: list[int], second: list[int]) -> list[tuple[int | None, int | None]]:
    pairs: list[tuple[int | None, int | None]] = []
    for _, start_a, end_a, start_b, end_b in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for offset in range(max(end_a - start_a, end_b - start_b)):
            place_a, place_b = start_a + offset, start_b + offset
            pairs.append((place_a if place_a < end_a else None, place_b if place_b < end_b else None))
    return pairs


def accuracy_of(*runs: str | Path) -> Table:
    """Accuracy and confidence of every policy at the first and the last evaluation, per context and visibility."""
    columns = ["run", "policy", "context", "visibility", "step", "count", "accuracy", "confidence", "change"]
    rows = []
    run_names = names_of(*runs)
    for run, name in zip(runs, run_names, strict=True):
        measures = tabulate(answers_of(run))
        for key, measured in measures.items():
            step, group = key[0], key[1:]
            steps = sorted({other[0] for other in measures if other[1:] == group})
            if step in (steps[0], steps[-1]):
                change = None if step == steps[0] else measured.accuracy - measures[(steps[0], *group)].accuracy
                rows.append([name, *group, step, measured.count, measured.accuracy, measured.confidence, change])
    units = dict.fromkeys(("accuracy", "change"), "share of questions")
    units |= {"confidence": "probability", "count": "questions"}
    frame = pd.DataFrame(rows, columns=columns)
    return table(frame, columns, run=", ".join(run_names), empty=no_evals(runs[0]), units=units)


def accuracy_beside(first: str | Path, second: str | Path) -> Table:
    """Evaluations of both runs side by side: a row per policy, context and visibility.

    Columns of each run (suffix _a or _b): questions, accuracy at its first and its newest evaluation, newest
    confidence. A run with a single evaluation has no newest accuracy. The units name the run and the step.
    """
    rows: dict[tuple, dict] = {}
    units = {}
    for run, name, side in zip((first, second), names_of(first, second), "ab", strict=True):
        measured = tabulate(answers_of(run))
        steps = sorted({key[0] for key in measured}) or [None]
        for (step, *group), measured_group in measured.items():
            row = rows.setdefault(tuple(group), dict(zip(("policy", "context", "visibility"), group, strict=True)))
            row.setdefault(f"count_{side}", measured_group.count)
            if step == steps[0]:
                row[f"first_{side}"] = measured_group.accuracy
            elif step == steps[-1]:
                row[f"last_{side}"] = measured_group.accuracy
            if step == steps[-1]:
                row[f"confidence_{side}"] = measured_group.confidence
        when = "not evaluated" if steps == [None] else f"step {steps[0]}"
        newest = f"step {steps[-1]}" if len(steps) > 1 else "no later evaluation"
        units |= {f"count_{side}": name, f"first_{side}": f"{name}, {when}", f"last_{side}": f"{name}, {newest}"}
        units[f"confidence_{side}"] = f"{name}, {newest if len(steps) > 1 else when}"
    columns = [
        "policy",
        "context",
        "visibility",
        *(f"{column}_{side}" for side in "ab" for column in ("count", "first", "last", "confidence")),
    ]
    return table(
        list(rows.values()), columns, run=", ".join(names_of(first, second)), empty=no_evals(first), units=units
    )
