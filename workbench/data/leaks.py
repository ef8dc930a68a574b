"""Find answers that the student's own prompt already contains.

A reference is searched as a whole, an answer as whole words, both without case and punctuation. An answer that occurs
only among the choices of a question, as in "(A) red (B) blue" or "Is it red or blue?", is counted separately. Answers
of one or two letters, numbers below 100, yes and no are not searched, since most texts contain them by chance.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from workbench.data.contexts import parse_context
from workbench.types import Example

_LEAST_REFERENCE = 12  # characters; a shorter reference is searched as an answer is
_TOO_COMMON = ("yes", "no", "true", "false", "none", "left", "right")
_WORD_BREAK = re.compile(r"(?:\\[nrt]|[\W_])+")  # includes line breaks escaped by JSON
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_OPTION_LINE = re.compile(r"(?m)^[ \t]*(?:[-*\u2022]|[(\[]?(?:[A-Za-z]|\d{1,2})[)\].:\uff1a\u3001])[ \t]*\S.*$")
_OPTION = re.compile(r"(?<![\w'])[(\[]?[A-H][)\].:\uff1a\u3001]")
_OPTIONS_LABEL = re.compile(r"(?i)\b(?:options|choices|choose (?:one )?(?:from|of|between|among))\b")
_ALTERNATIVES = re.compile(
    r"(?i)[^.!?\n\u3002\uff1f]*(?:\bor\b|\u8fd8\u662f|\u6216|\u305d\u308c\u3068\u3082)[^.!?\n\u3002\uff1f]*"
)


@dataclass(frozen=True)
class Leaks:
    """Counts of examples whose answer or reference occurs in the student's prompt."""

    num_examples: int = 0  # examples with an answer or a reference
    in_prompt: tuple[str, ...] = ()  # row of each example whose prompt contains its answer or reference
    num_references: int = 0  # of these, whole references
    num_among_choices: int = 0  # answers that occur among choices only
    num_not_searched: int = 0  # answers that are too short or too common

    def __str__(self) -> str:
        text = f"{len(self.in_prompt)} of {self.num_examples} prompts of the student hold the answer or the reference"
        if self.num_references:
            text += f" ({self.num_references} the whole reference)"
        if self.in_prompt:
            text += (
                f"; first: {self.in_prompt[0]}. Check these rows: the question may contain it by chance, or may give "
                "the answer away"
            )
        if self.num_among_choices:
            text += f"; {self.num_among_choices} more offer it among choices, which is usual"
        if self.num_not_searched:
            text += f"; {self.num_not_searched} answers are too short or too common to be searched"
        return text


def find_leaks(examples: Iterable[Example], context: str) -> Leaks:
    """Search the text that the student is shown under `context` for the answer and the reference of each example."""
    places, in_prompt = [], []
    for example in examples:
        if not (example.answer or example.reference):
            continue
        places.append(leak_of(example, context))
        if places[-1] in ("prompt", "reference"):
            in_prompt.append(example.origin or example.id)
    counts = [places.count(kind) for kind in ("reference", "choices", "not searched")]
    return Leaks(len(places), tuple(in_prompt), *counts)


def leak_of(example: Example, context: str = "plain") -> str:
    """Classify what the student's prompt contains.

    Returns "reference" (the whole reference), "prompt" (the answer), "choices" (the answer, only among choices), "not
    searched" (an answer that is too short or too common) or "" (neither).
    """
    text = _shown_text(example, context)
    words = _words(text)
    reference, answer = _words(example.reference or ""), _words(example.answer or "")
    if len(reference) >= _LEAST_REFERENCE and _holds(words, reference):
        return "reference"
    answer = answer or (reference if len(reference) < _LEAST_REFERENCE else "")
    if not answer:
        return ""
    if _is_common(answer):
        return "not searched"
    if not _holds(words, answer):
        return ""
    return "prompt" if _holds(_words(_without_choices(text)), answer) else "choices"


def _shown_text(example: Example, context: str) -> str:
    """All text of the prompt except boxes, including evidence of the context."""
    parts = parse_context(context)
    texts = [turn.text for turn in (*example.history, *example.turns)] + [example.question]
    texts += [getattr(example.evidence, part) or "" for part in ("caption", "hint") if part in parts]
    return "\n".join(texts)


def _words(text: str) -> str:
    """Words in lower case, a single space between them."""
    return _WORD_BREAK.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _holds(words: str, sought: str) -> bool:
    if _UNSPACED.search(sought):
        return sought in words
    return f" {sought} " in f" {words} "


def _is_common(answer: str) -> bool:
    if _UNSPACED.search(answer):
        return len(answer) < 2
    return len(answer) <= 2 or answer in _TOO_COMMON


def _without_choices(text: str) -> str:
    """Remove choices: lines of options, the text after (A) or "Options:", and sentences with "or"."""
    label = _OPTIONS_LABEL.search(text)
    if label:
        text = text[: label.start()]
    if len(_OPTION_LINE.findall(text)) >= 2:
        text = _OPTION_LINE.sub(" ", text)
    options = list(_OPTION.finditer(text))
    if len(options) >= 2:
        text = text[: options[0].start()]
    return _ALTERNATIVES.sub(" ", text)
