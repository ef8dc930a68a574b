"""Contexts: what a policy is shown of an example. A context is a name, or names joined by "+" (`boxes+caption`).

    plain       the images and the question: what the deployed student gets
    crop        plain, and the evidence crop as one more image
    crop_only   the evidence crop instead of the images (Vision-OPD's teacher, arXiv 2605.18740 section 3)
    marked      the first image with the box drawn on it in red (Vision-OPD's training prompt)
    boxes       plain, and labelled boxes as text, coordinates 0..99 of width and height
    caption     plain, and a description as text
    hint        plain, and where to look, as text
    answer      plain, and the final answer as text
    reference   plain, and the whole worked answer as text

A teacher may be shown any of them; the deployed student gets `plain`.
"""

import math
from pathlib import Path

from PIL import Image, ImageDraw

from workbench.errors import ConfigError, DataError, unknown
from workbench.images import MAX_PIXELS, open_image
from workbench.types import Box, Example, Prompt

CONTEXTS = ("plain", "crop", "crop_only", "marked", "boxes", "caption", "hint", "answer", "reference")
_TEXTUAL = ("boxes", "caption", "hint", "reference", "answer")  # in the order in which they are written


def parse_context(context: str) -> tuple[str, ...]:
    """The parts of a context name. Raises ConfigError for an unknown part or one that cannot be combined."""
    parts = tuple(part.strip() for part in context.split("+"))
    for part in parts:
        if part not in CONTEXTS:
            raise ConfigError(unknown("context", part, CONTEXTS) + ' Join several with "+", as in boxes+caption.')
    if len(set(parts)) != len(parts) or ("plain" in parts and len(parts) > 1):
        raise ConfigError(f'context "{context}" repeats a part or adds "plain", which every context contains.')
    if "crop" in parts and "crop_only" in parts:
        raise ConfigError(f'context "{context}" asks for the crop beside the image and instead of it; choose one.')
    return parts


def is_privileged(context: str) -> bool:
    """Whether the context shows anything that the deployed student does not get."""
    return context != "plain"


def missing_evidence(example: Example, context: str) -> str | None:
    """The column that the context needs and the example lacks, or None."""
    for part in parse_context(context):
        if part in ("crop", "crop_only") and example.evidence.crop is None and not example.evidence.boxes:
            return "boxes (or crop)"
        if part in ("boxes", "marked") and not example.evidence.boxes:
            return "boxes"
        cuts = part in ("crop", "crop_only") and example.evidence.crop is None
        if (cuts or part in ("boxes", "marked")) and not example.images:
            return "images"
        if part in ("caption", "hint") and not getattr(example.evidence, part):
            return part
        if part in ("answer", "reference") and not getattr(example, part):
            return part
    return None


def build_prompt(example: Example, context: str) -> Prompt:
    """What a policy is shown of `example` under `context`.

    Raises: ConfigError for an unknown context; DataError naming the example if it lacks the evidence.
    """
    parts = parse_context(context)
    missing = missing_evidence(example, context)
    if missing is not None:
        raise DataError(
            f'{example.origin or example.id} has no "{missing}"; context "{context}" needs one for every example. '
            "Add the column, drop such rows, or choose another context."
        )
    images = list(example.images)
    if "marked" in parts:
        images[0] = draw_box(open_image(images[0]), example.evidence.boxes[0])
    if "crop" in parts:
        images.append(evidence_crop(example))
    if "crop_only" in parts:
        images = [evidence_crop(example)]
    lines = [example.question]
    lines += [f"{part}: {evidence_text(example, part)}" for part in _TEXTUAL if part in parts]
    return Prompt(tuple(images), "\n".join(lines), example.history, key=f"{example.origin or example.id}|{context}")


def evidence_text(example: Example, part: str) -> str:
    """A textual part of the evidence as it is written into a prompt."""
    if part == "boxes":
        width, height = open_image(example.images[0]).size
        return "; ".join(_box_text(box, width, height) for box in example.evidence.boxes)
    if part in ("caption", "hint"):
        return getattr(example.evidence, part)
    return getattr(example, part)


def _box_text(box: Box, width: int, height: int) -> str:
    corners = (box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)
    numbers = " ".join(str(min(99, int(100 * corner))) for corner in corners)
    return f"{box.label or 'region'} at {numbers}"


def evidence_crop(example: Example) -> Image.Image | Path:
    """The example's own crop, or its first box cut out of its first image and, if small enough, enlarged twofold.

    Pixels that the box touches belong to it, so the crop of a box smaller than a pixel is one pixel.
    """
    if example.evidence.crop is not None:
        return example.evidence.crop
    box = example.evidence.boxes[0]
    cut = open_image(example.images[0]).crop((int(box.x0), int(box.y0), math.ceil(box.x1), math.ceil(box.y1)))
    if 4 * cut.width * cut.height > MAX_PIXELS:
        return cut
    return cut.resize((2 * cut.width, 2 * cut.height), Image.Resampling.BICUBIC)


def draw_box(image: Image.Image, box: Box) -> Image.Image:
    """A copy of the image with the box outlined in red."""
    marked = image.copy()
    width = max(1, min(image.size) // 100)
    corners = (box.x0, box.y0, max(box.x0, box.x1 - 1), max(box.y0, box.y1 - 1))
    ImageDraw.Draw(marked).rectangle(corners, outline=(255, 0, 0), width=width)
    return marked
