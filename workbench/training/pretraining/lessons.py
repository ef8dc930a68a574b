"""Training samples of the built-in models: prompts with completions, an endless deterministic stream.

Questions alone do not suffice for a model this small: it learns the words of an answer and ignores the image. Two kinds
of captions prevent that. Captions in order of place, tag first, teach the content of a cell (with the tag last accuracy
stays at chance). Captions in random order of objects, place last, teach the place of an object.

workbench.data.contexts builds the prompts, so the model is trained on the same prompts that it gets later.
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
# Sampling weights: captions by their task, questions by their context.
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
# Captions only, for the first steps of a model that must locate objects reliably.
CAPTIONS_ONLY = dict.fromkeys(MIX, 0) | {DESCRIBE: 25, LIST: 50, SHAPES: 25}


@dataclass(frozen=True)
class Lesson:
    prompt: Prompt
    completion: str


def make_lesson(
    seed: int, index: int, *, families: tuple[str, ...] | None = None, mix: dict[str, float] | None = None
) -> Lesson:
    """Make lesson number `index`. `families` limits the questions, not the captions; `mix` replaces weights of MIX."""
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
