"""What is drawn: one written answer, its tokens with their numbers, and the pictures the views were shown.

All log-probabilities, gaps, entropies and losses are in nats. A value that was not recorded is None or absent; it is
drawn as a dash and never as zero.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from workbench.types import Box

STUDENT, SELF, TEACHER = "student", "self", "teacher"
VIEW_ORDER = (STUDENT, SELF, TEACHER)


class RegimeNote(NamedTuple):
    """What people read about a regime. losses: (target, divergence, the method's weight of it) each; () if not known."""

    meaning: str = ""
    source: str | None = None
    divergence: str | None = None
    losses: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class TokenCell:
    """One position of an answer. The dictionaries are keyed by view name; views may be missing.

    weight        what the rule multiplied the regime's losses by
    effective     the same times what the method lets those losses weigh: what the token counts beside others
    alternatives  per view its most likely entries, best first, as (text, log-probability)
    micro_batch   which micro-batch the router took its means over, if it took one per micro-batch
    special       a control token such as the end of the answer; drawn faintly
    """

    text: str
    token_id: int
    regime: str
    source: str | None = None
    divergence: str | None = None
    weight: float | None = None
    effective: float | None = None
    loss: float | None = None
    kind: str = ""
    truth: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    entropies: dict[str, float] = field(default_factory=dict)
    max_logprobs: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    alternatives: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    sampled_logprob: float | None = None
    denoising_step: int | None = None  # None: written from left to right
    micro_batch: int | None = None
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
        """Importance ratio: the student's probability while learning over that while writing."""
        gap = _difference(self.logprobs.get(STUDENT), self.sampled_logprob)
        return None if gap is None else math.exp(min(gap, 700.0))


@dataclass(frozen=True)
class ViewImage:
    """An image as views were shown it. Boxes and the crop's outline are in pixels of this image."""

    title: str  # which views: "student", "teacher and privileged student"
    image: Image.Image | Path
    boxes: tuple[Box, ...] = ()
    crop: Box | None = None  # where the evidence crop was cut out of this image
    note: str = ""


@dataclass(frozen=True)
class TokenView:
    """One answer, ready to be drawn.

    contexts    what each view was shown, by view name: plain, boxes, crop ...
    prompts     the text each view was given
    regimes     by name, in the method's order, also those that no token of this answer has
    thresholds  what the router compared with at this step
    meta        where this comes from, in the order in which it is shown: run, step, rollout; and what the method decided
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

    @property
    def views(self) -> tuple[str, ...]:
        """Views that scored any token: student, self, teacher, then others in order of appearance."""
        names = dict.fromkeys(name for token in self.tokens for name in token.logprobs)
        return tuple(name for name in VIEW_ORDER if name in names) + tuple(n for n in names if n not in VIEW_ORDER)

    @property
    def all_regimes(self) -> dict[str, RegimeNote]:
        """The method's regimes, and any that a token has and the method does not name."""
        named = {name: RegimeNote(*note) for name, note in self.regimes.items()}
        for token in self.tokens:
            named.setdefault(token.regime, RegimeNote("", token.source, token.divergence))
        return named


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
