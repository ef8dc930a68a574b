"""Score the steps of a rollout file into a new run folder."""

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from workbench.config.schema import RunConfig
from workbench.data.rollouts.matching import OwnExamples
from workbench.data.rollouts.reading import RolloutFile, RolloutRow, SkippedRow
from workbench.distill.method import Method
from workbench.distill.usable import Problem, encoding_problem
from workbench.errors import DataError
from workbench.files.folders import saving
from workbench.policies.by_domain import covers
from workbench.runs.fingerprints import require_same_data
from workbench.runs.folder import RunFolder, StopSignal
from workbench.runs.processes import identify
from workbench.training.filter import SkippedExamples
from workbench.training.run import recorded_errors
from workbench.training.scored.given import GivenRollouts
from workbench.training.scored.prompts import PromptComparison
from workbench.training.scored.recorder import RolloutRecorder
from workbench.types import Example, Rollout

SCORED_FILE = "scored.jsonl"  # which row of the file each recorded rollout was
_AGAIN = "`workbench score` and a new --to"
_OUT_OF_MEMORY = (
    "Score with training.micro_batch_size=1, models.dtype=bfloat16 or models.offload_teachers=true, or a file with "
    "fewer answers for each step."
)

log = logging.getLogger("workbench")


@dataclass(frozen=True)
class ScoreResult:
    """Result of scoring: the run folder, how much was scored, and rows that were not by reason."""

    run_dir: Path
    rollouts: int
    steps: int
    first_step: int
    skipped: dict[str, int]
    stopped: bool = False


@dataclass
class SkippedRows:
    """The rows of a file that are not scored, and how many may be."""

    file: RolloutFile
    max_skipped: int
    rows: list[SkippedRow] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = list(self.file.skipped)

    def refuse(self) -> None:
        """Raise DataError if more rows than allowed, or all, cannot be scored."""
        file, count, total = self.file, len(self.rows), self.file.num_rows
        if count <= self.max_skipped and count < total:
            return
        first = {row.reason: row for row in reversed(self.rows)}
        listed = "\n".join(
            f"  {number:,} x {reason}; the first is {first[reason].origin}: {first[reason].message}"
            for reason, number in Counter(row.reason for row in self.rows).most_common()
        )
        remedy = (
            f"Correct them, or leave out up to N rows with --max-skipped N; now N is {self.max_skipped}."
            if count < total
            else "Correct them, or choose another --layout, --column ours=theirs or --data."
        )
        layout = f" (layout {file.layout})" if file.layout else ""
        raise DataError(f"{count:,} of {total:,} rows of {file.source}{layout} cannot be scored:\n{listed}\n{remedy}")


class ScoredSteps:
    """Scores every step of a file.

    policies  by the method's names
    facts     entries of "scored" in run.json
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        policies: dict[str, Any],
        given: GivenRollouts,
        skipped: SkippedRows,
        facts: dict[str, Any],
    ) -> None:
        last = max(1, *given.steps)
        self.config = replace(config, training=replace(config.training, steps=last))
        self.method, self.policies, self.given, self.skipped, self.facts = method, policies, given, skipped, facts
        self.views = [(policies[view.policy], view.context) for view in method.views.values()]
        self.prompts = PromptComparison(method, policies)
        self.num_scored = 0

    def run(self, examples: list[Example], row_examples: OwnExamples | None = None) -> ScoreResult:
        """Create the run folder and score all steps. SIGINT and SIGTERM stop after the current one.

        row_examples  the rows' own examples, which the run folder keeps as a data file
        """
        config = self.config
        facts = {"config": config.to_dict(), "scored": self.facts}
        folder = RunFolder.create(
            config.run_dir, config.to_yaml(), seed=config.seed, method=self.method.name, extra=facts
        )
        with folder.claim():
            handler, outcome = folder.log_to_file(), "failed"
            try:
                with recorded_errors(folder, _AGAIN, _OUT_OF_MEMORY), StopSignal() as stop:
                    folder.update(pid=os.getpid(), process=identify(os.getpid()), steps=config.training.steps)
                    if row_examples is not None:
                        row_examples.write(folder.path)
                    require_same_data(folder, {"data.train": examples}, resume=False)
                    outcome = self._score_steps(folder, stop)
            finally:
                folder.update(status=outcome)
                log.removeHandler(handler)
                handler.close()
        reasons = dict(Counter(row.reason for row in self.skipped.rows))
        steps = self.given.steps
        return ScoreResult(folder.path, self.num_scored, len(steps), min(steps), reasons, outcome == "stopped")

    def _score_steps(self, folder: RunFolder, stop: StopSignal) -> str:
        """Score every step; returns the run's status."""
        tally = SkippedExamples(folder)
        for row in self.skipped.rows:
            tally.add(_stand_in(row), Problem(row.reason, row.message))
        recorder, stopped = RolloutRecorder(self.config, self.method, self.policies, folder), False
        for step in tqdm(self.given.steps, unit="step", dynamic_ncols=True):
            usable = self._usable(step, tally)
            if usable:
                recorder.record(step, [rollout for _, rollout in usable])
                self.num_scored += len(usable)
                _write_rows(folder, step, [row for row, _ in usable])
            if stop.requested and step != max(self.given.steps):
                stopped = True
                break
        recorder.close()
        notes = dict(self.skipped.file.notes + self.given.notes)
        counts = {"rollouts": self.num_scored, "notes": notes, "prompts": dict(self.prompts.counts)}
        warnings = [*(folder.status.get("warnings") or ()), *self.prompts.warnings()]
        folder.update(scored=self.facts | counts, warnings=warnings)
        return "stopped" if stopped else "finished"

    def _usable(self, step: int, tally: SkippedExamples) -> list[tuple[RolloutRow, Rollout]]:
        """The step's rollouts that fit every view. Raises DataError if more than allowed do not."""
        usable = []
        for row, rollout in zip(self.given.rows[step], self.given.steps[step], strict=True):
            problem = self._problem(rollout)
            if problem is None:
                self.prompts.add(row, rollout.example)
                usable.append((row, rollout))
                continue
            skipped = SkippedRow(row.origin, problem.reason, problem.message)
            self.skipped.rows.append(skipped)
            tally.add(_stand_in(skipped), problem)
        self.skipped.refuse()
        return usable

    def _problem(self, rollout: Rollout) -> Problem | None:
        """Why a view cannot score the rollout."""
        domain = rollout.example.domain
        if not all(covers(policy, domain) for policy, _ in self.views):
            remedy = "add models.teachers.DOMAIN, or --teacher for all others"
            return Problem(f'no teacher for domain "{domain}"', remedy)
        return encoding_problem(rollout.example, self.views, completion_length=len(rollout.ids))


def _write_rows(folder: RunFolder, step: int, rows: list[RolloutRow]) -> None:
    """Append which row of the file each rollout of the step was."""
    path = folder.path / SCORED_FILE
    lines = [{"step": step, "rollout": idx, "origin": row.origin} for idx, row in enumerate(rows)]
    with saving(path), path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def _stand_in(row: SkippedRow) -> Example:
    """An example that stands for a row in the tally of skipped ones."""
    return Example(row.origin, "", origin=row.origin)
