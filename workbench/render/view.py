"""The data of a rendered answer: its tokens with their numbers, and the images of the views.

Log-probabilities, gaps, entropies and losses are in nats. A value that was not recorded is None or absent; it is
rendered as a dash, never as zero.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from workbench.types import Box

STUDENT, SELF, TEACHER = "student", "self", "teacher"
VIEW_ORDER = (STUDENT, SELF, TEACHER)
LONG = 120  # tokens above which an answer gets an overview, a chart and windows


class RegimeNote(NamedTuple):
    """Description of a regime. losses: a (target, divergence, weight in the method) each; () if unknown."""

    meaning: str = ""
    target: str | None = None
    divergence: str | None = None
    losses: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class TokenCell:
    """One position of an answer. The dictionaries are keyed by view name; views may be missing.

    weight        the router's factor of the regime's losses
    effective     weight times the method's weights of those losses
    top_k         the most likely tokens by view, best first, as (text, log-probability)
    special       a control token such as the end of the answer
    """

    text: str
    token_id: int
    regime: str
    target: str | None = None
    divergence: str | None = None
    weight: float | None = None
    effective: float | None = None
    loss: float | None = None
    token_type: str = ""
    visibility: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    entropies: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    top_k: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    sampled_logprob: float | None = None
    denoising_step: int | None = None  # None: autoregressive
    special: bool = False

    @property
    def capability_gap(self) -> float | None:
        """log-prob of the teacher minus that of the privileged student: same information, other weights."""
        return _difference(self.logprobs.get(TEACHER), self.logprobs.get(SELF))

    @property
    def information_gap(self) -> float | None:
        """log-prob of the privileged student minus that of the student: same weights, other information."""
        return _difference(self.logprobs.get(SELF), self.logprobs.get(STUDENT))

    @property
    def total_gap(self) -> float | None:
        """log-prob of the teacher minus that of the student; the sum of the two gaps where both are known."""
        return _difference(self.logprobs.get(TEACHER), self.logprobs.get(STUDENT))

    @property
    def ratio(self) -> float | None:
        """Importance ratio: the student's probability in training over its probability in sampling."""
        return None if self.mismatch is None else math.exp(min(self.mismatch, 700.0))

    @property
    def mismatch(self) -> float | None:
        """log-prob of the student in training minus that in sampling: staleness, and the engines' differences."""
        return _difference(self.logprobs.get(STUDENT), self.sampled_logprob)


@dataclass(frozen=True)
class ViewImage:
    """An image of some views. Boxes and the crop's outline are in pixels of this image."""

    title: str  # names of the views
    image: Image.Image | Path
    boxes: tuple[Box, ...] = ()
    crop: Box | None = None  # the evidence crop in this image
    note: str = ""


@dataclass(frozen=True)
class TokenView:
    """One answer, ready to render.

    contexts    context of each view: plain, boxes, crop ...
    prompts     prompt text of each view
    regimes     all regimes of the method in its order, with or without tokens in this answer
    thresholds  thresholds of the router at this step
    meta        origin of the answer in display order: run, step, rollout; and the method's annotations
    """

    title: str
    question: str
    answer: str
    tokens: tuple[TokenCell, ...]
    expected: str | None = None
    right: bool | None = None
    regimes: dict[str, RegimeNote] = field(default_factory=dict)
    pictures: tuple[ViewImage, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    contexts: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    meta: dict[str, object] = field(default_factory=dict)

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Views that scored any token: student, self, teacher, then others in order of appearance."""
        names = dict.fromkeys(name for token in self.tokens for name in token.logprobs)
        return tuple(name for name in VIEW_ORDER if name in names) + tuple(n for n in names if n not in VIEW_ORDER)

    @cached_property
    def columns(self) -> dict[str, list[float | None]]:
        """The numeric quantities of colors.QUANTITIES for every token; None where not recorded or not finite."""
        read = {
            "capability": lambda token: token.capability_gap,
            "information": lambda token: token.information_gap,
            "weight": lambda token: token.effective,
            "loss": lambda token: token.loss,
            "entropy": lambda token: token.entropies.get(STUDENT),
            "denoising": lambda token: token.denoising_step,
            "mismatch": lambda token: token.mismatch,
        }
        return {name: [finite(getter(token)) for token in self.tokens] for name, getter in read.items()}

    @cached_property
    def all_regimes(self) -> dict[str, RegimeNote]:
        """The method's regimes, and further regimes of the tokens."""
        named = {name: RegimeNote(*note) for name, note in self.regimes.items()}
        for token in self.tokens:
            named.setdefault(token.regime, RegimeNote("", token.target, token.divergence))
        return named


def finite(value: float | int | None) -> float | int | None:
    """The value, or None if it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
