"""Scene questions and answers as English sentences, for models that speak: `scenes:eval?style=sentences`.

    what color is the star?                  at top left, color red, answer red
    What color is the star?                  The star at the top left is red.

An answer names the place first and ends with what was asked, so that the grader `final` reads it.
"""

import dataclasses
import re

from workbench.data.scenes.world import PLACES, TAGS
from workbench.errors import require_one_of
from workbench.types import VISIBLE, Example, Mark

STYLES = ("sentences",)
_AT = rf"at ({'|'.join(PLACES)})"
_ARTICLE = "a"  # no shape and no color of the world begins with a vowel
# family -> pattern of "question|reference", and the answer made of its groups
_ANSWERS = {
    "tag": (rf"of the (.+)\?\|{_AT}, tag (\w)", r"The \1 at the \2 has the tag \3."),
    "compare": (
        r"do the (.+) and the (.+) have .*\|.*?tag (\w), .*?tag (\w), answer (\w+)",
        r"The \1 has the tag \3 and the \2 has the tag \4, so the answer is \5.",
    ),
    "color": (rf"is the (\w+)\?\|{_AT}, color (\w+)", r"The \1 at the \2 is \3."),
    "shape": (
        rf"is the (\w+) object\?\|{_AT}, shape (\w+)",
        rf"The \1 object at the \2 is {_ARTICLE} \3.",
    ),
    "relation": (
        rf"shape is (.+) the (\w+ \w+)\?\|{_AT}, then {_AT}, shape (\w+)",
        rf"The \2 is at the \3 and \1 it is {_ARTICLE} \5.",
    ),
}
_PLACE = rf"\bat the ({'|'.join(PLACES)})"
_TAG = rf"\btag ([{''.join(TAGS)}])"
_LAST = r"(\w+)\.$"


def as_sentences(example: Example, style: str = "sentences") -> Example:
    """Write question, reference and marks of a scene example as sentences. Raises ConfigError for an unknown style."""
    require_one_of("style", style, STYLES)
    question = example.question[0].upper() + example.question[1:]
    return dataclasses.replace(example, question=question, reference=_answer(example), marks=_marks(example))


def _answer(example: Example) -> str:
    if example.domain == "count":
        places = re.findall(_AT, example.reference)
        listed = " and ".join(f"one at the {name}" for name in places)
        return f"There is {listed}, so the answer is {len(places)}."
    pattern, template = _ANSWERS[example.domain]
    return re.search(pattern, f"{example.question}|{example.reference}").expand(template)


def _marks(example: Example) -> tuple[Mark, ...]:
    """Marks of the sentence, with the visibility of the example's own marks."""
    visibility = next(mark.truth for mark in example.marks if mark.kind == "answer")
    marks = [Mark(_PLACE, "location", VISIBLE), Mark(_LAST, "answer", visibility)]
    if example.domain == "compare":
        first, second = (mark.truth for mark in example.marks if mark.kind == "tag")
        marks[1:1] = [Mark(rf"^.*?{_TAG}.*?\band\b", "tag", first), Mark(rf"\btag .*{_TAG}", "tag", second)]
    return tuple(marks)
