"""Record the rollouts of TRL's GRPO, RLOO, distillation and GKD trainers while they train.

    trainer = trl.DistillationTrainer(model=student, teacher_model=teacher, ...)
    record_rollouts(trainer, "runs/from-trl", method="dopd", privilege="crop", data="examples.jsonl")
    trainer.train()

Every `every` steps the answers that the trainer has just sampled are scored under the method's views, by its live
student and its teacher (or one that is loaded), are routed, and are written as a step of a run folder: who would
supervise each token. Training itself does not change: scoring has no gradient, and torch's random numbers are restored.

It reads what `_generate_and_score_completions` of the trainer returns (`generate_on_policy_outputs` of GKD), which TRL
does not promise to keep. Tested with TRL 1.16.0.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from workbench.config.schema import RunConfig
from workbench.data.conversations import Refused
from workbench.data.examples import load_examples
from workbench.data.rollouts.matching import ExampleIndex, NoExample
from workbench.data.rollouts.reading import RolloutRow
from workbench.distill.usable import Problem, encoding_problem, lacking
from workbench.errors import DataError, WorkbenchError
from workbench.files.folders import saving
from workbench.runs.folder import RunFolder
from workbench.runs.processes import identify
from workbench.training.filter import SkippedExamples
from workbench.training.integrations.trl_models import (
    GKD_HOOK,
    HOOK,
    TEACHER,
    check_trainer,
    dtype_of,
    evaluating,
    live_policies,
    name_of,
    unwrapped,
)
from workbench.training.integrations.trl_rows import DatasetGeneration, TokenGeneration, to_line
from workbench.training.scored.given import answer_of
from workbench.training.scored.prompts import PromptComparison
from workbench.training.scored.recorder import RolloutRecorder
from workbench.training.scored.score import grade_of, scoring_config, scoring_method
from workbench.types import STUDENT, Example, Rollout

ROLLOUTS_FILE = "rollouts.jsonl"  # the recorded answers in the layout plain, for `workbench score`
OWN_ROWS = "rows-of-the-trainer"  # data.train of a run whose examples are the rows of the trainer's dataset
Generation = DatasetGeneration | TokenGeneration
log = logging.getLogger("workbench")


def record_rollouts(
    trainer: Any,
    to: str | Path,
    *,
    method: str | None = None,
    privilege: str | None = None,
    teacher: str | None = None,
    data: str | None = None,
    every: int | None = None,
    overrides: Sequence[str] = (),
) -> "RolloutCallback":
    """Add a callback to a TRL trainer that records its rollouts in a new run folder.

    trainer    GRPOTrainer, RLOOTrainer, DistillationTrainer or GKDTrainer of TRL
    method     method that routes the tokens; None = opd with a teacher, else grpo
    teacher    model folder or hub name; None = the trainer's own teacher_model, if it has one
    data       examples with evidence, matched as in docs/rollouts.md; None = the rows of the trainer's dataset hold it
    every      steps between records; None = the trainer's logging_steps
    overrides  key=value of the run's configuration

    Raises: ConfigError for a trainer or a method that cannot be recorded.
    """
    own_teacher = getattr(trainer, "teacher_model", None)
    named = teacher or (None if own_teacher is None else name_of(own_teacher))
    config = scoring_config(
        to,
        student=name_of(trainer.model),
        teacher=named,
        method=method or ("grpo" if named is None else "opd"),
        privilege=privilege,
        data=data or OWN_ROWS,
        overrides=[f"models.dtype={dtype_of(trainer.model)}", *overrides],
    )
    check_trainer(trainer, config.load_method())
    callback = RolloutCallback(trainer, config, teacher, data, every or max(1, int(trainer.args.logging_steps)))
    trainer.add_callback(callback)
    return callback


class RolloutCallback(TrainerCallback):
    """Records the rollouts of a trainer; made by record_rollouts.

    num_recorded  rollouts in the run folder
    skipped       those that could not be scored, by reason
    seconds       spent on recording
    """

    def __init__(self, trainer: Any, config: RunConfig, teacher: str | None, data: str | None, every: int) -> None:
        self.trainer, self.config, self.every = trainer, config, every
        self.method = scoring_method(config)
        self.num_recorded, self.seconds = 0, 0.0
        self.skipped: Counter[str] = Counter()
        self._teacher, self._data = teacher, data
        self._index = None if data is None else ExampleIndex(load_examples(data))
        self._matched_by: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._next = every
        self._claim = contextlib.ExitStack()
        self._recorder: RolloutRecorder | None = None  # while training, on the first process
        name = HOOK if hasattr(trainer, HOOK) else GKD_HOOK
        self._original = getattr(trainer, name)
        setattr(trainer, name, self._generate if name == HOOK else self._generate_tokens)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Create the run folder and prove the policies, on the first process."""
        if not state.is_world_process_zero:
            return
        started, method = time.perf_counter(), self.method
        config = replace(self.config, training=replace(self.config.training, steps=state.max_steps))
        facts = {"config": config.to_dict(), "scored": self._facts(), "steps": state.max_steps}
        folder = RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=method.name, extra=facts)
        self._claim.enter_context(folder.claim())
        folder.update(pid=os.getpid(), process=identify(os.getpid()))
        self._policies = live_policies(self.trainer, method, self._teacher)
        self._views = [(self._policies[view.policy], view.context) for view in method.views.values()]
        self._tally, self._prompts = SkippedExamples(folder), PromptComparison(method, self._policies)
        self._recorder = RolloutRecorder(config, method, self._policies, folder)
        self.seconds += time.perf_counter() - started

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Merge the traces and close the run folder."""
        if self._recorder is None:
            return
        self._recorder.close()
        folder, self._recorder = self._recorder.folder, None
        warnings = [*(folder.status.get("warnings") or ()), *self._prompts.warnings()]
        facts = self._facts() | {"prompts": dict(self._prompts.counts)}
        folder.update(status="finished", scored=facts, warnings=warnings)
        self._claim.close()

    def _facts(self) -> dict[str, Any]:
        """Entries of "scored" in run.json."""
        version = importlib.metadata.version("trl")
        return {
            "file": f"{type(self.trainer).__name__} of TRL {version}, every {self.every} steps",
            "layout": "live",
            "rows": self.num_recorded + self.skipped.total(),
            "rollouts": self.num_recorded,
            "data": self._data,
            "matched_by": dict(self._matched_by),
            "rewards": "the trainer's where it has one function that gives 0 or 1, else the workbench's grades",
            "notes": dict(self._notes),
            "seconds": self.seconds,
        }

    def _generate(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What the trainer's method does, and a record if the step is due."""
        output = self._original(inputs)
        if self.trainer.model.training:
            self._record_if_due(DatasetGeneration(self.trainer, inputs, output))
        return output

    def _generate_tokens(self, model: Any, inputs: dict[str, Any], generation_config: Any) -> tuple[Any, ...]:
        """As _generate, for GKD, whose teacher may answer too."""
        tokens, mask, labels = self._original(model, inputs, generation_config)
        by_student = unwrapped(self.trainer, model) is unwrapped(self.trainer, self.trainer.model)
        sampled_by, tokenizer = STUDENT if by_student else TEACHER, self.trainer.processing_class
        self._record_if_due(TokenGeneration(tokenizer, inputs, tokens, labels, sampled_by))
        return tokens, mask, labels

    def _record_if_due(self, generation: Generation) -> None:
        """Record the first generation of a step that is due."""
        step = self.trainer.state.global_step + 1
        if self._recorder is not None and step >= self._next:
            started, self._next = time.perf_counter(), step + self.every
            with torch.no_grad(), evaluating(policy.model for policy in self._policies.values()):
                self._record(generation, step)
            self.seconds += time.perf_counter() - started

    def _record(self, generation: Generation, step: int) -> None:
        """Score the answers and write them; an error of the workbench does not end the training."""
        assert self._recorder is not None
        try:
            rollouts = self._rollouts(generation, step)
            if rollouts:
                self._recorder.record(step, rollouts)
                self.num_recorded += len(rollouts)
                path = self._recorder.folder.path / ROLLOUTS_FILE
                with saving(path), path.open("a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(to_line(rollout, step)) + "\n" for rollout in rollouts)
        except WorkbenchError as error:
            log.warning("step %d was not recorded: %s", step, error)
            self._notes[f"step not recorded: {type(error).__name__}"] += 1

    def _rollouts(self, generation: Generation, step: int) -> list[Rollout]:
        """The rollouts that every view can score, answers to one example together; the others are counted."""
        groups: dict[str, list[Rollout]] = {}
        examples: dict[str, Example] = {}  # of this step, so that answers to one prompt share one
        for idx in range(len(generation)):
            origin = f"step {step}, row {idx}"
            try:
                row = generation.row(idx, origin)
                rollout = self._rollout(row, self._example(generation, idx, row, examples))
            except Refused as refused:
                rollout = Problem(refused.reason, refused.detail or refused.reason)
            except NoExample as problem:
                rollout = Problem(problem.reason, str(problem))
            except DataError as error:
                rollout = Problem("the row's example cannot be read", str(error))
            if isinstance(rollout, Problem):
                self.skipped[rollout.reason] += 1
                self._tally.add(Example(origin, "", origin=origin), rollout)
            else:
                group = groups.setdefault(rollout.example.id, [])
                group.append(replace(rollout, sample_idx=len(group)))
        return [rollout for group in groups.values() for rollout in group]

    def _example(self, generation: Generation, idx: int, row: RolloutRow, examples: dict[str, Example]) -> Example:
        if self._index is not None:
            example, matched_by = self._index.find(row)
        else:
            matched_by, key = "row", generation.key(idx, row)
            example = examples.get(key) or generation.example(idx, row)
            examples[key] = example
        self._matched_by[matched_by] += 1
        return example

    def _rollout(self, row: RolloutRow, example: Example) -> Rollout | Problem:
        """The rollout of a row, or why a view cannot score it."""
        student = self._policies[STUDENT]
        answer = answer_of(student, row, ended=False, notes=self._notes)
        if isinstance(answer, Problem):
            return answer
        length = len(answer.ids)
        problem = lacking(example, self.method) or encoding_problem(example, self._views, completion_length=length)
        if problem is not None:
            return problem
        self._prompts.add(row, example)
        text, prefix = student.text(answer.ids), student.answer_prefix
        return Rollout(
            example,
            0,
            answer.ids,
            text,
            answer.finished,
            answer.logprobs,
            grade_of(self.config, example, text, prefix) if row.reward is None else row.reward,
            row.sampled_by or STUDENT,
            annotations=row.annotations,
            answer_prefix=prefix,
        )
