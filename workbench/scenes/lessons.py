"""What the built-in models learn from: prompts with the answers to be written, an endless deterministic stream.

Questions alone are not enough for a model this small: it learns the words of an answer and never to look. Two kinds of
captions teach looking. Told place by place, with the tag first, they teach what is in a cell (with the tag last it stays
at chance); told thing by thing, with the place last and in random order, they teach where a thing is.

Prompts are made by workbench.contexts, so a model is trained on exactly what it is shown later.
"""

import random
from dataclasses import dataclass

from workbench.contexts import build_prompt
from workbench.scenes import make_examples, make_scene
from workbench.scenes.questions import describe_crop, describe_seen, list_things
from workbench.scenes.world import crop, full_view
from workbench.types import Example, Prompt

DESCRIBE, LIST, DETAIL = "describe the scene", "find the objects", "describe the detail"
# Weights of the kinds of lessons; those of captions add up to 50, those of questions, by context, to 50 too.
CAPTIONS = {DESCRIBE: 20, LIST: 20, DETAIL: 10}
QUESTIONS = {
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


@dataclass(frozen=True)
class Lesson:
    prompt: Prompt
    completion: str


def make_lesson(
    seed: int, index: int, *, families: tuple[str, ...] | None = None, caption_percent: float = 50
) -> Lesson:
    """Lesson number `index`; `families` limits the questions, not the captions."""
    rng = random.Random(f"lesson:{seed}:{index}")
    weights = [weight * caption_percent for weight in CAPTIONS.values()]
    weights += [weight * (100 - caption_percent) for weight in QUESTIONS.values()]
    (kind,) = rng.choices([*CAPTIONS, *QUESTIONS], weights=weights)
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
        image, text = full_view(scene), describe_seen(scene) if kind == DESCRIBE else list_things(scene, rng)
    return Lesson(build_prompt(Example(id="", question=kind, images=(image,)), "plain"), text)
