"""Draw data/scene.png, the built-in world in its readme: python docs/figures/scene.py

It shows what is seen and what is hidden, and the visibility of every answer token.
"""

import random

from PIL import Image, ImageDraw, ImageFont

from workbench.data.contexts import draw_box
from workbench.data.scenes import make_scene
from workbench.data.scenes.questions import Wish, ask
from workbench.data.scenes.world import Scene, full_view, original
from workbench.training.pretraining.tokenizer import IMAGE_SIZE, build_processor
from workbench.types import PRIVILEGED, VISIBLE, Example, mark_tokens

KIND_COLORS = {
    "template": (232, 234, 237),
    "location": (190, 215, 250),
    "attribute": (198, 232, 200),
    "tag": (255, 221, 158),
    "answer": (226, 203, 246),
}
_INK, _MUTED, _HIDDEN = (32, 34, 38), (105, 109, 116), (196, 30, 34)
_WIDTH, _PANEL, _GAP, _MARGIN = 1880, 420, 34, 49
_QUESTIONS = (  # family, visibility, and whether two compared tags are the same
    ("tag", PRIVILEGED, False),
    ("compare", PRIVILEGED, False),
    ("relation", VISIBLE, False),
)


def draw_figure(seed: int = 11) -> Image.Image:
    """One scene in four pictures, and three questions with the kind and visibility of every token."""
    scene, examples = _scene_with_questions(random.Random(seed))
    figure = Image.new("RGB", (_WIDTH, 1080), (255, 255, 255))
    draw = ImageDraw.Draw(figure)
    small = full_view(scene).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    panels = (
        ("Original", "576 px, shown to nobody", original(scene)),
        ("Full view", "288 px; the box is evidence", draw_box(full_view(scene), examples[0].evidence.boxes[0])),
        ("What the model gets of it", f"{IMAGE_SIZE} px, after its processor", small),
        ("Crop", "cut from the original: evidence", examples[0].evidence.crops[0]),
    )
    for idx, (title, subtitle, image) in enumerate(panels):
        x = _MARGIN + idx * (_PANEL + _GAP)
        draw.text((x, 38), title, font=_font(30), fill=_INK)
        draw.text((x, 78), subtitle, font=_font(21), fill=_MUTED)
        sampling = Image.Resampling.NEAREST if image is small else Image.Resampling.LANCZOS
        figure.paste(image.resize((_PANEL, _PANEL), sampling), (x, 116))
    y = 580
    tokenizer = build_processor().tokenizer
    for example in examples:
        y = _draw_answer(draw, tokenizer, example, y)
    _draw_legend(draw, y + 22)
    return figure.crop((0, 0, _WIDTH, y + 96))


def _scene_with_questions(rng: random.Random) -> tuple[Scene, list[Example]]:
    while True:
        scene = make_scene("eval", rng)
        examples = [ask(scene, Wish(family, visibility, same, 2), rng) for family, visibility, same in _QUESTIONS]
        one_of_each = {thing.readable for thing in scene.things} == {True, False}
        if all(examples) and one_of_each and len(scene.things) >= 6:
            return scene, examples


def _draw_answer(draw: ImageDraw.ImageDraw, tokenizer, example: Example, y: int) -> int:
    """A question and its answer token by token; returns where the next may begin."""
    draw.text((_MARGIN, y), example.question, font=_font(27), fill=_INK)
    encoded = tokenizer(example.reference, return_offsets_mapping=True, add_special_tokens=False)
    spans = encoded["offset_mapping"]
    x, y, height = _MARGIN, y + 44, 46
    for (start, end), (kind, visibility) in zip(
        spans, mark_tokens(spans, example.reference, example.marks), strict=True
    ):
        text = example.reference[start:end].strip()
        width = round(draw.textlength(text, font=_font(25))) + 26
        hidden = visibility == PRIVILEGED
        box = (x, y, x + width, y + height)
        edge = {"outline": _HIDDEN, "width": 4} if hidden else {}
        draw.rounded_rectangle(box, radius=9, fill=KIND_COLORS[kind], **edge)
        draw.text((x + 13, y + height / 2), text, font=_font(25), fill=_HIDDEN if hidden else _INK, anchor="lm")
        x += width + 7
    return y + height + 30


def _draw_legend(draw: ImageDraw.ImageDraw, y: int) -> None:
    x, font = _MARGIN, _font(21)
    for kind, color in KIND_COLORS.items():
        draw.rounded_rectangle((x, y, x + 30, y + 26), radius=6, fill=color)
        draw.text((x + 40, y + 13), kind, font=font, fill=_MUTED, anchor="lm")
        x += 40 + round(draw.textlength(kind, font=font)) + 34
    draw.rounded_rectangle((x, y, x + 30, y + 26), radius=6, outline=_HIDDEN, width=4)
    text = "privileged: the full view does not determine it, only the evidence does"
    draw.text((x + 40, y + 13), text, font=font, fill=_HIDDEN, anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    draw_figure().save("data/scene.png")
