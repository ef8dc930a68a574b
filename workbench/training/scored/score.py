"""Score the rollouts that another trainer logged: who would supervise each of their tokens under a method.

    config = scoring_config("runs/trl", student=A, teacher=B, method="dopd", privilege="crop", data="examples.jsonl")
    result = score_rollouts("out/completions", config, data="examples.jsonl")

The run folder is that of a training run without checkpoints: metrics, traces, and run.json with the key "scored".

1. Rows are read, matched with their examples and checked for evidence before any model is loaded.
2. Token ids are used as they are; text is tokenized once, by the student.
3. Every step of the file is scored and routed as one batch, as in training.
4. A row that cannot be scored is counted, named and listed in skipped.jsonl. More than `max_skipped` are an error.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.config.models import check_models
from workbench.config.schema import RunConfig, build_config, override
from workbench.data.contexts import parse_context
from workbench.data.examples import load_examples
from workbench.data.grading import grade
from workbench.data.importing import DATA_FILE
from workbench.data.rollouts.matching import ExampleIndex, OwnExamples, match_rows
from workbench.data.rollouts.reading import RolloutFile, RolloutRow, SkippedRow, read_rollouts
from workbench.distill.method import Method
from workbench.distill.usable import lacking
from workbench.distributed import choose_device
from workbench.errors import ConfigError, RunError, show
from workbench.training.learner import build_learner
from workbench.training.scored.given import to_rollouts
from workbench.training.scored.steps import ScoredSteps, ScoreResult, SkippedRows
from workbench.types import STUDENT, Example

DEFAULTS = {
    "training": {"micro_batch_size": 8, "save_every": 0},
    "trace": {"probes": 0},
    "evaluation": {"teacher": False},
}
Pairs = list[tuple[RolloutRow, Example]]


def scoring_config(
    to: str | Path,
    *,
    student: str,
    teacher: str | None = None,
    method: str = "dopd",
    privilege: str | None = None,
    data: str,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Configuration of a scoring run. Raises ConfigError naming the key.

    to    the run's folder, which must not exist
    data  the examples, or the rollouts themselves if they hold them
    """
    folder = Path(to)
    values: dict[str, Any] = {
        **DEFAULTS,
        "name": folder.name,
        "output_dir": str(folder.parent),
        "models": {"student": student, "teacher": teacher},
        "data": {"train": data},
        "method": {"name": method} | ({} if privilege is None else {"privilege": privilege}),
    }
    return build_config(override(values, list(overrides)), where="workbench score")


def score_rollouts(
    source: str | Path,
    config: RunConfig,
    *,
    data: str | None = None,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    ended: bool = False,
    max_skipped: int = 0,
) -> ScoreResult:
    """Score all rollouts of a file or folder into a new run folder.

    config       from scoring_config
    data         examples with images and evidence; None: the rows hold them
    layout       one of data.rollouts.ROLLOUT_LAYOUTS; None: recognized
    columns      our column -> theirs, where the layout does not apply
    ended        whether a text that does not state it ended by itself
    max_skipped  rows that may be left out

    Raises: DataError if more rows than that cannot be scored; ConfigError, PolicyError and RunError as `train`.
    """
    method = scoring_method(config)
    _check_options(config, max_skipped)
    file = read_rollouts(source, layout=layout, columns=columns)
    index = OwnExamples(file) if data is None else ExampleIndex(load_examples(data))
    pairs, matched_by = match_rows(file, index)
    pairs = _with_evidence(file, pairs, method)
    skipped = SkippedRows(file, max_skipped)
    skipped.refuse()
    check_models(config)
    device = str(choose_device(config.models.device))
    # the answers are given, so that the room for a prompt is what its own answer leaves: steps.py checks it
    roomy = replace(config, sampling=replace(config.sampling, max_completion_length=1))
    policies = build_learner(roomy, method, device=device).policies
    rewards = {row.reward for row, _ in pairs if row.reward is not None}
    given = to_rollouts(
        policies[STUDENT],
        pairs,
        grade=lambda example, text, prefix: grade_of(config, example, text, prefix),
        ended=ended,
        rewards_are_grades=bool(rewards) and rewards <= {0.0, 1.0},
        prompts_per_step=config.training.batch_size,
    )
    skipped.rows += given.skipped
    skipped.refuse()
    facts = {
        "file": str(source),
        "layout": file.layout,
        "rows": file.num_rows,
        "data": data,
        "matched_by": dict(matched_by),
        "rewards": _reward_source(rewards),
        "unread": sorted(file.unread),
    }
    examples = list({id(example): example for _, example in pairs}.values())
    row_examples = index if isinstance(index, OwnExamples) else None
    if row_examples is not None:
        config = replace(config, data=replace(config.data, train=str(config.run_dir / DATA_FILE)))
    return ScoredSteps(config, method, policies, given, skipped, facts).run(examples, row_examples)


def _check_options(config: RunConfig, max_skipped: int) -> None:
    if max_skipped < 0:
        raise ConfigError(f"max_skipped must be at least 0, got {max_skipped}.")
    if os.path.lexists(config.run_dir):
        raise RunError(f"{config.run_dir} exists. Name a new folder with --to, or delete it.")


def scoring_method(config: RunConfig) -> Method:
    """The method, without what only sampling needs. Raises ConfigError for one that logged rollouts cannot serve."""
    method = config.load_method()
    if method.min_learners > 1 or config.models.peers:
        raise ConfigError(f"method {method.name} trains several students, whose rollouts no file has. Choose another.")
    if "turns" in parse_context(method.learner_context):
        raise ConfigError(
            f"method {method.name} shows the student its replies to earlier turns, which no file has. Choose another."
        )
    return replace(method, dataset_fraction=0.0)


def _with_evidence(file: RolloutFile, pairs: Pairs, method: Method) -> Pairs:
    """The pairs whose example has the evidence of every view; adds the others to file.skipped."""
    usable = []
    for row, example in pairs:
        problem = lacking(example, method)
        if problem is None:
            usable.append((row, example))
        else:
            remedy = "Give it by --data, or score without evidence by --privilege plain"
            message = f"its example {show(example.id)}: {problem.message}. {remedy}"
            file.skipped.append(SkippedRow(row.origin, problem.reason, message))
    return usable


def grade_of(config: RunConfig, example: Example, text: str, prefix: str) -> float | None:
    """1 for a right answer, 0 for a wrong one, None if it is not known, by the run's grader; `prefix` as in grade."""
    return None if example.answer is None else grade(text, example.answer, prefix=prefix, **config.evaluation.grading)


def _reward_source(rewards: set[float]) -> str:
    """Where the trace's column reward comes from."""
    if rewards and rewards <= {0.0, 1.0}:
        return "the file's, which are all 0 or 1"
    return "the workbench's grades" + ("; the file's are annotations" if rewards else "")
