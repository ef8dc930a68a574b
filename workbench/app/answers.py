"""What a run's student answered to one question, over training: where it was sampled, and where it was evaluated."""

from dataclasses import dataclass
from pathlib import Path

from workbench.analysis.evals import answers_of
from workbench.analysis.table import Table, table
from workbench.analysis.tokens import answers_over_time
from workbench.evals.records import EvalRecord
from workbench.traces.reader import Traces

COLUMNS = ["step", "where", "answer", "expected", "right", "tokens"]
MOST = 100  # questions that are offered
NONE_YET = (
    "Nothing was answered yet. The first answers are those of the evaluation before step 1, then those of step 1."
)


@dataclass(frozen=True)
class Asked:
    """A question that was answered, and how often; `text` is what was asked, "" in older runs."""

    example: str
    count: int
    text: str = ""

    @property
    def label(self) -> str:
        text = f"  {self.text[:90]}" if self.text else ""
        return f"{self.example}  ·  {self.count} answer{'s' if self.count > 1 else ''}{text}"


def asked_questions(run_dir: Path, traces: Traces | None) -> list[Asked]:
    """Questions that were answered at most steps first: evaluations ask the same ones again, sampling may."""
    counts: dict[str, set[int]] = {}
    texts: dict[str, str] = {}
    for row in _of_student(run_dir):
        counts.setdefault(row.example_id, set()).add(row.step)
        texts[row.example_id] = row.question or texts.get(row.example_id, "")
    if traces is not None:
        query = """SELECT example_id, any_value(question) AS question, count(DISTINCT step) AS steps FROM rollouts
                   GROUP BY 1 ORDER BY steps DESC, 1 LIMIT $most"""
        for row in traces.sql(query, {"most": MOST}).to_pylist():
            counts.setdefault(row["example_id"], set()).update(range(-row["steps"], 0))
            texts[row["example_id"]] = row["question"] or ""
    found = [Asked(example, len(steps), texts.get(example, "")) for example, steps in counts.items()]
    return sorted(found, key=lambda asked: (-asked.count, asked.example))[:MOST]


def answers_to(run_dir: Path, traces: Traces | None, example: str) -> Table:
    """Every answer to a question by step; `where` says how it was asked."""
    rows = [
        {
            "step": row.step,
            "where": f"evaluation, {row.context}",
            "answer": row.text,
            "expected": row.answer,
            "right": None if row.reward is None else row.reward == 1.0,
            "tokens": row.length,
        }
        for row in _of_student(run_dir)
        if row.example_id == example
    ]
    if traces is not None:
        sampled = answers_over_time(traces, example).rows
        rows += [{**{name: row.get(name) for name in COLUMNS}, "where": "training, sampled"} for row in sampled]
    rows.sort(key=lambda row: (row["step"], row["where"]))
    return table(rows, COLUMNS, run=run_dir.name, empty=NONE_YET, units={"tokens": "tokens"})


def _of_student(run_dir: Path) -> list[EvalRecord]:
    return [row for row in answers_of(run_dir) if row.policy == "student"]
