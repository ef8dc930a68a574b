"""The vocabulary in which every method is written: views, losses, and a method that joins them by a router.

A method is data. It names who writes the sequences, which views read them, the rule that gives each position a regime,
and the losses of each regime. The loop in training/loop.py runs all of them.
"""

import math
import types
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from workbench.data.contexts import parse_context, require_promptable
from workbench.distill.divergences import Divergence
from workbench.errors import ConfigError, show, unknown
from workbench.files.parsing import Malformed, check_text
from workbench.types import Rollout, RouteBatch, Routing

TOKENS = "tokens"  # target of a loss: the written tokens themselves
REWARD = "reward"  # target of a loss: the position's advantage, given by the router
POLICIES = ("student", "student@start", "student@ema", "teacher")
AVERAGES = ("sequence", "position", "domain")
AVERAGED = ("all", "supervised")

Router = Callable[[RouteBatch], Routing]
Annotator = Callable[..., tuple[Rollout, ...]]  # (own, *those of each peer, on the same examples) -> own


@dataclass(frozen=True)
class Option:
    """What a field of `Options` means, for help texts and forms: `Annotated[float, Option("...", low=0)]`."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


_LARGEST = 2**63 - 1  # of whole numbers, as files and tensors hold them
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def check_option(key: str, value: object, value_type: type | types.UnionType, option: Option) -> object:
    """The value as `value_type`, inside the option's range. Raises ConfigError naming the key and what is allowed."""
    allowed = typing.get_args(value_type) if isinstance(value_type, types.UnionType) else (value_type,)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, int) and abs(value) > _LARGEST and option.high is None:
        raise ConfigError(f"{key} must be at most {_LARGEST}, got {show(value)}. Meaning: {option.help}.")
    if float in allowed and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        value = float(value)
    if isinstance(value, str):
        try:
            value = check_text(value)
        except Malformed as error:
            raise ConfigError(f"{key}: {error}. Meaning: {option.help}.") from None
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        names = " or ".join(_IN_WORDS.get(value_class, value_class.__name__) for value_class in allowed)
        given = "nothing" if value is None else show(value)
        quotes = " Put quotes around a text that looks like a number." if str in allowed and value is not None else ""
        raise ConfigError(f"{key} must be {names}, got {given}.{quotes} Meaning: {option.help}.")
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
    """The numbers that are allowed, None = no limit; "" if all are."""
    if low is None:
        return "" if high is None else f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"


@dataclass(frozen=True)
class View:
    """A policy shown a context: `View("teacher", "boxes")`.

    policy   student, student@start (frozen copy), student@ema (moving average), teacher, or teacher:<domain>. With
             models.teachers, teacher is the one of the example's domain, and reads that domain's answers alone
    context  what it is shown, see workbench.data.contexts
    learns   gradients flow through this view; exactly one view of a method learns
    """

    policy: str
    context: str
    learns: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES and not self.policy.startswith("teacher:"):
            raise ConfigError(unknown("policy", self.policy, POLICIES) + " Several teachers: teacher:<domain>.")
        if self.learns and self.policy != "student":
            raise ConfigError(f'only the policy "student" can learn, not "{self.policy}".')
        parse_context(self.context)


@dataclass(frozen=True)
class Loss:
    """Pull the learner to `target` (a view's name, TOKENS or REWARD) by `divergence`, times `weight`.

    by   of REWARD: the view that the router makes the advantage from, if there is one
    """

    target: str
    divergence: Divergence
    weight: float = 1.0
    by: str | None = None


@dataclass(frozen=True)
class Regime:
    """The losses at positions of one kind; `meaning` is read by people. No losses: positions without supervision."""

    losses: tuple[Loss, ...]
    meaning: str = ""

    @property
    def source(self) -> str | None:
        """What supervises, joined by "+", or None: targets, and of a reward the view that it is made from."""
        return "+".join(dict.fromkeys(loss.by or loss.target for loss in self.losses)) or None

    @property
    def divergence(self) -> str | None:
        """Labels of the divergences, joined by "+", or None."""
        return " + ".join(loss.divergence.label for loss in self.losses) or None


@dataclass(frozen=True)
class PatchState:
    """What was made before the first step: arrays by name, and what is to be known about them (numbers and words)."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


@dataclass(frozen=True)
class SamplingPatch:
    """Something made once of the starting student, and how the student writes with it.

    make     (student, examples, seed) -> Prepared. `examples` is an iterator: take as many as are needed. The result is
             kept in the run's folder, so that a resumed run writes with the same
    writing  (student, tensors) -> a context. Inside it the student writes with them; after it, it is as it was
    source   what is added to the student's name, as in "student+projection", to say in traces who has written
    """

    build: Callable[..., PatchState]
    apply: Callable[..., AbstractContextManager]
    suffix: str


@dataclass(frozen=True)
class Method:
    """One training method.

    views          by name; "student" is the learner, and by custom "teacher" the teacher, "self" the privileged student
    regimes        by name; the router's regime index counts in this order
    route          the rule: per-position scalars of views -> regime, weight and advantage of every position
    reads          views whose scalars the rule needs. Naming the learner costs one more forward when micro-batches are
                   accumulated, since it must then be scored before the first gradient
    average        "sequence": mean over a sequence's positions, then over sequences; "position": over all positions;
                   "domain": over the positions of a domain, then over the domains of the step, whatever their lengths
    average_over   "all": positions without supervision count in these means, as zeros; "supervised": they do not, so that
                   leaving positions out does not lower the learning rate of the others
    dataset_share  share of sequences that are the data's reference answers instead of the student's own
    ema_rate       share of the student mixed into student@ema after each step
    needs          fields of an example without which it cannot be used, beside what contexts show: "answer"
    annotate       adds to the written rollouts of a batch what views are to be shown of them (Rollout.feedback) and what
                   it decided (Rollout.facts); it also sees what peers wrote about the same examples, one batch each
    peer_request     what every peer is asked about each rollout, {text} being the rollout's; its reply is in Rollout.remarks
    min_learners   students that must learn in the run: the student and models.peers
    min_generations  answers to each question that the rule compares with each other
    replier        policy that replies to all turns but the last, where the learner's context is "turns"
    prepare        what is made once, before the first step, and how the student writes with it
    resample       False: the starting student writes every sequence once; epochs then go over them
    """

    name: str
    views: dict[str, View]
    regimes: dict[str, Regime]
    route: Router
    router_views: tuple[str, ...] = ()
    average: str = "sequence"
    average_over: str = "all"
    dataset_share: float = 0.0
    ema_rate: float = 0.05
    needs: tuple[str, ...] = ()
    annotate: Annotator | None = None
    peer_request: str | None = None
    min_learners: int = 1
    min_generations: int = 1
    replying_policy: str = "student"
    sampling_patch: SamplingPatch | None = None
    resample: bool = True
    options: object = field(default=None, compare=False)

    def __post_init__(self) -> None:
        learning = [name for name, view in self.views.items() if view.learns]
        if len(learning) != 1:
            raise ConfigError(f"method {self.name}: exactly one view must learn, got {learning or 'none'}.")
        if self.average not in AVERAGES:
            raise ConfigError(unknown("average", self.average, AVERAGES))
        if self.average_over not in AVERAGED:
            raise ConfigError(unknown("average_over", self.average_over, AVERAGED))
        if not 0.0 <= self.dataset_share <= 1.0:
            raise ConfigError(f"dataset_share must be between 0 and 1, got {self.dataset_share}.")
        if not 0.0 < self.ema_rate <= 1.0:
            raise ConfigError(f"ema_rate must be above 0 and at most 1, got {self.ema_rate}.")
        if self.replying_policy not in self.policies:
            raise ConfigError(unknown(f"method {self.name}: replier", self.replying_policy, self.policies))
        student_context = self.views[learning[0]].context
        require_promptable(student_context)
        for name, view in self.views.items():
            parts = parse_context(view.context)
            if "feedback" in parts and self.annotate is None:
                raise ConfigError(f'method {self.name}: view "{name}" is shown feedback, and the method writes none.')
            if "turns" in parts and "turns" not in parse_context(student_context):
                raise ConfigError(
                    f'method {self.name}: view "{name}" is shown the turns that an answer was written after, but the student '
                    f'answers under "{student_context}", in one turn. Give the student the context "turns" too.'
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
                        f'method {self.name}: by="{loss.by}" names the view of a reward; views: {", ".join(self.views)}.'
                    )
        for name in self.router_views:
            if name not in self.views:
                raise ConfigError(unknown(f"method {self.name}: view", name, self.views))

    @property
    def learner(self) -> str:
        """Name of the learning view."""
        return next(name for name, view in self.views.items() if view.learns)

    @property
    def targets(self) -> tuple[str, ...]:
        """Views whose whole distributions the losses need, in order of definition."""
        used = {loss.target for regime in self.regimes.values() for loss in regime.losses}
        return tuple(name for name in self.views if name in used)

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies that the views need, in order of definition, each once."""
        return tuple(dict.fromkeys(view.policy for view in self.views.values()))

    @property
    def contexts(self) -> tuple[str, ...]:
        """Contexts that the views need, each once."""
        return tuple(dict.fromkeys(view.context for view in self.views.values()))
