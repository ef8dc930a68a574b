"""List, filter and quote the answers of a run from a script; the command line and the app's JSON use the same.

    answers = open_answers("runs/demo")
    for answer in answers.select("token.regime=HS grade=incorrect", limit=5):
        print(answer["address"], answer["answer"])
    answer = answers.get(step=30, rollout=4)
    answer["tokens"][17]["information_gap"]
    print(answers.quote(step=30, rollout=4, token=17))

An answer is a mapping of plain values, ready for JSON. Log-probs, gaps, entropies and losses are in nats.
"""

import json
import math
from pathlib import Path
from typing import Any

from workbench.analysis import tokens
from workbench.analysis.addresses import DEFAULT_BASE, AnswerAddress, name_in
from workbench.analysis.eval_answers import EvaluationAnswers
from workbench.analysis.quotes import CheckedQuote, check_quotes, quote_answer, quote_tokens
from workbench.analysis.table import NO_TRACES
from workbench.errors import DataError, TraceError
from workbench.files.folders import reason
from workbench.runs.folder import find_run_dir
from workbench.traces.reader import NoTraces, TracedRollout, Traces, open_traces
from workbench.traces.selection import ALL_ANSWERS, Selection, parse_selection

MAX_LISTED = 500  # answers of one call
_KEY_COLUMNS = ("step", "process_rank", "rollout_idx", "learner")
_FACTS = {  # name -> column of the table rollouts
    "example": "example_id",
    "sample": "sample_idx",
    "domain": "domain",
    "question": "question",
    "answer": "completion",
    "expected": "answer",
    "sampled_by": "sampled_by",
    "finished": "finished",
    "length": "num_positions",
}
_EVALUATED = {name: name for name in ("policy", "context", "visibility", "dataset", "confidence", "entropy", "reward")}
_MEANS = ("capability_gap", "information_gap", "loss")


def open_answers(run_dir: str | Path, *, runs_dir: str | Path = "runs", base: str = DEFAULT_BASE) -> "Answers":
    """Open the recorded answers of a run.

    runs_dir  folder that the app shows; a run in it is named in addresses as on the page
    base      address of the app

    A run without traces has the answers of its evaluations alone.

    Raises: RunError if the folder does not exist; TraceError if it holds no answers or a file is damaged.
    """
    name, _ = name_in(run_dir, runs_dir)
    try:
        traces = open_traces(run_dir)
    except NoTraces:
        if not EvaluationAnswers(Path(run_dir)).choices()["step"]:
            raise
        return Answers(Path(run_dir), None, name, base)
    return Answers(traces.folder.parent, traces, name, base)


def check_document(file: str | Path, *, runs_dir: str | Path = "runs") -> list[CheckedQuote]:
    """Check the quotes of a Markdown file against the runs that its addresses name.

    Raises: DataError if the file cannot be read.
    """
    try:
        document = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({reason(error)}). Give a Markdown file in UTF-8.") from None
    opened: dict[str, Answers] = {}

    def rollout_at(address: AnswerAddress) -> TracedRollout:
        if address.run not in opened:
            run_dir = find_run_dir(runs_dir, address.run)
            opened[address.run] = Answers(run_dir, open_traces(run_dir), address.run)
        return opened[address.run].traced(address)

    return check_quotes(document, rollout_at)


class Answers:
    """Answers of one run. Each call sees the steps that are complete now, also while the run trains.

    traces  None for a run without them, which has evaluations alone
    run     the run's name in addresses
    base    address of the app
    """

    def __init__(self, run_dir: Path, traces: Traces | None, run: str, base: str = DEFAULT_BASE) -> None:
        self.evaluation = EvaluationAnswers(run_dir)
        self._traces, self.run, self.base = traces, run, base

    @property
    def traces(self) -> Traces:
        """Training answers and probes. Raises NoTraces if none are recorded."""
        if self._traces is None:
            raise NoTraces(f"run {self.run}: {NO_TRACES}")
        return self._traces

    def count(self, selection: Selection | str = ALL_ANSWERS) -> int:
        """Number of answers that match. Raises TraceError, as parse_selection."""
        selection = _selection(selection)
        if selection.source == "evaluation":
            return self.evaluation.count(selection)
        return tokens.count(self.traces, selection)

    def select(
        self, selection: Selection | str = ALL_ANSWERS, *, limit: int = 20, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Answers that match, in the selection's order, without their tokens.

        selection      also as text: workbench.traces.selection has the grammar
        limit, offset  number of answers, and how many to skip before them

        Raises: TraceError for a wrong selection, or a limit outside 1 to MAX_LISTED.
        """
        if not 1 <= limit <= MAX_LISTED:
            raise TraceError(f"limit is {limit}. Expected 1 to {MAX_LISTED}; read further answers with offset.")
        if offset < 0:
            raise TraceError(f"offset is {offset}. Expected 0 or more.")
        selection = _selection(selection)
        if selection.source == "evaluation":
            return [self._evaluated(row) for row in self.evaluation.rows(selection, limit=limit, offset=offset)]
        probe = selection.source == "probes"
        rows = self.traces.rollouts(selection, limit=limit, offset=offset).to_pylist()
        return [self._listed(row, probe) for row in rows]

    def get(
        self, step: int, rollout: int, *, process: int = 0, probe: bool = False, token: int | None = None
    ) -> dict[str, Any]:
        """One answer with `tokens`: the columns of the table `tokens` in docs/traces.md, without the answer's key.

        token  index of a token that `address` shall name

        Raises: TraceError with the recorded steps, rollouts or tokens if this one is not among them.
        """
        address = AnswerAddress(self.run, step, rollout, process, probe, token)
        traced = self.traced(address)
        row = traced.row
        means = {name: row[f"mean_{name}"] for name in _MEANS}
        counts = {name: dict(row["regime_counts"] or ()).get(name, 0) for name in traced.regimes}
        views = {
            name: {"policy": view.policy, "context": view.context, "prompt": row.get(f"prompt_{name}")}
            for name, view in traced.views.items()
        }
        return plain_values(
            {
                **self._facts(row, address),
                **means,
                "regimes": counts,
                "views": views,
                "meaning": {name: regime.meaning for name, regime in traced.regimes.items()},
                "tokens": [_token(position) for position in traced.tokens],
            }
        )

    def evaluated(self, step: int, rollout: int) -> dict[str, Any]:
        """One answer of an evaluation, which records no tokens; `rollout` is its index among those of the step.

        Raises: TraceError with the evaluated steps, or the indices, if this one is not among them.
        """
        return self._evaluated(self.evaluation.get(step, rollout))

    def at(self, address: AnswerAddress) -> dict[str, Any]:
        """The answer at an address: `evaluated` or `get`."""
        if address.evaluation:
            return self.evaluated(address.step, address.rollout)
        key = {name: getattr(address, name) for name in ("process", "probe", "token")}
        return self.get(address.step, address.rollout, **key)

    def traced(self, address: AnswerAddress) -> TracedRollout:
        """The recorded rollout at an address. Raises TraceError if it, or its token, was not recorded."""
        traced = self.traces.rollout(address.step, address.rollout, process_rank=address.process, probe=address.probe)
        if address.token is not None and address.token >= len(traced.tokens):
            whole, last = address.at(None), len(traced.tokens) - 1
            raise TraceError(f"{whole} has no token {address.token}. Its tokens are 0 to {last}. Choose one of them.")
        return traced

    def quote(
        self,
        step: int,
        rollout: int,
        *,
        process: int = 0,
        probe: bool = False,
        token: int | None = None,
        last: int | None = None,
    ) -> str:
        """Markdown that quotes an answer, or its tokens from `token` to `last`, with its address.

        `workbench quote-check` checks such quotes against the trace.
        """
        address = AnswerAddress(self.run, step, rollout, process, probe, token)
        traced = self.traced(address)
        if token is None:
            return quote_answer(traced, address, self.base)
        return quote_tokens(traced, address, token if last is None else last, self.base)

    def _evaluated(self, row: dict) -> dict[str, Any]:
        address = AnswerAddress(self.run, row["step"], row["rollout_idx"], evaluation=True)
        facts = {name: row[column] for name, column in {**_FACTS, **_EVALUATED}.items() if column in row}
        right = None if row["reward"] is None else row["reward"] == 1.0
        key = {"run": self.run, "step": row["step"], "rollout": row["rollout_idx"], "evaluation": True}
        return plain_values({"address": address.url(self.base), **key, **facts, "right": right})

    def _listed(self, row: dict, probe: bool) -> dict[str, Any]:
        address = AnswerAddress(self.run, row["step"], row["rollout_idx"], row["process_rank"], probe)
        counts = dict(row["regimes"] or ())
        means = {name: row[name] for name in _MEANS}
        return plain_values({**self._facts(row, address), **means, "regimes": counts})

    def _facts(self, row: dict, address: AnswerAddress) -> dict[str, Any]:
        reward = row["reward"]
        key = {name: getattr(address, name) for name in ("run", "step", "rollout", "process", "probe")}
        facts = {name: row[column] for name, column in _FACTS.items()}
        right = None if reward is None else reward == 1.0
        return {"address": address.url(self.base), **key, **facts, "right": right, "reward": reward}


def _selection(selection: Selection | str) -> Selection:
    """The selection, read if it is text."""
    return parse_selection(selection) if isinstance(selection, str) else selection


def _token(position: dict) -> dict[str, Any]:
    return {name: value for name, value in position.items() if name not in _KEY_COLUMNS}


def plain_values(value: Any) -> Any:
    """The value for JSON: a number that is not finite becomes "NaN", "inf" or "-inf", a map's pairs a mapping."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def answers_as_json(answers: Answers, selection: Selection, limit: int) -> tuple[list[str], int]:
    """At most `limit` answers of a selection as lines of JSON, and how many there are."""
    rows: list[dict] = []
    while len(rows) < limit:
        page = answers.select(selection, limit=min(MAX_LISTED, limit - len(rows)), offset=len(rows))
        rows += page
        if len(page) < MAX_LISTED:
            break
    total = len(rows) if len(rows) < limit else answers.count(selection)
    return [json.dumps(row, ensure_ascii=False) for row in rows], total
