"""Building blocks of a method: views, losses, regimes, and the routing rule that assigns a regime to each position.

A method is data. It names the policy that samples, the views that score, the routing rule, and the losses of each
regime. The one loop in training/loop.py runs every method.
"""

import math
import types
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from workbench.data.contexts import depends_on_rollout, parse_context, require_promptable
from workbench.distill.divergences import Divergence
from workbench.errors import ConfigError, cut, require_one_of, show, unknown
from workbench.files.parsing import Malformed, check_text
from workbench.types import Rollout, RouteBatch, Routing

TOKENS = "tokens"  # target of a loss: the tokens of the sequence
REWARD = "reward"  # target of a loss: the advantage that the routing rule returns
POLICIES = ("student", "student@start", "student@ema", "teacher")
AGGREGATIONS = ("sequence_mean", "token_mean", "domain_mean")
NORMALIZERS = ("all", "supervised")

Router = Callable[[RouteBatch], Routing]
Annotator = Callable[..., tuple[Rollout, ...]]  # (rollouts, *rollouts of each peer for the same examples) -> rollouts


@dataclass(frozen=True)
class Option:
    """Meaning and range of a field of `Options`, for help texts and forms: `Annotated[float, Option("...", low=0)]`."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


_LARGEST = 2**63 - 1  # largest integer in files and tensors
_IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping of keys to values",
    type(None): "null",
}


def check_option(key: str, value: Any, value_type: type | types.UnionType, option: Option) -> object:
    """Check a value and convert it to `value_type`. Raises ConfigError with the key and the allowed values."""
    allowed = typing.get_args(value_type) if isinstance(value_type, types.UnionType) else (value_type,)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, int) and abs(value) > _LARGEST and option.high is None:
        raise ConfigError(f"{key} must be at most {_LARGEST}, got {show(value)}. Meaning: {option.help}.")
    if float in allowed and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        value = float(value)
    if tuple in allowed and isinstance(value, list):
        value = tuple(value)
    if isinstance(value, str):
        try:
            value = check_text(value)
        except Malformed as error:
            raise ConfigError(f"{key}: {error}. Meaning: {option.help}.") from None
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        names = " or ".join(_IN_WORDS.get(value_class, value_class.__name__) for value_class in allowed)
        given = "nothing" if value is None else show(value)
        remedy = ""
        if list in allowed and isinstance(value, str | int | float):
            remedy = f" Write it in brackets: [{cut(value)}]."
        elif str in allowed and isinstance(value, int | float):
            remedy = " Quote a text that looks like a number."
        raise ConfigError(f"{key} must be {names}, got {given}.{remedy} Meaning: {option.help}.")
    if option.choices and value not in option.choices:
        raise ConfigError(unknown(key, str(value), option.choices))
    too_low = option.low is not None and value < option.low
    too_high = option.high is not None and value > option.high
    if too_low or too_high:
        raise ConfigError(
            f"{key} must be {range_in_words(option.low, option.high)}, got {value}. Meaning: {option.help}."
        )
    return value


def range_in_words(low: float | None, high: float | None) -> str:
    """Describe a range of numbers; None = no limit, "" if both are None."""
    if low is None:
        return "" if high is None else f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"


@dataclass(frozen=True)
class View:
    """A policy and the context of its prompt: `View("teacher", "boxes")`.

    policy   student, student@start (frozen copy), student@ema (moving average), teacher, or teacher:<domain>. With
             models.teachers, "teacher" is the teacher of the example's domain
    context  evidence in the prompt, see workbench.data.contexts
    learns   whether this view is trained; exactly one view of a method is
    """

    policy: str
    context: str
    learns: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES and not self.policy.startswith("teacher:"):
            raise ConfigError(
                unknown("policy", self.policy, POLICIES) + " Or name a teacher of models.teachers: teacher:<domain>."
            )
        if self.learns and self.policy != "student":
            raise ConfigError(f'view of policy "{self.policy}" has learns=True. Expected "student". Set learns=False.')
        parse_context(self.context)


@dataclass(frozen=True)
class Loss:
    """A divergence from the learner to `target` (a view's name, TOKENS or REWARD), times `weight`.

    by   for REWARD: the view from which the routing rule computes the advantage, if any
    """

    target: str
    divergence: Divergence
    weight: float = 1.0
    by: str | None = None


@dataclass(frozen=True)
class Regime:
    """The losses at positions of one regime, with a label for people. No losses: no supervision."""

    losses: tuple[Loss, ...]
    meaning: str = ""

    @property
    def target(self) -> str | None:
        """Targets of the losses, joined by "+" (for a reward its view), or None."""
        return "+".join(dict.fromkeys(loss.by or loss.target for loss in self.losses)) or None

    @property
    def divergence(self) -> str | None:
        """Labels of the divergences, joined by "+", or None."""
        return " + ".join(loss.divergence.label for loss in self.losses) or None


@dataclass(frozen=True)
class PatchState:
    """Result of a method's preparation: tensors by name, and facts for run.json."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


@dataclass(frozen=True)
class SamplingPatch:
    """Preparation before the first step, and its use while the student samples.

    build   (student, examples, seed) -> PatchState. `examples` is an iterator. The run folder keeps the result
    apply   (student, tensors) -> context manager that patches the student while it samples
    suffix  suffix of the sampler's name in traces, as in "student+projection"
    """

    build: Callable[..., PatchState]
    apply: Callable[..., AbstractContextManager]
    suffix: str


@dataclass(frozen=True)
class Method:
    """One training method.

    views            by name; "student" is the learner, by convention "teacher" the teacher and "self" the privileged
                     student
    regimes          by name; a regime index counts in this order
    route            the routing rule: scores of the views -> regime, weight and advantage of every position
    router_views     views whose scores the rule needs. Naming the learner costs one more forward pass with several
                     micro-batches, since the rule needs its scores before the first backward pass
    loss_aggregation "sequence_mean": mean over a sequence's positions, then over sequences; "token_mean": over all
                     positions; "domain_mean": over the positions of a domain, then over the domains of the step
    normalize_by     "all": positions without supervision count in these means, as zeros; "supervised": they do not, so
                     that masking positions does not lower the effective learning rate of the others
    dataset_fraction fraction of sequences that are the data's reference answers instead of samples
    ema_rate         weight of the student in each update of student@ema
    needs            required columns of an example besides the evidence of the contexts: "answer"
    annotate         adds feedback for the views' prompts (Rollout.feedback) and annotations for the trace to
                     the rollouts of a batch; also gets the rollouts of each peer for the same examples
    peer_request     request to every peer about each rollout, {text} being its text; replies go to Rollout.remarks
    min_learners     smallest number of students in the run: the student and models.peers
    min_generations  smallest number of answers to each question
    replying_policy  policy that replies to all turns but the last, if the learner's context is "turns"
    sampling_patch   preparation before the first step
    resample         False: the student before training samples every sequence once, and epochs repeat them
    uses_ratio       the rule weighs tokens by their importance ratio itself

    Raises: ConfigError for fields that do not go together.
    """

    name: str
    views: dict[str, View]
    regimes: dict[str, Regime]
    route: Router
    router_views: tuple[str, ...] = ()
    loss_aggregation: str = "sequence_mean"
    normalize_by: str = "all"
    dataset_fraction: float = 0.0
    ema_rate: float = 0.05
    needs: tuple[str, ...] = ()
    annotate: Annotator | None = None
    peer_request: str | None = None
    min_learners: int = 1
    min_generations: int = 1
    replying_policy: str = "student"
    sampling_patch: SamplingPatch | None = None
    resample: bool = True
    uses_ratio: bool = False
    options: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        learning = [name for name, view in self.views.items() if view.learns]
        if len(learning) != 1:
            raise ConfigError(
                f"method {self.name}: {len(learning)} views have learns=True ({learning}). Expected exactly one."
            )
        require_one_of("loss_aggregation", self.loss_aggregation, AGGREGATIONS)
        require_one_of("normalize_by", self.normalize_by, NORMALIZERS)
        if not 0.0 <= self.dataset_fraction <= 1.0:
            raise ConfigError(f"method {self.name}: dataset_fraction is {self.dataset_fraction}. Expected 0 to 1.")
        if not 0.0 < self.ema_rate <= 1.0:
            raise ConfigError(f"method {self.name}: ema_rate is {self.ema_rate}. Expected more than 0, at most 1.")
        require_one_of(f"method {self.name}: replier", self.replying_policy, self.policies)
        student_context = self.views[learning[0]].context
        require_promptable(student_context)
        for name, view in self.views.items():
            parts = parse_context(view.context)
            if "feedback" in parts and self.annotate is None:
                raise ConfigError(
                    f'method {self.name}: view "{name}" has the context "feedback". Set annotate, which adds the '
                    "feedback."
                )
            if "turns" in parts and "turns" not in parse_context(student_context):
                raise ConfigError(
                    f'method {self.name}: view "{name}" has the context "turns", but the student has '
                    f'"{student_context}". Give the student the context "turns" too.'
                )
        targets = {loss.target for regime in self.regimes.values() for loss in regime.losses}
        for target in targets - {TOKENS, REWARD}:
            if target not in self.views:
                raise ConfigError(unknown(f"method {self.name}: target", target, [*self.views, TOKENS, REWARD]))
            if target == learning[0]:
                raise ConfigError(f"method {self.name}: the learning view cannot be its own target.")
        for regime in self.regimes.values():
            for loss in regime.losses:
                if loss.by is not None and (loss.target != REWARD or loss.by not in self.views):
                    raise ConfigError(
                        f'method {self.name}: by="{loss.by}" names the view of a reward; views: '
                        f"{', '.join(self.views)}."
                    )
        for name in self.router_views:
            require_one_of(f"method {self.name}: view", name, self.views)

    @property
    def learner_view(self) -> str:
        """Name of the view that is trained."""
        return next(name for name, view in self.views.items() if view.learns)

    @property
    def learner_context(self) -> str:
        """Context of the view that is trained."""
        return self.views[self.learner_view].context

    @property
    def targets(self) -> tuple[str, ...]:
        """Views whose full distributions the losses need, in order of definition."""
        used = {loss.target for regime in self.regimes.values() for loss in regime.losses}
        return tuple(name for name in self.views if name in used)

    @property
    def late_views(self) -> tuple[str, ...]:
        """Views that are scored with the losses, from the same logits: each token's loss needs them, the rule does not.

        A view that depends on the rollout may not score all of them, which the rule has to know.
        """
        targets = [{loss.target for loss in regime.losses} for regime in self.regimes.values()]
        late = set(self.targets).intersection(*targets).difference(self.router_views)
        return tuple(name for name in self.views if name in late and not depends_on_rollout(self.views[name].context))

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies of the views, without duplicates, in order of definition."""
        return tuple(dict.fromkeys(view.policy for view in self.views.values()))

    @property
    def contexts(self) -> tuple[str, ...]:
        """Contexts of the views, without duplicates."""
        return tuple(dict.fromkeys(view.context for view in self.views.values()))
