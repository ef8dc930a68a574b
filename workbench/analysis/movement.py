"""Regime changes over training, measured on probes: fixed answers that are scored again every few steps.

Rollouts differ from step to step, so their tokens cannot be followed. A probe's tokens stay the same.
"""

from dataclasses import dataclass
from pathlib import Path

from workbench.analysis.table import NO_PROBES, Table, run_name, table, traces_of
from workbench.errors import TraceError, require_one_of
from workbench.render.from_trace import regime_note
from workbench.render.view import RegimeNote
from workbench.traces.reader import Traces

_KEY = "step, process_rank, rollout_idx"
VALUES = ("regime", "capability_gap", "information_gap", "loss", "entropy_student")
UNMOVED = (
    "No probe token changed its regime. Where a rule compares frozen policies only, as DOPD does with a frozen teacher "
    "and self_policy=student@start, regimes stay: color by a gap to see what moved."
)


@dataclass(frozen=True)
class Movement:
    """One probe over training, for render_movement: a row per step, a column per token."""

    steps: list[int]
    tokens: list[str]
    regimes: list[list[str | None]]
    notes: dict[str, RegimeNote]
    title: str = ""
    empty: str = ""


def probes(run: str | Path | Traces) -> Table:
    """The probes, with the number of regime changes of their tokens."""
    columns = ["rollout", "process", "example", "domain", "question", "answer", "right", "tokens", "changes"]
    traces = traces_of(run)
    if traces is None:
        return table([], columns, run="", empty=NO_PROBES)
    query = """
        WITH changes AS (
            SELECT process_rank, rollout_idx, sum(CAST(changed AS INT)) AS changes FROM (
                SELECT process_rank, rollout_idx, regime <> lag(regime) OVER (
                    PARTITION BY process_rank, rollout_idx, position ORDER BY step) AS changed
                FROM probe_tokens) GROUP BY ALL),
        first AS (
            SELECT * FROM probe_rollouts WHERE step = (SELECT min(step) FROM probe_rollouts))
        SELECT rollout_idx AS rollout, process_rank AS process, example_id AS example, domain, question,
               completion AS answer, reward = 1 AS "right", num_positions AS tokens,
               CAST(coalesce(changes, 0) AS BIGINT) AS changes
        FROM first LEFT JOIN changes USING (process_rank, rollout_idx) ORDER BY process_rank, rollout_idx"""
    return table(
        traces.sql(query).to_pandas(), columns, run=run_name(traces), empty=NO_PROBES, units={"tokens": "tokens"}
    )


def of_probe(run: str | Path | Traces, rollout: int, *, process: int = 0) -> Movement:
    """One probe: the regime of each token at each step."""
    traces = traces_of(run)
    if traces is None:
        return Movement([], [], [], {}, empty=NO_PROBES)
    values = values_of_probe(traces, rollout, process=process)
    if values.empty:
        return Movement([], [], [], regime_notes(traces), empty=values.empty)
    frame = values.frame
    tokens = frame.drop_duplicates("position").sort_values("position")["token"].tolist()
    wide = frame.pivot(index="step", columns="position", values="value")
    wide = wide.astype(object).where(wide.notna(), None)
    title = f"{values.run} · probe {rollout} · {frame['example'].iloc[0]}"
    return Movement([int(step) for step in wide.index], tokens, wide.to_numpy().tolist(), regime_notes(traces), title)


def values_of_probe(run: str | Path | Traces, rollout: int, *, value: str = "regime", process: int = 0) -> Table:
    """One probe in long form: step, position, token, token_type, visibility, and a value of each token at each step.

    Raises: TraceError for an unknown value.
    """
    require_one_of("value", value, VALUES, TraceError)
    columns = ["step", "position", "token", "token_type", "visibility", "example", "value"]
    traces = traces_of(run)
    if traces is None:
        return table([], columns, run="", empty=NO_PROBES)
    query = f"""
        SELECT p.step, p.position, p.token_text AS token, p.token_type, p.visibility,
               r.example_id AS example, p.{value} AS value
        FROM probe_tokens AS p JOIN probe_rollouts AS r USING ({_KEY})
        WHERE p.rollout_idx = $rollout AND p.process_rank = $process ORDER BY p.step, p.position"""
    frame = traces.sql(query, {"rollout": rollout, "process": process}).to_pandas()
    has_probes = traces.steps("probe_rollouts")
    empty = f"Probe {rollout} does not exist. Choose one from the list of probes." if has_probes else NO_PROBES
    units = {"value": "" if value == "regime" else "nats"}
    return table(frame, columns, run=run_name(traces), empty=empty, units=units)


def transitions(
    run: str | Path | Traces, first: int | None = None, last: int | None = None, *, visibility: str | None = None
) -> Table:
    """Numbers of probe tokens by regime at step `first` and at step `last`; default: the first and last probed step.

    Raises: TraceError if a step was not probed.
    """
    columns = ["first_step", "last_step", "source", "target", "num_positions", "share", "examples"]
    traces = traces_of(run)
    steps = [] if traces is None else traces.steps("probe_rollouts")
    if not steps:
        return table([], columns, run="", empty=NO_PROBES)
    first, last = steps[0] if first is None else first, steps[-1] if last is None else last
    for step in (first, last):
        if step not in steps:
            raise TraceError(f"step {step} was not probed. Choose one of: {', '.join(map(str, steps))}.")
    query = """
        SELECT CAST($first AS INT) AS first_step, CAST($last AS INT) AS last_step, a.regime AS source,
               b.regime AS target, count(*) AS num_positions, count(*) / sum(count(*)) OVER () AS share,
               string_agg(a.token_text, ' ' ORDER BY abs(b.loss) DESC) AS examples
        FROM probe_tokens AS a
        JOIN probe_tokens AS b USING (process_rank, rollout_idx, position)
        LEFT JOIN regimes AS x ON x.regime = a.regime LEFT JOIN regimes AS y ON y.regime = b.regime
        WHERE a.step = $first AND b.step = $last AND ($visibility IS NULL OR a.visibility = $visibility)
        GROUP BY a.regime, b.regime, x.idx, y.idx ORDER BY x.idx, y.idx"""
    frame = traces.sql(query, {"first": first, "last": last, "visibility": visibility}).to_pandas()
    frame["examples"] = frame["examples"].str.slice(0, 80) if len(frame) else frame["examples"]
    empty = (
        f"No probe token is {visibility}. Choose all tokens."
        if visibility
        else "The probes of these steps have no common tokens."
    )
    units = {"num_positions": "tokens", "share": "share of tokens"}
    return table(frame, columns, run=run_name(traces), empty=empty, units=units)


def most_moved(run: str | Path | Traces, *, limit: int = 50) -> Table:
    """Probe tokens with the most regime changes.

    Each has the path of its regimes (column `way`), and the last step whose answer has it (`last_step`).
    """
    columns = ["rollout", "process", "position", "token", "token_type", "visibility", "example", "changes", "way"]
    columns += ["information_gap", "last_step"]
    traces = traces_of(run)
    if traces is None:
        return table([], columns, run="", empty=NO_PROBES)
    query = f"""
        WITH moved AS (
            SELECT *, coalesce(regime <> lag(regime) OVER (
                PARTITION BY process_rank, rollout_idx, position ORDER BY step), true) AS changed
            FROM probe_tokens)
        SELECT m.rollout_idx AS rollout, m.process_rank AS process, m.position, any_value(m.token_text) AS token,
               any_value(m.token_type) AS token_type, any_value(m.visibility) AS visibility,
               any_value(r.example_id) AS example,
               CAST(sum(CAST(changed AS INT)) - 1 AS BIGINT) AS changes,
               string_agg(m.regime, ' → ' ORDER BY m.step) FILTER (changed) AS way,
               avg(information_gap) AS information_gap, max(m.step) AS last_step
        FROM moved AS m JOIN probe_rollouts AS r USING ({_KEY})
        GROUP BY m.process_rank, m.rollout_idx, m.position
        HAVING changes > 0 ORDER BY changes DESC, process, rollout, position LIMIT $limit"""
    frame = traces.sql(query, {"limit": limit}).to_pandas()
    empty = UNMOVED if traces.steps("probe_rollouts") else NO_PROBES
    units = {"information_gap": "nats, mean over steps"}
    return table(frame, columns, run=run_name(traces), empty=empty, units=units)


def regime_notes(run: str | Path | Traces) -> dict[str, RegimeNote]:
    """The method's regimes in order, for colors and legends; empty without traces."""
    traces = traces_of(run)
    if traces is None:
        return {}
    return {name: regime_note(regime) for name, regime in traces.regimes.items()}
