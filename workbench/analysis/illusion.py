"""Privilege illusion: separate learned capability from imitation of a teacher that sees the evidence.

Capability shows as accuracy on questions that the image answers. Imitation shows as confidence on questions that only
the evidence answers: loss on tokens that only the evidence explains, and answers that are confident and wrong.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from workbench.analysis.evals import answers_of, no_evals
from workbench.analysis.table import NO_SELF, NO_TRACES, Table, has_gaps, run_name, table, traces_of
from workbench.evals.records import CONFIDENCE, tabulate
from workbench.traces.reader import Traces
from workbench.types import PRIVILEGED, VISIBLE

ACCURACY_UNITS = {
    "count": "questions",
    "accuracy": "share of questions",
    "confidence": "mean over questions",
    "overconfidence": "confidence minus accuracy, points",
    "calibration_error": "mean |confidence - accuracy|",
    "length": "tokens per answer",
    "truncated": "share of answers",
}
ACCURACY_COLUMNS = ["step", "policy", "context", "visibility", *ACCURACY_UNITS]
CONFIDENCE_NOTE = (
    f"Confidence is the {CONFIDENCE}. Over-confidence is mean confidence minus accuracy, in percentage points."
)
MAX_POINTS = 24  # of a curve of shares; neighbors of more recorded steps are merged
MAX_RANKED_TOKENS = 100_000  # for an AUROC, about; of longer runs evenly spaced steps are used


def accuracy(run_dir: str | Path) -> Table:
    """Accuracy, confidence and calibration of every policy, context and visibility, over steps."""
    table_of = tabulate(answers_of(run_dir))
    rows = [
        {"step": step, "policy": policy, "context": context, "visibility": visibility, **vars(measured)}
        for (step, policy, context, visibility), measured in table_of.items()
    ]
    return table(rows, ACCURACY_COLUMNS, run=Path(run_dir).name, empty=no_evals(run_dir), units=ACCURACY_UNITS)


def newest(accuracy: Table) -> Table:
    """The rows of the newest evaluation of each policy and context."""
    if accuracy.empty:
        return accuracy
    frame = accuracy.frame
    is_newest = frame["step"] == frame.groupby(["policy", "context"])["step"].transform("max")
    return Table(frame[is_newest].reset_index(drop=True), accuracy.run, accuracy.units, accuracy.empty)


def reliability(run_dir: str | Path, *, policy: str = "student", context: str = "plain") -> Table:
    """Calibration curve of the last evaluation: count, mean confidence and accuracy per tenth of confidence."""
    columns = ["visibility", "bin", "count", "confidence", "accuracy"]
    records = [record for record in answers_of(run_dir) if (record.policy, record.context) == (policy, context)]
    records = [record for record in records if record.reward is not None]
    step = max((record.step for record in records), default=0)
    rows = []
    for visibility in ("all", VISIBLE, PRIVILEGED):
        of_visibility = [row for row in records if row.step == step and visibility in ("all", row.visibility)]
        for bin_idx in range(10):
            part = [row for row in of_visibility if min(9, int(10 * row.confidence)) == bin_idx]
            if part:
                confidence = float(np.mean([row.confidence for row in part]))
                accuracy = float(np.mean([row.reward for row in part]))
                rows.append([visibility, bin_idx / 10, len(part), confidence, accuracy])
    frame = pd.DataFrame(rows, columns=columns)
    return table(frame, columns, run=Path(run_dir).name, empty=no_evals(run_dir), units={"count": "questions"})


def information_dominated_loss(run: str | Path | Traces) -> Table:
    """Shares of tokens and loss whose information gap is larger than the capability gap, per step and visibility.

    If a run has more than MAX_POINTS recorded steps, neighbors are merged into one row, `first_step` to `step`.
    """
    columns = ["first_step", "step", "visibility", "num_positions", "position_share", "loss_share"]
    traces = traces_of(run)
    if traces is None or not has_gaps(traces):
        return table([], columns, run=run_name(traces), empty=NO_TRACES if traces is None else NO_SELF)
    query = """
        WITH measured AS (SELECT * FROM aggregates WHERE num_information_dominated IS NOT NULL),
        ranked AS (SELECT step, row_number() OVER (ORDER BY step) - 1 AS idx, count(*) OVER () AS num_steps
                   FROM (SELECT DISTINCT step FROM measured)),
        parts AS (SELECT step, idx // CAST(ceil(num_steps / $points) AS BIGINT) AS part FROM ranked),
        named AS (SELECT step, min(step) OVER same AS first_step, max(step) OVER same AS last_step FROM parts
                  WINDOW same AS (PARTITION BY part)),
        grouped AS (SELECT 'all' AS group_name, * FROM measured
                 UNION ALL SELECT coalesce(visibility, 'unmarked') AS group_name, * FROM measured)
        SELECT first_step, last_step AS step, group_name AS visibility,
               CAST(sum(num_positions) AS BIGINT) AS num_positions,
               sum(num_information_dominated) / sum(num_positions) AS position_share,
               sum(information_dominated_abs_loss) / nullif(sum(abs_loss), 0) AS loss_share
        FROM grouped JOIN named USING (step) GROUP BY ALL ORDER BY step, visibility"""
    units = {"num_positions": "tokens", "position_share": "share of tokens", "loss_share": "share of loss"}
    frame = traces.sql(query, {"points": MAX_POINTS}).to_pandas()
    return table(frame, columns, run=run_name(traces), empty=NO_TRACES, units=units)


def separation(run: str | Path | Traces) -> Table:
    """AUROC of each gap for privileged against visible tokens; 0.5 = no separation, 1 = perfect.

    If a run has more than about MAX_RANKED_TOKENS such tokens, evenly spaced steps are used; the table's `run` has
    their number.
    """
    columns = ["gap", "auroc", "num_privileged", "num_visible"]
    traces = traces_of(run)
    if traces is None or not has_gaps(traces):
        return table([], columns, run=run_name(traces), empty=NO_TRACES if traces is None else NO_SELF)
    steps, num_steps = _even_steps(traces, MAX_RANKED_TOKENS, "visibility IS NOT NULL")
    names = ("information_gap", "capability_gap", "total_gap", "information_gap_size", "capability_gap_size")
    query = """SELECT visibility, information_gap, capability_gap, total_gap,
                abs(information_gap) AS information_gap_size,
                abs(capability_gap) AS capability_gap_size FROM tokens
                WHERE visibility IN ('privileged', 'visible') AND list_contains($steps, step)"""
    frame = traces.sql(query, {"steps": steps}).to_pandas()
    is_privileged = (frame["visibility"] == PRIVILEGED).to_numpy()
    rows = []
    if 0 < is_privileged.sum() < len(frame):
        rows = [
            {
                "gap": name.replace("_", " "),
                "auroc": auroc(frame[name].to_numpy(), is_privileged),
                "num_privileged": int(is_privileged.sum()),
                "num_visible": int((~is_privileged).sum()),
            }
            for name in names
        ]
    empty = "No AUROC: this data does not mark privileged tokens. Use the built-in scenes or data with marks."
    units = {"auroc": "area under the ROC curve", "num_privileged": "tokens", "num_visible": "tokens"}
    note = f"tokens of {len(steps):,} of {num_steps:,} steps, evenly spaced" if len(steps) < num_steps else ""
    return table(rows, columns, run=" · ".join(filter(None, (run_name(traces), note))), empty=empty, units=units)


def _even_steps(traces: Traces, most: int, where: str) -> tuple[list[int], int]:
    """Evenly spaced steps with about `most` positions that match `where`, and the number of steps that have any."""
    query = f"SELECT step, sum(num_positions) AS n FROM aggregates WHERE {where} GROUP BY step ORDER BY step"
    counts = traces.sql(query).to_pydict()
    every = max(1, -(-int(sum(counts["n"])) // most))
    return counts["step"][::every], len(counts["step"])


def auroc(values: np.ndarray, is_positive: np.ndarray) -> float:
    """Probability that a positive has a larger value than a negative, ties count half (Mann-Whitney U)."""
    ranks = pd.Series(values).rank().to_numpy()
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    return float((ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def worst_cases(run: str | Path | Traces, *, limit: int = 50, between: tuple[int, int] | None = None) -> Table:
    """Tokens of a run with the largest loss whose supervision only the evidence explains.

    between  first and last step of the tokens; None = all steps

    Evenly spaced steps are ranked first. The loss of their last case is a lower bound, so the second query reads only
    tokens with at least that loss.
    """
    columns = ["step", "rollout", "process", "position", "token", "token_type", "visibility", "regime", "target"]
    columns += ["information_gap", "capability_gap", "loss", "question", "answer", "expected"]
    traces = traces_of(run)
    if traces is None or not has_gaps(traces):
        return table([], columns, run=run_name(traces), empty=NO_TRACES if traces is None else NO_SELF)
    first, last = between or (0, 2**31 - 1)
    where = f"""step BETWEEN {int(first)} AND {int(last)} AND information_gap > abs(capability_gap)
               AND target IS NOT NULL AND coalesce(visibility, 'privileged') = 'privileged'"""
    values = {"limit": limit}
    steps, _ = _even_steps(traces, MAX_RANKED_TOKENS, f"step BETWEEN {int(first)} AND {int(last)}")
    query = f"SELECT loss FROM tokens WHERE {where} AND list_contains($steps, step) ORDER BY loss DESC LIMIT $limit"
    sampled = traces.sql(query, {**values, "steps": steps})["loss"].to_pylist()
    threshold = sampled[-1] if len(sampled) == limit else None
    query = f"""
        WITH worst AS (
            SELECT step, process_rank, rollout_idx, position, token_text, token_type, visibility, regime, target,
                   information_gap, capability_gap, loss
            FROM tokens WHERE {where} {"" if threshold is None else "AND loss >= $least"}
            ORDER BY loss DESC, step DESC, rollout_idx, position LIMIT $limit)
        SELECT worst.step, worst.rollout_idx AS rollout, worst.process_rank AS process, position, token_text AS token,
               token_type, visibility, regime, target, information_gap, capability_gap, loss, question,
               completion AS answer, answer AS expected
        FROM worst JOIN rollouts USING (step, process_rank, rollout_idx)
        ORDER BY loss DESC, worst.step DESC, rollout, position"""
    frame = traces.sql(query, values if threshold is None else {**values, "least": threshold}).to_pandas()
    empty = "No token is supervised by the evidence alone."
    units = dict.fromkeys(("information_gap", "capability_gap", "loss"), "nats")
    return table(frame, columns, run=run_name(traces), empty=empty, units=units)


def confidently_wrong(run_dir: str | Path) -> Table:
    """The 50 most confident of the student's wrong answers in the last evaluation."""
    columns = ["step", "policy", "context", "example", "question", "visibility", "confidence", "text", "answer"]
    records = answers_of(run_dir)
    last = max((record.step for record in records), default=0)
    wrong = [record for record in records if (record.step, record.policy, record.reward) == (last, "student", 0)]
    wrong.sort(key=lambda record: -record.confidence)
    rows = [{**vars(record), "example": record.example_id} for record in wrong[:50]]
    empty = no_evals(run_dir) if not records else "The last evaluation has no wrong answer."
    return table(rows, columns, run=Path(run_dir).name, empty=empty, units={"confidence": "probability"})
