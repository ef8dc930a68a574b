"""The student's answers to one question over training: sampled for training, and evaluated."""

from dataclasses import dataclass
from pathlib import Path

from workbench.analysis.evals import answers_of
from workbench.analysis.table import Table, table
from workbench.analysis.tokens import answers_over_time
from workbench.evals.records import EvalRecord
from workbench.traces.reader import Traces

COLUMNS = ["step", "from", "answer", "expected", "right", "tokens"]
MAX_QUESTIONS = 100  # listed on the page
NONE_YET = "No answers yet. The evaluation before step 1 records the first ones; step 1 records the next."


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question and the number of steps at which it was answered; `text` is the question, "" in older runs."""

    example: str
    count: int
    text: str = ""

    @property
    def label(self) -> str:
        text = f"  {self.text[:90]}" if self.text else ""
        return f"{self.example}  ·  {self.count} answer{'s' if self.count > 1 else ''}{text}"


def answered_questions(run_dir: Path, traces: Traces | None) -> list[AnsweredQuestion]:
    """Questions, those answered at the most steps first; evaluations repeat their questions at every step."""
    counts: dict[str, set[int]] = {}
    texts: dict[str, str] = {}
    for row in _of_student(run_dir):
        counts.setdefault(row.example_id, set()).add(row.step)
        texts[row.example_id] = row.question or texts.get(row.example_id, "")
    if traces is not None:
        query = """SELECT example_id, any_value(question) AS question, count(DISTINCT step) AS steps FROM rollouts
                   GROUP BY 1 ORDER BY steps DESC, 1 LIMIT $most"""
        for row in traces.sql(query, {"most": MAX_QUESTIONS}).to_pylist():
            counts.setdefault(row["example_id"], set()).update(range(-row["steps"], 0))
            texts[row["example_id"]] = row["question"] or ""
    questions = [AnsweredQuestion(example, len(steps), texts.get(example, "")) for example, steps in counts.items()]
    return sorted(questions, key=lambda question: (-question.count, question.example))[:MAX_QUESTIONS]


def answers_to(run_dir: Path, traces: Traces | None, example: str) -> Table:
    """Every answer to a question by step; `from` is training or an evaluation with its context."""
    rows = [
        {
            "step": row.step,
            "from": f"evaluation, {row.context}",
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
        rows += [{**{name: row.get(name) for name in COLUMNS}, "from": "training, sampled"} for row in sampled]
    rows.sort(key=lambda row: (row["step"], row["from"]))
    return table(rows, COLUMNS, run=run_dir.name, empty=NONE_YET, units={"tokens": "tokens"})


def _of_student(run_dir: Path) -> list[EvalRecord]:
    return [row for row in answers_of(run_dir) if row.policy == "student"]
