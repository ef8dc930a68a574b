"""Wrong evidence: the evidence of another example, for the contexts wrong_crop, wrong_hint and wrong_answer.

A gain that remains with a wrong crop does not come from the content of the crop. Wrong evidence therefore looks like
true evidence: the same part, from an example of the same domain. It is drawn with the example's id as seed and is never
true by accident: known answers differ, the text or image differs, and known facts (of built-in scenes) do not overlap.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from workbench.seeding import derive_seed
from workbench.types import Example

WRONG = {"wrong_crop": "crop", "wrong_hint": "hint", "wrong_answer": "answer"}  # context -> the part that is replaced
DRAWS = 32  # random draws before all examples of the domain are tried in order


class Counterparts:
    """Index of a dataset's examples that finds wrong evidence for each of them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_domain: dict[str, list[Example]] = {}
        for example in examples:
            self._by_domain.setdefault(example.domain, []).append(example)
        self._drawn: dict[tuple[str, str], Example | None] = {}

    def __reduce__(self) -> tuple:
        return Counterparts, ((),)  # a pickled example does not carry its whole dataset

    def find(self, example: Example, part: str) -> Example | None:
        """Find an example whose `part` (crop, hint, answer) is wrong for `example`; None if its domain has none."""
        key = (example.id, part)
        if key not in self._drawn:
            self._drawn[key] = self._draw(example, part)
        return self._drawn[key]

    def _draw(self, example: Example, part: str) -> Example | None:
        candidates = self._by_domain.get(example.domain, [])
        if not candidates:
            return None
        rng = random.Random(derive_seed("counterpart", part, example.id))
        drawn = (rng.choice(candidates) for _ in range(DRAWS))
        first = rng.randrange(len(candidates))
        in_order = (candidates[(first + offset) % len(candidates)] for offset in range(len(candidates)))
        return next((other for other in (*drawn, *in_order) if contradicts(example, other, part)), None)


def contradicts(example: Example, other: Example, part: str) -> bool:
    """Whether `other` has the evidence `part` and it is wrong for `example`."""
    if None not in (example.answer, other.answer) and _normalized(example.answer) == _normalized(other.answer):
        return False
    facts = [evidence.facts.get(part, frozenset()) for evidence in (example.evidence, other.evidence)]
    if facts[0] & facts[1]:
        return False
    wrong = _identity(other, part)
    return wrong is not None and wrong != _identity(example, part)


def _identity(example: Example, part: str) -> object:
    """Return a value that is equal for equal evidence; None without evidence."""
    evidence = example.evidence
    if part == "answer":
        return None if example.answer is None else _normalized(example.answer)
    if part == "hint":
        return None if evidence.hint is None else _normalized(evidence.hint)
    if evidence.crops:
        return tuple(map(_picture, evidence.crops))
    if not (evidence.boxes and example.images):
        return None
    box = evidence.boxes[0]
    return _picture(example.images[0]), (box.x0, box.y0, box.x1, box.y1)


def _picture(image: Image.Image | Path) -> object:
    return image if isinstance(image, Path) else (image.size, hashlib.blake2b(image.tobytes()).digest())


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())
