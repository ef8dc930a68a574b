"""Questions about a scene, with worked answers, evidence, and the visibility of every part of the answer.

An answer locates first, then reads, then states: "at top left, tag X, answer X". Families (Example.domain):

    tag       what is the tag of the red star?                        one tag
    compare   do the red star and the blue circle have the same tag?  two tags, yes or no
    color     what color is the star?                                 asked of the only star
    shape     what shape is the red object?                           asked of the only red object
    count     how many red objects are there?  how many stars ...     located one by one
    relation  what shape is below the red star?                       a neighbor in the grid

Half of the tag and compare questions need a small tag, which only the evidence shows; a compare question never
needs two. All others can be answered from the full view.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from workbench.data.scenes.world import GRID, PLACES, TAGS, Scene, Thing, cell_box, crop, full_view
from workbench.types import PRIVILEGED, VISIBLE, Box, Evidence, Example, Mark

FAMILIES = ("tag", "compare", "color", "shape", "count", "relation")
# of any eight consecutive examples, one tag and one compare question need the evidence
CYCLE = (
    *(("tag", VISIBLE), ("color", VISIBLE), ("compare", PRIVILEGED), ("count", VISIBLE)),
    *(("tag", PRIVILEGED), ("shape", VISIBLE), ("compare", VISIBLE), ("relation", VISIBLE)),
)
_NEIGHBORS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
_PLACE = rf"({'|'.join(PLACES)})"
_TAG = rf"\btag ([{''.join(TAGS)}])"


@dataclass(frozen=True)
class Wish:
    """Requirements of a question, drawn before scenes are tried, so that answers do not depend on what is easy to find.

    visibility   visibility: whether the full view determines the answer
    same    compare questions: whether the two tags are the same
    number  count questions: the answer
    pairs   (shape, color) pairs to ask about; None = any
    """

    family: str
    visibility: str
    same: bool
    number: int
    pairs: frozenset | None = None


def ask(scene: Scene, wish: Wish, rng: random.Random) -> Example | None:
    """Make a question about the scene that meets the wish; None if the scene has none."""
    candidates = [thing for thing in scene.things if wish.pairs is None or (thing.shape, thing.color) in wish.pairs]
    rng.shuffle(candidates)
    for thing in candidates:
        example = _ASK[wish.family](scene, thing, wish, rng)
        if example is not None:
            return example
    return None


def describe(scene: Scene) -> str:
    """Describe the whole scene, small tags included: the caption used as evidence."""
    return "; ".join(f"at {thing.location}, tag {thing.tag}, {thing.name}" for thing in scene.things)


def describe_seen(scene: Scene) -> str:
    """Describe the full view, in the order of `describe` and without small tags."""
    parts = (f"tag {thing.tag}, " if thing.readable else "" for thing in scene.things)
    pairs = zip(scene.things, parts, strict=True)
    return "; ".join(f"at {thing.location}, {part}{thing.name}" for thing, part in pairs)


def list_things(scene: Scene, rng: random.Random, *, by_shape: bool = False) -> str:
    """List the things of the full view as "name at place" in random order; by_shape leaves the colors out."""
    things = list(scene.things)
    rng.shuffle(things)
    return "; ".join(f"{thing.shape if by_shape else thing.name} at {thing.location}" for thing in things)


def describe_crop(thing: Thing) -> str:
    return f"tag {thing.tag}, {thing.name}"


def _ask_tag(scene: Scene, thing: Thing, wish: Wish, rng: random.Random) -> Example | None:
    if thing.readable != (wish.visibility == VISIBLE):
        return None
    marks = (_location(), Mark(_TAG, "tag", wish.visibility), _answer(wish.visibility))
    reference = f"at {thing.location}, tag {thing.tag}, answer {thing.tag}"
    return _example(scene, "tag", f"what is the tag of the {thing.name}?", reference, marks, [thing])


def _ask_compare(scene: Scene, thing: Thing, wish: Wish, rng: random.Random) -> Example | None:
    """Compare two tags. If the pair needs evidence, its first box, and so the crop, shows the small tag."""
    others = [other for other in scene.things if other is not thing]
    fitting = [
        other
        for other in others
        if thing.readable + other.readable == (2 if wish.visibility == VISIBLE else 1)
        and (other.tag == thing.tag) == wish.same
    ]
    if not fitting:
        return None
    pair = [thing, rng.choice(fitting)]
    rng.shuffle(pair)
    first, second = pair
    answer = "yes" if wish.same else "no"
    visibilities = [VISIBLE if item.readable else PRIVILEGED for item in pair]
    marks = (
        _location(),
        Mark(rf"^\D*?{_TAG}", "tag", visibilities[0]),
        Mark(rf"\btag .*{_TAG}", "tag", visibilities[1]),
        _answer(wish.visibility),
    )
    reference = f"at {first.location}, tag {first.tag}, at {second.location}, tag {second.tag}, answer {answer}"
    question = f"do the {first.name} and the {second.name} have the same tag?"
    return _example(scene, "compare", question, reference, marks, sorted(pair, key=lambda item: item.readable))


def _ask_color(scene: Scene, thing: Thing, wish: Wish, rng: random.Random) -> Example | None:
    if sum(other.shape == thing.shape for other in scene.things) > 1:
        return None
    reference = f"at {thing.location}, color {thing.color}, answer {thing.color}"
    marks = (_location(), Mark(r"\bcolor (\w+)", "attribute", VISIBLE), _answer(VISIBLE))
    return _example(scene, "color", f"what color is the {thing.shape}?", reference, marks, [thing])


def _ask_shape(scene: Scene, thing: Thing, wish: Wish, rng: random.Random) -> Example | None:
    if sum(other.color == thing.color for other in scene.things) > 1:
        return None
    reference = f"at {thing.location}, shape {thing.shape}, answer {thing.shape}"
    marks = (_location(), Mark(r"\bshape (\w+)", "attribute", VISIBLE), _answer(VISIBLE))
    return _example(scene, "shape", f"what shape is the {thing.color} object?", reference, marks, [thing])


def _ask_count(scene: Scene, thing: Thing, wish: Wish, rng: random.Random) -> Example | None:
    by_color = rng.random() < 0.5
    key = (lambda other: other.color) if by_color else (lambda other: other.shape)
    matching = [other for other in scene.things if key(other) == key(thing)]
    if len(matching) != wish.number:
        return None
    reference = "".join(f"at {other.location}, " for other in matching) + f"answer {len(matching)}"
    question = f"how many {key(thing)}{' object' if by_color else ''}s are there?".replace("crosss", "crosses")
    return _example(scene, "count", question, reference, (_location(), _answer(VISIBLE)), matching)


def _ask_relation(scene: Scene, thing: Thing, wish: Wish, rng: random.Random) -> Example | None:
    row, column = divmod(thing.cell, GRID)
    by_cell = {other.cell: other for other in scene.things}
    neighbors = {}
    for relation, (down, right) in _NEIGHBORS.items():
        inside = 0 <= row + down < GRID and 0 <= column + right < GRID
        if inside and (cell := (row + down) * GRID + column + right) in by_cell:
            neighbors[relation] = by_cell[cell]
    if not neighbors:
        return None
    relation, other = rng.choice(list(neighbors.items()))
    reference = f"at {thing.location}, then at {other.location}, shape {other.shape}, answer {other.shape}"
    marks = (_location(), Mark(r"\bshape (\w+)", "attribute", VISIBLE), _answer(VISIBLE))
    return _example(scene, "relation", f"what shape is {relation} the {thing.name}?", reference, marks, [other, thing])


def _location() -> Mark:
    return Mark(rf"\bat {_PLACE}", "location", VISIBLE)


def _answer(visibility: str) -> Mark:
    return Mark(r"\banswer (\w+)", "answer", visibility)


def _example(
    scene: Scene, family: str, question: str, reference: str, marks: tuple[Mark, ...], things: list[Thing]
) -> Example:
    """Build an example without an id. The first of `things` shows the answer."""
    boxes = tuple(Box(*cell_box(thing.cell), label=thing.name) for thing in things)
    hint = " and ".join(f"at {thing.location}" for thing in things)
    target = things[0]
    facts = {
        "crop": frozenset((f"tag {target.tag}", target.color, target.shape)),
        "hint": frozenset(thing.location for thing in things),
    }
    return Example(
        id="",
        question=question,
        images=(full_view(scene),),
        answer=reference.rpartition(" ")[2],
        reference=reference,
        evidence=Evidence(boxes, (crop(scene, target.cell),), describe(scene), hint, crop_box=boxes[0], facts=facts),
        domain=family,
        marks=marks,
    )


_ASK: dict[str, Callable[[Scene, Thing, Wish, random.Random], Example | None]] = {
    "tag": _ask_tag,
    "compare": _ask_compare,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "relation": _ask_relation,
}
