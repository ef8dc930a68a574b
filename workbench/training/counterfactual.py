"""What if? An answer is scored again with one thing changed: the evidence taken away or swapped, or a token edited.

    scorer = open_scorer("runs/demo")
    before = scorer.score(example, "at top left, tag K, answer K")
    after = without_evidence(scorer, example, before)
    after = with_evidence_of(scorer, example, other, before)
    after = with_token(scorer, example, before, 4, "Q")

The run's own policies score both under its method; the answer's tokens stay, except the edited ones. A rule that
compares with means of its batch (DOPD) compares with the tokens of this one answer.
"""

from collections.abc import Sequence
from dataclasses import replace

from workbench.data.contexts import EVIDENCE, evidence_crops, is_privileged, missing_evidence, parse_context
from workbench.data.counterparts import WRONG, contradicts
from workbench.data.images import open_image
from workbench.distill.method import Method, View
from workbench.errors import DataError, TraceError, show
from workbench.traces.reader import TracedRollout
from workbench.training.scorer import Scorer
from workbench.types import Box, Example


def shown_evidence(method: Method) -> tuple[str, ...]:
    """Kinds of evidence that the views of a method show, such as crop, in the order of `EVIDENCE`."""
    parts = {WRONG.get(part, part) for view in method.views.values() for part in parse_context(view.context)}
    return tuple(part for part in EVIDENCE if part in parts)


def without_evidence(scorer: Scorer, example: Example, before: TracedRollout) -> TracedRollout:
    """Score the answer with every privileged view reduced to what the student sees.

    Raises: DataError if no view of the method sees evidence.
    """
    method = scorer.method
    privileged = {name for name, view in method.views.items() if is_privileged(view.context)}
    if not privileged:
        raise DataError(f"no view of {method.name} sees evidence, so none can be taken away. Choose another change.")
    views = {
        name: View(view.policy, method.learner_context, view.learns) if name in privileged else view
        for name, view in method.views.items()
    }
    return scorer.score(example, ids=_ids(before), method=replace(method, views=views))


def with_evidence_of(scorer: Scorer, example: Example, other: Example, before: TracedRollout) -> TracedRollout:
    """Score the answer with the evidence of another example in place of its own, as far as the views show it.

    Raises: DataError if `other` lacks evidence that a view shows, or the views show none that can be swapped.
    """
    return scorer.score(swap_evidence(example, other, scorer.method), ids=_ids(before))


def swap_evidence(example: Example, other: Example, method: Method) -> Example:
    """The example with the evidence of `other`; boxes are scaled from its image to the example's.

    Raises: DataError as with_evidence_of.
    """
    parts = shown_evidence(method)
    if not parts:
        raise DataError(f"no view of {method.name} sees evidence that can be swapped. Choose another change.")
    for part in parts:
        lacking = missing_evidence(other, part)
        if lacking is not None:
            raise DataError(
                f'example {show(other.id)} has no "{lacking}", which views of this run see. Choose another.'
            )
    evidence = replace(other.evidence, boxes=_scaled(other.evidence.boxes, other, example))
    if {"crop", "crop_only"}.intersection(parts):
        evidence = replace(evidence, crops=evidence_crops(other), crop_box=None)
    texts = {name: getattr(other, name) for name in ("answer", "reference") if name in parts}
    return replace(example, evidence=evidence, **texts)


def others_of(example: Example, examples: Sequence[Example], method: Method) -> list[Example]:
    """Examples whose evidence can be swapped in, those of the same domain whose evidence contradicts first."""
    parts = shown_evidence(method)
    usable = [
        other
        for other in examples
        if other.id != example.id and all(missing_evidence(other, part) is None for part in parts)
    ]

    def is_like(other: Example) -> bool:
        part = WRONG_PART.get(parts[0], parts[0]) if parts else "crop"
        return other.domain == example.domain and contradicts(example, other, part)

    return sorted(usable, key=lambda other: not is_like(other)) if parts else []


WRONG_PART = {"crop_only": "crop", "marked": "crop", "boxes": "crop", "caption": "hint", "reference": "answer"}


def with_token(scorer: Scorer, example: Example, before: TracedRollout, position: int, text: str) -> TracedRollout:
    """Score the answer with one token replaced by the tokens of `text`; an empty text deletes it.

    Raises: TraceError for a position outside of the answer; DataError if the text holds a special token, or nothing of
        the answer is left.
    """
    ids = _ids(before)
    if not 0 <= position < len(ids):
        raise TraceError(f"the answer has no token {position}. Its tokens are 0 to {len(ids) - 1}. Choose one of them.")
    edited = (*ids[:position], *scorer.learner.student.answer_ids(text)[:-1], *ids[position + 1 :])
    if not edited:
        raise DataError("nothing of the answer is left. Write a text for the token.")
    return scorer.score(example, ids=edited)


def _ids(traced: TracedRollout) -> tuple[int, ...]:
    return tuple(position["token_id"] for position in traced.tokens)


def _scaled(boxes: Sequence[Box], other: Example, example: Example) -> tuple[Box, ...]:
    """The boxes at the same place of the example's first image."""
    if not (boxes and other.images and example.images):
        return tuple(boxes)
    (width, height), (from_width, from_height) = (open_image(item.images[0]).size for item in (example, other))
    x, y = width / from_width, height / from_height
    return tuple(replace(box, x0=x * box.x0, y0=y * box.y0, x1=x * box.x1, y1=y * box.y1) for box in boxes)
