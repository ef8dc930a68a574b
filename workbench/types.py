"""The data that flows through the workbench, in this order:

    Example -> Prompt -> Rollout -> TokenScores -> Routing -> loss -> traces

Everything here is frozen. Axis letters, used everywhere: B sequence, T position in a sequence, N valid positions of a
batch laid end to end, V vocabulary, K top-k, D hidden width. Log-probabilities, gaps and entropies are in nats.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

STUDENT = "student"  # the learner of every run; a run may have peers beside it
VISIBLE, PRIVILEGED = "visible", "privileged"


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of the example's first image; x0 < x1, y0 < y1, the far edge excluded."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""


@dataclass(frozen=True)
class Evidence:
    """What may be shown to a teacher and never to the deployed student. Any part may be absent."""

    boxes: tuple[Box, ...] = ()
    crop: Image.Image | Path | None = None  # an own crop image; without it the crop is cut from the first box
    caption: str | None = None
    hint: str | None = None  # where to look, without the answer
    crop_box: Box | None = None  # place of `crop` in the first image, if known: drawn for people, shown to no model
    facts: Mapping[str, frozenset[str]] = field(
        default_factory=dict, compare=False
    )  # by part (crop, hint), if known: what it says


@dataclass(frozen=True)
class Mark:
    """Tells what a part of an answer is: the first group of `pattern`, wherever it matches in the answer's text.

    kind   template | location | attribute | tag | answer, or any word of the data set's own
    truth  "visible" if the plain prompt determines it, "privileged" if only the evidence does, None if not known
    """

    pattern: str
    kind: str
    truth: str | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; role is system, user or assistant. `text` follows `images`."""

    role: str
    text: str
    images: tuple[Image.Image | Path, ...] = ()


@dataclass(frozen=True)
class Example:
    """One question with everything that may be known about it."""

    id: str
    question: str
    images: tuple[Image.Image | Path, ...] = ()
    answer: str | None = None  # the final answer alone, for scoring
    reference: str | None = None  # a whole worked answer, for sequences taken from the data
    evidence: Evidence = Evidence()
    history: tuple[Turn, ...] = ()
    turns: tuple[Turn, ...] = ()  # the question and its images revealed part by part; see contexts.user_turns
    domain: str = ""  # question family
    marks: tuple[Mark, ...] = ()
    origin: str = ""  # file and row, for messages
    others: "WrongEvidence | None" = field(default=None, compare=False, repr=False)


class WrongEvidence(Protocol):
    """Where an example finds evidence that is wrong for it; see workbench.data.counterparts."""

    def find(self, example: Example, part: str) -> Example | None:
        """Another example of its domain, whose `part` (crop, hint, answer) is wrong for it; None if there is none."""


@dataclass(frozen=True)
class Prompt:
    """What one policy is shown under one context. `text` follows `images` in the last user turn."""

    images: tuple[Image.Image | Path, ...]
    text: str
    history: tuple[Turn, ...] = ()
    key: str = ""  # where the example is from, and the context: names the prompt, unique in a run but for its rollout
    domain: str = ""  # the example's; of several teachers its own reads the prompt
    future: tuple[tuple[int, ...], ...] = ()  # of a denoised answer, per step: positions shown before their time

    @property
    def all_images(self) -> tuple[Image.Image | Path, ...]:
        """Images of earlier turns and of the last, in the order in which they are shown."""
        return (*(image for turn in self.history for image in turn.images), *self.images)


@dataclass(frozen=True)
class DenoisingTrace:
    """How a masked diffusion policy wrote an answer: on a canvas of masks, block after block, surest tokens first.

    steps   of each token of the answer: the denoising step that committed it, from 0 over the whole canvas
    block   positions that are denoised together before the next ones begin
    canvas  positions in all; those behind the end token are closed at the step that commits it
    seed    what it was drawn by; draws about the answer come from it too
    """

    steps: tuple[int, ...]
    block: int
    canvas: int
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return max(self.steps, default=-1) + 1

    def block_of(self, step: int) -> int:
        """The block that a step worked on."""
        return self.steps.index(step) // self.block

    def later(self, step: int, finished: bool) -> range:
        """Positions behind a step's block that were masks then; none once the end token had closed the canvas."""
        closed = finished and step > self.steps[-1]
        return range((self.block_of(step) + 1) * self.block, 0 if closed else self.canvas)


@dataclass(frozen=True)
class Rollout:
    """One written answer. Its ids are never made from text again: what was sampled is what is scored."""

    example: Example
    sample_idx: int  # which of the example's rollouts
    ids: tuple[int, ...]  # completion tokens, the end token included if it was written
    text: str  # decoded without special tokens
    finished: bool  # False: cut at the longest length allowed
    logprobs: tuple[float, ...] | None = None  # the sampler's own, per token; None for sequences from the data
    reward: float | None = None  # 1.0 right, 0.0 wrong, None not known
    source: str = STUDENT  # policy that wrote it, or "dataset"
    replies: tuple[str, ...] = ()  # what was replied to each turn before the last; read, never learned from
    remarks: tuple[str, ...] = ()  # what each peer wrote when asked about this rollout
    facts: tuple[tuple[str, float], ...] = ()  # what Method.annotate found out and decided; goes to the trace
    feedback: str | None = None  # what was written about this rollout, as it is to be shown; context "feedback"
    denoising: DenoisingTrace | None = None  # None: written from left to right
    entropies: tuple[float, ...] | None = None  # the sampler's own, per token, where they were asked for


@dataclass(frozen=True)
class TokenScores:
    """What the router may see of one view: numbers per position, no vocabulary.

    Positions of a rollout that the view does not read have NaN, and rank -1.
    """

    logprob: Float[Tensor, " N"]  # of the written token
    entropy: Float[Tensor, " N"]
    max_logprob: Float[Tensor, " N"]  # of the view's most likely token
    rank: Int[Tensor, " N"]  # of the written token, 0 = most likely


@dataclass(frozen=True)
class RouteBatch:
    """All that a router is given about a batch of rollouts laid end to end."""

    scores: dict[str, TokenScores]  # by view name
    sequence: Int[Tensor, " N"]  # which rollout a position belongs to
    position: Int[Tensor, " N"]  # index in its completion
    micro_batch: Int[Tensor, " N"]
    rollouts: tuple[Rollout, ...]
    seed: int  # of this step, for rules that draw at random
    token_texts: Callable[[tuple[int, ...]], list[str]] = lambda ids: [""] * len(ids)  # of a rollout's ids; costs time

    @property
    def num_positions(self) -> int:
        return self.sequence.numel()


@dataclass(frozen=True)
class Routing:
    """Where each position gets its supervision from. Regimes partition the positions: each has exactly one."""

    regime: Int[Tensor, " N"]  # index into Method.regimes
    weight: Float[Tensor, " N"]  # multiplies the losses of the position's regime; 0 = no supervision
    advantage: Float[Tensor, " N"] | None = None  # for losses whose target is REWARD
    thresholds: dict[str, float] = field(default_factory=dict)  # what the gaps were compared with; goes to the trace


def mark_tokens(text_spans: list[tuple[int, int]], text: str, marks: tuple[Mark, ...]) -> list[tuple[str, str | None]]:
    """Kind and truth of each token, from its (start, end) characters in the answer's `text`.

    A later mark wins over an earlier one. Tokens under no mark are ("template", "visible") if the example has marks
    at all and ("", None) otherwise, since nothing is known then.
    """
    labels: list[tuple[str, str | None]] = [("template", VISIBLE) if marks else ("", None)] * len(text_spans)
    for mark in marks:
        for match in re.finditer(mark.pattern, text):
            start, end = match.span(1)
            for token_idx, (token_start, token_end) in enumerate(text_spans):
                if token_start < end and start < token_end:
                    labels[token_idx] = (mark.kind, mark.truth)
    return labels


def label_completion(texts: list[str], rollout: Rollout) -> list[tuple[str, str | None]]:
    """As label_tokens, by the rollout's own marks. The end token is no part of the answer: "$" matches before it."""
    texts = [*texts[:-1], ""] if rollout.finished and texts else texts
    return label_tokens(texts, rollout.example.marks)


def label_tokens(texts: list[str], marks: tuple[Mark, ...]) -> list[tuple[str, str | None]]:
    """Kind and truth of each token, from the tokens' own texts; joined, they are the answer."""
    spans, end = [], 0
    for text in texts:
        spans.append((end, end + len(text)))
        end += len(text)
    return mark_tokens(spans, "".join(texts), marks)
