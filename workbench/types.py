"""Data types of the workbench, in the order of the data flow:

    Example -> Prompt -> Rollout -> TokenScores -> Routing -> loss -> traces

All types are frozen. Axis letters, used everywhere: B sequence, T position in a sequence, N completion positions of a
batch laid end to end, V vocabulary, K top-k, D hidden width. Log-probs, gaps and entropies are in nats.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

STUDENT = "student"  # name of the learner; a run can have peers too
VISIBLE, PRIVILEGED = "visible", "privileged"


@dataclass(frozen=True)
class Box:
    """A labeled rectangle in pixels of the example's first image; x0 < x1, y0 < y1, the far edge excluded."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""


@dataclass(frozen=True)
class Evidence:
    """Privileged evidence for teachers, which the deployed student does not have. All parts are optional."""

    boxes: tuple[Box, ...] = ()
    crops: tuple[Image.Image | Path, ...] = ()  # crop images, in order; by default one, cut from the first box
    caption: str | None = None
    hint: str | None = None  # location hint, without the answer
    crop_box: Box | None = None  # location of the first crop in the first image, for display only
    # statements of each part (crop, hint), if known
    facts: Mapping[str, frozenset[str]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Mark:
    """Labels parts of an answer: the first group of `pattern` at every match in the answer's text.

    kind   token type: template | location | attribute | tag | answer, or one of the dataset
    truth  visibility: "visible" if the plain prompt determines the part, "privileged" if only the evidence does, None
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
    """One question with its answers, evidence and annotations."""

    id: str
    question: str
    images: tuple[Image.Image | Path, ...] = ()
    answer: str | None = None  # final answer, for grading
    reference: str | None = None  # worked answer, for sequences of the dataset
    evidence: Evidence = Evidence()
    history: tuple[Turn, ...] = ()
    turns: tuple[Turn, ...] = ()  # the question and its images split over turns; see contexts.user_turns
    domain: str = ""  # question family
    marks: tuple[Mark, ...] = ()
    origin: str = ""  # file and row, for messages
    source: str = ""  # name of the source, if training data has several
    privileged_template: str = ""  # text of privileged prompts; see data/privileged_template.py
    others: "WrongEvidence | None" = field(default=None, compare=False, repr=False)


class WrongEvidence(Protocol):
    """Source of wrong evidence for an example; see workbench.data.counterparts."""

    def find(self, example: Example, part: str) -> Example | None:
        """Find an example of the same domain whose `part` (crop, hint, answer) is wrong here; None without one."""


@dataclass(frozen=True)
class Prompt:
    """Prompt of one policy under one context. `text` follows `images` in the last user turn."""

    images: tuple[Image.Image | Path, ...]
    text: str
    history: tuple[Turn, ...] = ()
    key: str = ""  # origin of the example and context; unique in a run, up to the rollout
    domain: str = ""  # of the example; selects the teacher
    future: tuple[tuple[int, ...], ...] = ()  # of a denoised answer, per step: revealed later positions

    @property
    def all_images(self) -> tuple[Image.Image | Path, ...]:
        """Images of all turns, in order."""
        return (*(image for turn in self.history for image in turn.images), *self.images)


@dataclass(frozen=True)
class DenoisingTrace:
    """Order in which a masked diffusion policy committed the tokens of an answer.

    steps   denoising step of each token, counted from 0 over the whole canvas
    block   positions that are denoised together before the next block
    canvas  number of positions; those after the end token close at its step
    seed    sampling seed, also of later random draws about this answer
    """

    steps: tuple[int, ...]
    block: int
    canvas: int
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return max(self.steps, default=-1) + 1

    def block_of(self, step: int) -> int:
        """Block of a denoising step."""
        return self.steps.index(step) // self.block

    def later(self, step: int, finished: bool) -> range:
        """Masked positions after a step's block; none once the end token has closed the canvas."""
        closed = finished and step > self.steps[-1]
        return range((self.block_of(step) + 1) * self.block, 0 if closed else self.canvas)


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. Scoring uses its token ids; the text is never tokenized again."""

    example: Example
    sample_idx: int  # index among the example's rollouts
    ids: tuple[int, ...]  # completion tokens, with the end token if it was sampled
    text: str  # decoded without special tokens
    finished: bool  # False: truncated at max_completion_length
    logprobs: tuple[float, ...] | None = None  # of the sampler, per token; None for sequences of the dataset
    reward: float | None = None  # 1.0 right, 0.0 wrong, None not graded
    sampled_by: str = STUDENT  # policy that sampled it, or "dataset"
    replies: tuple[str, ...] = ()  # replies to the early turns; part of the prompt, without loss
    remarks: tuple[str, ...] = ()  # of each peer, in reply to Method.peer_request
    annotations: tuple[tuple[str, float], ...] = ()  # facts of Method.annotate for the trace
    feedback: str | None = None  # text for the context "feedback"
    denoising: DenoisingTrace | None = None  # None: sampled from left to right
    entropies: tuple[float, ...] | None = None  # of the sampler, per token, if requested
    stop_string: str = ""  # that ended it, in place of an end token
    answer_prefix: str = ""  # text that the sampler's prompt puts before it, such as an opened thinking block
    sampler_step: int | None = None  # the sampler had the weights after this step, 0 = before training; None: not known

    @property
    def finish_reason(self) -> str:
        """What ended the answer: end_token, stop_string or length."""
        return "stop_string" if self.stop_string else "end_token" if self.finished else "length"


@dataclass(frozen=True)
class TokenScores:
    """Scores of one view at every position, as the routing rule sees them.

    NaN, and rank -1, at positions that the view does not score.
    """

    logprob: Float[Tensor, " N"]  # of the sampled token
    entropy: Float[Tensor, " N"]
    max_logprob: Float[Tensor, " N"]  # of the most likely token
    rank: Int[Tensor, " N"]  # of the sampled token, 0 = most likely


@dataclass(frozen=True)
class RouteBatch:
    """Input of a routing rule: a batch of rollouts whose positions are laid end to end."""

    scores: dict[str, TokenScores]  # by view name
    sequence: Int[Tensor, " N"]  # rollout index of a position
    position: Int[Tensor, " N"]  # index within its completion
    micro_batch: Int[Tensor, " N"]
    rollouts: tuple[Rollout, ...]
    seed: int  # of this step, for random rules
    token_texts: Callable[[tuple[int, ...]], list[str]] = lambda ids: [""] * len(ids)  # decodes token ids; slow

    @property
    def num_positions(self) -> int:
        return self.sequence.numel()


@dataclass(frozen=True)
class Routing:
    """Output of a routing rule: the regime of each position. Every position has exactly one."""

    regime: Int[Tensor, " N"]  # index into Method.regimes
    weight: Float[Tensor, " N"]  # factor of the position's losses; 0 = no supervision
    advantage: Float[Tensor, " N"] | None = None  # for losses with the target REWARD
    thresholds: dict[str, float] = field(default_factory=dict)  # thresholds of the rule, for the trace


def mark_tokens(text_spans: list[tuple[int, int]], text: str, marks: tuple[Mark, ...]) -> list[tuple[str, str | None]]:
    """Token type and visibility of each token, from its (start, end) characters in the answer's `text`.

    Later marks override earlier ones. Other tokens are ("template", "visible") if the example has marks, else ("",
    None).
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
    """As label_tokens, with the example's marks. The end token has no text, so "$" matches before it."""
    texts = [*texts[:-1], ""] if rollout.finished and texts else texts
    return label_tokens(texts, rollout.example.marks)


def label_tokens(texts: list[str], marks: tuple[Mark, ...]) -> list[tuple[str, str | None]]:
    """Token type and visibility of each token, from the tokens' texts, which joined are the answer."""
    spans, end = [], 0
    for text in texts:
        spans.append((end, end + len(text)))
        end += len(text)
    return mark_tokens(spans, "".join(texts), marks)
