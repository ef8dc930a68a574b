"""What the built-in models learn from: prompts with the answers to be written, an endless deterministic stream.

Questions alone are not enough for a model this small: it learns the words of an answer and never to look. Two kinds of
captions teach looking. Told place by place, with the tag first, they teach what is in a cell (with the tag last it
stays at chance); told thing by thing, with the place last and in random order, they teach where a thing is.

Prompts are made by workbench.data.contexts, so a model is trained on exactly what it is shown later.
"""

import random
from dataclasses import dataclass

from workbench.data.contexts import build_prompt
from workbench.data.scenes import make_examples, make_scene
from workbench.data.scenes.questions import describe_crop, describe_seen, list_things
from workbench.data.scenes.world import crop, full_view
from workbench.types import Example, Prompt

DESCRIBE, LIST, SHAPES, DETAIL = "describe the scene", "find the objects", "find the shape", "describe the detail"
CAPTIONS = (DESCRIBE, LIST, SHAPES, DETAIL)
# Weights of the kinds of lessons: captions by what is asked, questions by the context they are asked in.
MIX = {
    DESCRIBE: 20,
    LIST: 20,
    SHAPES: 0,
    DETAIL: 10,
    "plain": 22,
    "crop": 15,
    "boxes": 2,
    "hint": 2,
    "caption": 1,
    "marked": 1,
    "crop_only": 1,
    "boxes+crop": 1,
    "answer": 4,
    "reference": 1,
}
# For the first steps of a model that is to find things reliably: no questions yet.
LOOKING = dict.fromkeys(MIX, 0) | {DESCRIBE: 25, LIST: 50, SHAPES: 25}


@dataclass(frozen=True)
class Lesson:
    prompt: Prompt
    completion: str


def make_lesson(
    seed: int, index: int, *, families: tuple[str, ...] | None = None, mix: dict[str, float] | None = None
) -> Lesson:
    """Lesson number `index`. `families` limits the questions, not the captions; `mix` replaces weights of MIX."""
    rng = random.Random(f"lesson:{seed}:{index}")
    weights = MIX | (mix or {})
    (kind,) = rng.choices(list(MIX), weights=[weights[kind] for kind in MIX])
    if kind in CAPTIONS:
        return _caption(kind, rng)
    (example,) = make_examples("train", seed=seed, start=index, count=1, families=families)
    return Lesson(build_prompt(example, kind), example.reference)


def _caption(kind: str, rng: random.Random) -> Lesson:
    scene = make_scene("train", rng)
    if kind == DETAIL:
        thing = rng.choice(scene.things)
        image, text = crop(scene, thing.cell), describe_crop(thing)
    else:
        image = full_view(scene)
        text = describe_seen(scene) if kind == DESCRIBE else list_things(scene, rng, by_shape=kind == SHAPES)
    return Lesson(build_prompt(Example(id="", question=kind, images=(image,)), "plain"), text)
