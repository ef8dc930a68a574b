"""Evaluate the models of a study on its questions. Stored results (records.py) are reused."""

from pathlib import Path
from typing import Any

from workbench.config.schema import RunConfig
from workbench.data.examples import load_examples, split_by_evidence
from workbench.distill.usable import Tally, filter_encodable, not_evaluated
from workbench.errors import RunError
from workbench.evals.evaluate import evaluate_policy
from workbench.evals.records import EvalRecord, save_records
from workbench.policies.loading import leave_room, load_policies
from workbench.runs.checkpoints import latest_checkpoint
from workbench.studies.plan import EvalSet, ReferenceModel
from workbench.studies.records import FILE, describe, describe_reference, is_evaluated, write
from workbench.training.learner import autocast
from workbench.training.run_data import with_template
from workbench.training.scorer import default_device
from workbench.types import STUDENT


def evaluate_study_run(config: RunConfig, evaluate: tuple[EvalSet, ...]) -> Path:
    """Evaluate the students of a finished run's newest checkpoint, unless the results are stored already."""
    checkpoint, torn = latest_checkpoint(config.run_dir)
    if checkpoint is None:
        raise RunError(f"{config.run_dir} has no complete checkpoint to evaluate. {' '.join(torn)}")
    file = config.run_dir / FILE
    description = describe(config, evaluate, checkpoint.step)
    if is_evaluated(file, description):
        return file
    records: dict[str, list[EvalRecord]] = {}
    left_out: list[str] = []
    options = {**config.models.student_options, "device": default_device(config.models.device)}
    for name in config.models.learners:
        policies = load_policies([], student=checkpoint.weights(name), learner=name, **options)
        by_label, sentences = _ask(policies[STUDENT], config, evaluate, checkpoint.step)
        left_out += sentences
        for label, rows in by_label.items():
            records.setdefault(label, []).extend(rows)
    save_records(config.run_dir, checkpoint.step, records[evaluate[0].label])  # where the app looks for them
    write(file, records, description, left_out)
    return file


def evaluate_reference(reference: ReferenceModel, evaluate: tuple[EvalSet, ...], file: Path) -> Path:
    """Evaluate a reference model, unless the results are stored already."""
    config = reference.config
    description = describe_reference(reference, evaluate)
    if is_evaluated(file, description):
        return file
    names = ["teacher"] if reference.role == "teacher" else []
    policies = load_policies(
        names,
        student=config.models.learners[reference.learner],
        learner=reference.learner,
        teacher=reference.model if names else None,
        **config.models.student_options,
        teacher_options=config.models.teacher_options,
        device=default_device(config.models.device),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    questions = tuple(entry.for_references() for entry in evaluate)
    records, left_out = _ask(policies[reference.role], config, questions, 0)
    write(file, records, description, left_out)
    return file


def _ask(
    policy: Any, config: RunConfig, evaluate: tuple[EvalSet, ...], step: int
) -> tuple[dict[str, list[EvalRecord]], list[str]]:
    """Return the answers by label, and a sentence for each reason why questions were skipped."""
    records: dict[str, list[EvalRecord]] = {}
    left_out: list[str] = []
    leave_room([policy], config.sampling.max_completion_length, config.data.max_prompt_length)
    for questions in evaluate:
        tally = Tally()
        examples = with_template(load_examples(questions.data, max_examples=questions.max_examples), config)
        examples = filter_encodable(examples, [policy], questions.contexts, tally)
        if tally.counts:
            left_out.append(f"{questions.label}, skipped {tally}")
        left_out += [f"{questions.label}, {sentence}" for sentence in not_evaluated(examples, questions.contexts)]
        for context in questions.contexts:
            with autocast(config, policy.device):  # as a run evaluates its students
                rows = evaluate_policy(
                    policy,
                    split_by_evidence(examples, [context]).usable,
                    context,
                    step=step,
                    max_completion_length=config.sampling.max_completion_length,
                    stop_strings=tuple(config.sampling.stop_strings),
                    **config.evaluation.grading,
                    batch_size=config.evaluation.batch_size,
                )
            records.setdefault(questions.label, []).extend(rows)
    return records, left_out
