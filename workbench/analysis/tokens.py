"""Answers: pages of a selection, and one answer as a TokenView."""

from pathlib import Path

from workbench.analysis.table import NO_PROBES, NO_TRACES, Table, run_name, table, traces_of
from workbench.render.from_trace import token_view
from workbench.render.view import TokenView
from workbench.traces.reader import Key, Traces
from workbench.traces.schema import PREVIEW_LENGTH
from workbench.traces.selection import ALL_ANSWERS, Selection

_GAPS = ("capability_gap", "information_gap", "loss")
PAGE_COLUMNS = ["step", "rollout", "process", "example", "domain", "question", "answer", "expected", "right", "tokens"]
PAGE_COLUMNS += [*_GAPS, "regimes"]
PAGE_UNITS = {"tokens": "tokens"} | dict.fromkeys(_GAPS, "nats per token")
NO_ANSWERS = (
    "No training answer is recorded yet; step 1 records the first ones. Probes may already be recorded: tick probes."
)
_CHOSEN = ("domain", "token_type", "visibility")


def page(run: str | Path | Traces, selection: Selection = ALL_ANSWERS, *, page_idx: int = 0, size: int = 25) -> Table:
    """A page of answers with their mean gaps, loss and regime counts.

    Raises: TraceError for a condition on a regime or view that the run lacks.
    """
    traces = traces_of(run)
    if traces is None:
        return table([], PAGE_COLUMNS, run="", empty=NO_TRACES)
    of_probes = selection.source == "probes"
    page_rows, regimes = traces.cached(_read_page, selection, page_idx, size), tuple(traces.regimes)
    rows = [
        {
            "step": row["step"],
            "rollout": row["rollout_idx"],
            "process": row["process_rank"],
            "example": row["example_id"],
            "domain": row["domain"],
            "question": row["question"],
            "answer": _preview(row["completion"]),
            "expected": row["answer"],
            "right": None if row["reward"] is None else row["reward"] == 1.0,
            "tokens": row["num_positions"],
            **{name: row[name] for name in _GAPS},
            "regimes": ", ".join(f"{name} {counts[name]}" for name in regimes if name in counts),
        }
        for row, counts in ((row, dict(row["regimes"] or ())) for row in page_rows)
    ]
    empty = "No answer matches these filters. Remove a filter, or choose another step."
    if not rows and not traces.steps("probe_rollouts" if of_probes else "rollouts"):
        empty = NO_PROBES if of_probes else NO_ANSWERS
    return table(rows, PAGE_COLUMNS, run=run_name(traces), empty=empty, units=PAGE_UNITS)


def keys(
    run: str | Path | Traces, selection: Selection = ALL_ANSWERS, *, page_idx: int = 0, size: int = 25
) -> tuple[list[Key], int]:
    """Keys of a page's answers, (step, process, rollout) each, and the total number of answers on all pages."""
    traces = traces_of(run)
    if traces is None:
        return [], 0
    return traces.cached(_read_keys, selection, page_idx, size)


def _read_keys(traces: Traces, selection: Selection, page_idx: int, size: int) -> tuple[list[Key], int]:
    return traces.rollout_keys(selection, limit=size, offset=max(0, page_idx) * size)


def _read_page(traces: Traces, selection: Selection, page_idx: int, size: int) -> list[dict]:
    chosen, _ = keys(traces, selection, page_idx=page_idx, size=size)
    return traces.rollouts_at(chosen, probe=selection.source == "probes", brief=True).to_pylist()


def _preview(text: str) -> str:
    return text if len(text) < PREVIEW_LENGTH else f"{text[: PREVIEW_LENGTH - 1]}…"


def count(run: str | Path | Traces, selection: Selection = ALL_ANSWERS) -> int:
    """Number of answers in a selection."""
    return keys(run, selection)[1]


def choices(run: str | Path | Traces) -> dict[str, list]:
    """Recorded values of each filter."""
    traces = traces_of(run)
    if traces is None:
        return {name: [] for name in ("step", "regime", *_CHOSEN)}
    return {**traces.cached(_read_choices)}


def _read_choices(traces: Traces) -> dict[str, list]:
    aggregates = traces.sql(f"SELECT DISTINCT {', '.join(_CHOSEN)} FROM aggregates").to_pydict()
    values = {name: sorted(filter(None, set(aggregates[name]))) for name in _CHOSEN}
    return {"step": traces.steps(), "regime": list(traces.regimes), **values}


def answer(
    run: str | Path | Traces, step: int, rollout: int, *, process: int = 0, probe: bool = False, name: str = ""
) -> TokenView:
    """One answer, ready for render_tokens. Raises TraceError if it was not recorded."""
    # a folder without traces raises the error here
    traces = run if isinstance(run, Traces) else traces_of(run) or Traces(Path(run) / "traces")
    return token_view(traces.rollout(step, rollout, process_rank=process, probe=probe), run=name or run_name(traces))


def answers_over_time(run: str | Path | Traces, example: str) -> Table:
    """Answers to one example, step by step."""
    return page(run, Selection.of(example=example), size=500)
