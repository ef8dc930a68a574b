"""Section `evaluation`, and the evaluation sets of data.eval: one source, or several by name."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

from workbench.config.sections import build_section
from workbench.data.contexts import require_promptable
from workbench.data.grading import GRADERS, TOLERANCE, check_grading
from workbench.distill.method import Option
from workbench.errors import ConfigError, at, show
from workbench.files.parsing import PLAIN_NAME, is_plain_name

_GROUPS = ("all", "visible", "privileged")  # other groups of the same metrics


@dataclass(frozen=True)
class EvaluationConfig:
    """Accuracy and confidence of the policies under each context, on data.eval."""

    every: Annotated[int, Option("Steps between evaluations. 0 = only before and after training", low=0)] = 0
    max_examples: Annotated[int, Option("Number of examples to evaluate on. 0 = all", low=0)] = 128
    contexts: Annotated[list, Option("Contexts under which the student is evaluated")] = field(
        default_factory=lambda: ["plain"]
    )
    teacher: Annotated[bool, Option("Also evaluate the teacher, once, before training")] = True
    grader: Annotated[str, Option("Rule that compares an answer with the reference answer", choices=GRADERS)] = GRADERS[
        0
    ]
    tolerance: Annotated[float, Option("Largest relative error that grader numeric accepts", low=0)] = TOLERANCE
    batch_size: Annotated[int, Option("Answers sampled per batch", low=1)] = 64
    early_stopping_patience: Annotated[
        int, Option("End the run after so many evaluations in a row without improvement. 0 = never", low=0)
    ] = 0
    early_stopping_threshold: Annotated[
        float, Option("A value improves if it is better than the best so far by more than this", low=0)
    ] = 0.0
    metric_for_best_model: Annotated[
        str | None,
        Option(
            "Metric of early stopping: accuracy or calibration_error, as in accuracy/student/plain/all. null = the "
            "student's accuracy on all questions under the first context"
        ),
    ] = None

    @property
    def grading(self) -> dict:
        """Grading options, as keyword arguments of `sample_rollouts`, `evaluate_policies` and `grading.grade`."""
        return {"grader": self.grader, "tolerance": self.tolerance}


@dataclass(frozen=True)
class EvaluationSet:
    """One entry of data.eval. name: "" = the only set; path: "" = the rows of data.held_out."""

    path: Annotated[str, Option("Evaluation examples")] = ""
    contexts: Annotated[list, Option("Contexts under which the student is evaluated")] = field(default_factory=list)
    grader: Annotated[str | None, Option("Rule that compares answers", choices=GRADERS)] = None
    tolerance: Annotated[float | None, Option("Largest relative error that grader numeric accepts", low=0)] = None
    max_examples: Annotated[int | None, Option("Number of examples to evaluate on. 0 = all", low=0)] = None
    name: str = ""

    @property
    def grading(self) -> dict:
        """Grading options, as EvaluationConfig.grading."""
        return {"grader": self.grader, "tolerance": self.tolerance}

    @property
    def key(self) -> str:
        """Key of the set in messages and records."""
        return f"data.eval.{self.name}" if self.name else "data.eval"


def parse_evaluation_sets(value: str | dict, defaults: EvaluationConfig) -> tuple[EvaluationSet, ...]:
    """Parse data.eval, with missing values from `evaluation`. Raises ConfigError naming the set and its key."""
    if isinstance(value, str):
        return (_filled(EvaluationSet(value), defaults),)
    sets = []
    for name, entry in value.items():
        if not is_plain_name(str(name)) or name in _GROUPS:
            raise ConfigError(
                f"data.eval: the name {show(name)} must be a plain name ({PLAIN_NAME}), and none of "
                f"{', '.join(_GROUPS)}."
            )
        plain = {"path": entry} if isinstance(entry, str) else entry
        built = build_section(EvaluationSet, plain, f"data.eval.{name}.")
        if not built.path:
            raise ConfigError(f"data.eval.{name}.path is missing. Name the examples.")
        sets.append(_filled(dataclasses.replace(built, name=str(name)), defaults))
    if not sets:
        raise ConfigError("data.eval is an empty mapping. Name a set, as in {NAME: FILE}, or set data.eval=null.")
    return tuple(sets)


def _filled(built: EvaluationSet, defaults: EvaluationConfig) -> EvaluationSet:
    grader = built.grader or defaults.grader
    tolerance = built.tolerance
    if tolerance is None:
        tolerance = defaults.tolerance if grader == defaults.grader else TOLERANCE
    max_examples = defaults.max_examples if built.max_examples is None else built.max_examples
    filled = dataclasses.replace(
        built,
        contexts=built.contexts or defaults.contexts,
        grader=grader,
        tolerance=tolerance,
        max_examples=max_examples,
    )
    with at(built.key):
        check_grading(**filled.grading)
        for context in filled.contexts:
            require_promptable(str(context))
    return filled
