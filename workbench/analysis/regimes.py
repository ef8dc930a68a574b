"""Regime shares by tokens and by loss over steps, split by token_type, visibility or domain of the tokens."""

from pathlib import Path

from workbench.analysis.table import NO_PROBES, NO_TRACES, Table, run_name, table, traces_of
from workbench.errors import TraceError, require_one_of, unknown
from workbench.traces.reader import Traces

SPLITS = ("token_type", "visibility", "domain")
COLUMNS = ["step", "group", "regime", "target", "meaning", "num_positions", "position_share", "loss_share"]
UNITS = {"num_positions": "tokens", "position_share": "share of tokens", "loss_share": "share of loss"}


def shares_over_steps(
    run: str | Path | Traces, *, split: str | None = None, bins: int = 200, probe: bool = False
) -> Table:
    """Each regime's share of tokens and of loss, per step and, with `split`, per token_type, visibility or domain.

    bins   largest number of rows over steps; a longer run is merged into stretches, `step` is the first of each
    probe  use probes instead of training answers

    Raises: TraceError for an unknown split.
    """
    if split is not None and split not in SPLITS:
        raise TraceError(unknown("split", split, SPLITS))
    traces = traces_of(run)
    if traces is None:
        return table([], COLUMNS, run="", empty=NO_TRACES)
    group = "'all'" if split is None else f"coalesce(nullif({split}, ''), 'not known')"
    if probe:
        joined = "JOIN probe_rollouts USING (step, process_rank, rollout_idx)" if split == "domain" else ""
        aggregates = f"""SELECT step, {group} AS grp, regime, count(*) AS positions, sum(abs(contribution)) AS loss
                    FROM probe_tokens {joined} GROUP BY ALL"""
    else:
        aggregates = f"""SELECT step, {group} AS grp, regime, sum(num_positions) AS positions, sum(abs_loss) AS loss
                    FROM aggregates GROUP BY ALL"""
    query = f"""
        WITH raw AS ({aggregates}),
        steps AS (
            SELECT step, (row_number() OVER (ORDER BY step) - 1) * $bins // greatest($bins, count(*) OVER ()) AS bin
            FROM (SELECT DISTINCT step FROM raw)),
        counted AS (
            SELECT min(step) OVER (PARTITION BY bin) AS step, grp, regime, positions, loss
            FROM raw JOIN steps USING (step)),
        merged AS (SELECT step, grp, regime, sum(positions) AS positions, sum(loss) AS loss FROM counted GROUP BY ALL),
        totals AS (SELECT step, grp, sum(positions) AS positions, sum(loss) AS loss FROM merged GROUP BY ALL)
        SELECT totals.step, totals.grp AS "group", regimes.regime, regimes.target, regimes.meaning,
               CAST(coalesce(merged.positions, 0) AS BIGINT) AS num_positions,
               CAST(coalesce(merged.positions, 0) / totals.positions AS DOUBLE) AS position_share,
               CAST(coalesce(merged.loss, 0) / nullif(totals.loss, 0) AS DOUBLE) AS loss_share
        FROM totals CROSS JOIN regimes
        LEFT JOIN merged ON merged.step = totals.step AND merged.grp = totals.grp AND merged.regime = regimes.regime
        ORDER BY totals.step, totals.grp, regimes.idx"""
    frame = traces.sql(query, {"bins": bins}).to_pandas()
    return table(frame, COLUMNS, run=run_name(traces), empty=NO_PROBES if probe else NO_TRACES, units=UNITS)


def shares_by(run: str | Path | Traces, split: str) -> Table:
    """Each regime's share of tokens and of loss per token_type, visibility or domain, over all steps.

    Raises: TraceError for an unknown split.
    """
    require_one_of("split", split, SPLITS, TraceError)
    traces = traces_of(run)
    columns = ["group", "regime", "target", "meaning", "num_positions", "position_share", "loss_share"]
    if traces is None:
        return table([], columns, run="", empty=NO_TRACES)
    query = f"""
        WITH merged AS (
            SELECT coalesce(nullif({split}, ''), 'not known') AS grp, regime,
                   sum(num_positions) AS positions, sum(abs_loss) AS loss
            FROM aggregates GROUP BY ALL),
        totals AS (SELECT grp, sum(positions) AS positions, sum(loss) AS loss FROM merged GROUP BY ALL)
        SELECT totals.grp AS "group", regimes.regime, regimes.target, regimes.meaning,
               CAST(coalesce(merged.positions, 0) AS BIGINT) AS num_positions,
               CAST(coalesce(merged.positions, 0) / totals.positions AS DOUBLE) AS position_share,
               CAST(coalesce(merged.loss, 0) / nullif(totals.loss, 0) AS DOUBLE) AS loss_share
        FROM totals CROSS JOIN regimes
        LEFT JOIN merged ON merged.grp = totals.grp AND merged.regime = regimes.regime
        ORDER BY totals.positions DESC, totals.grp, regimes.idx"""
    return table(traces.sql(query).to_pandas(), columns, run=run_name(traces), empty=NO_TRACES, units=UNITS)


def gaps_over_steps(run: str | Path | Traces) -> Table:
    """Per step and visibility: mean signed gaps, mean absolute gaps, and the student's mean entropy and confidence."""
    gaps = ["capability_gap", "information_gap", "abs_capability_gap", "abs_information_gap"]
    columns = ["step", "visibility", "num_positions", *gaps, "entropy", "confidence"]
    traces = traces_of(run)
    if traces is None:
        return table([], columns, run="", empty=NO_TRACES)
    means = ", ".join(f"sum({name}) / sum(num_positions) AS {name}" for name in gaps)
    query = f"""
        SELECT step, coalesce(visibility, 'unmarked') AS visibility,
               CAST(sum(num_positions) AS BIGINT) AS num_positions, {means},
               sum(entropy_student) / sum(num_positions) AS entropy,
               sum(confidence_student) / sum(num_positions) AS confidence
        FROM aggregates GROUP BY ALL ORDER BY step, visibility"""
    units = dict.fromkeys([*gaps, "entropy"], "nats per token") | {
        "confidence": "mean probability of the most likely token"
    }
    return table(traces.sql(query).to_pandas(), columns, run=run_name(traces), empty=NO_TRACES, units=units)
