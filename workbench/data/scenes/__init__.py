"""Built-in world: rendered scenes for which every answer token is known to be visible or privileged.

    make_examples("eval", seed=0, start=0, count=64)

An example depends only on split, seed and index. Splits:

    train    3 to 6 things
    eval     the same distribution, without the scenes of train, for all seeds
    combos   questions about color-shape combinations that train and eval never contain
    hard     8 or 9 things
"""

import dataclasses
import random
import zlib
from functools import lru_cache

from workbench.data.counterparts import contradicts
from workbench.data.scenes.questions import CYCLE, FAMILIES, Wish, ask
from workbench.data.scenes.world import COLORS, GRID, SHAPES, TAGS, WITHHELD, Scene, Thing
from workbench.errors import ConfigError, DataError, require_one_of
from workbench.seeding import derive_seed
from workbench.types import Example

SPLITS = ("train", "eval", "combos", "hard")
_HELD_OUT_SHARE = 4  # one scene in four belongs to the splits for evaluation
_SHIFTS = (-2, 0, 2)
_DRAWN_FROM = 10**6  # rounds of CYCLE from which wrong evidence is drawn


def make_examples(
    split: str, *, seed: int = 0, start: int = 0, count: int, families: tuple[str, ...] | None = None
) -> list[Example]:
    """Make examples start .. start + count - 1 of a split.

    families  keep only these question families; start and count refer to them, ids stay the same. None = all

    Raises: ConfigError for an unknown split or family, DataError for a negative range.
    """
    check_split(split)
    positions = family_places(families)
    if start < 0 or count < 0:
        raise DataError(f"scenes:{split}: count and start must be 0 or more, got count={count}, start={start}.")
    turns = (divmod(number, len(positions)) for number in range(start, start + count))
    return [_make_example(split, seed, turn * len(CYCLE) + positions[idx]) for turn, idx in turns]


def check_split(split: str) -> None:
    require_one_of("scenes split", split, SPLITS)


def family_places(families: tuple[str, ...] | None) -> tuple[int, ...]:
    """Return the indices in CYCLE of the questions of some families. Raises ConfigError for an unknown family."""
    if families == ():
        raise ConfigError(f"families is empty. Choose from: {', '.join(FAMILIES)}.")
    for family in families or ():
        require_one_of("question family", family, FAMILIES)
    return tuple(idx for idx, (family, _) in enumerate(CYCLE) if families is None or family in families)


def _make_example(split: str, seed: int, index: int) -> Example:
    family, visibility = CYCLE[index % len(CYCLE)]
    rng = random.Random(f"{split}:{seed}:{index}:{family}:{visibility}")
    pairs = WITHHELD if split == "combos" else None
    wish = Wish(family, visibility, same=rng.random() < 0.5, number=rng.randint(1, 3), pairs=pairs)
    while True:
        example = ask(make_scene(split, rng), wish, rng)
        if example is not None:
            name = f"scenes:{split}:{seed}:{index}"
            return dataclasses.replace(example, id=name, origin=name, others=_OTHERS)


class _OtherScenes:
    """Wrong evidence for a scene's question: draws other scenes until the evidence of one is wrong for it.

    They have the example's split, seed and index in CYCLE, and so the same family and visibility.
    """

    def find(self, example: Example, part: str) -> Example | None:
        split, seed, index = example.origin.split(":")[1:4]  # the id may name a source too
        return _other_scene(split, int(seed), int(index), part)


@lru_cache(maxsize=4096)
def _other_scene(split: str, seed: int, index: int, part: str) -> Example:
    rng = random.Random(derive_seed("counterpart", part, split, seed, index))
    example = _make_example(split, seed, index)
    while True:
        turn = rng.randrange(_DRAWN_FROM)
        other = _make_example(split, seed, turn * len(CYCLE) + index % len(CYCLE))
        if contradicts(example, other, part):
            return other


_OTHERS = _OtherScenes()


def make_scene(split: str, rng: random.Random) -> Scene:
    """Draw a scene of the split. A scene's content decides whether it belongs to training."""
    while True:
        scene = _draw_scene(split, rng)
        if (_digest(scene) % _HELD_OUT_SHARE == 0) != (split == "train"):
            return scene


def _draw_scene(split: str, rng: random.Random) -> Scene:
    number = rng.randint(8, 9) if split == "hard" else rng.randint(3, 6)
    combinations = [(shape, color) for shape in SHAPES for color in COLORS if (shape, color) not in WITHHELD]
    chosen = rng.sample(combinations, number)
    if split == "combos":
        chosen[0] = rng.choice(sorted(WITHHELD))
        rng.shuffle(chosen)
    cells = sorted(rng.sample(range(GRID * GRID), number))
    return Scene(
        tuple(
            Thing(
                cell=cell,
                shape=shape,
                color=color,
                tag=rng.choice(TAGS),
                readable=rng.random() < 0.5,
                shift=(rng.choice(_SHIFTS), rng.choice(_SHIFTS)),
            )
            for cell, (shape, color) in zip(cells, chosen, strict=True)
        )
    )


def _digest(scene: Scene) -> int:
    """Hash a scene without its shifts: the same things moved by a pixel are the same scene."""
    return zlib.crc32(" ".join(f"{t.cell}{t.shape}{t.color}{t.tag}{t.readable}" for t in scene.things).encode())


__all__ = [
    "FAMILIES",
    "SPLITS",
    "Scene",
    "Thing",
    "check_split",
    "family_places",
    "make_examples",
    "make_scene",
]
