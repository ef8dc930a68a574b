"""Contexts: the part of an example that a policy sees. A context is a name, or names joined by "+" (`boxes+caption`).

    plain       the images and the question: what the deployed student gets
    crop        plain, and the evidence crop, or several in their order, as more images
    crop_only   the evidence crops instead of the images (Vision-OPD's teacher, arXiv 2605.18740 section 3)
    marked      the first image with the box drawn on it in red (Vision-OPD's training prompt)
    boxes       plain, and labeled boxes as text, coordinates 0..99 of width and height
    caption     plain, and a description as text
    hint        plain, and where to look, as text
    answer      plain, and the final answer as text
    reference   plain, and the whole worked answer as text
    wrong_crop, wrong_hint, wrong_answer
                controls: as crop, hint and answer, taken from another example of the same domain
                (workbench.data.counterparts)
    feedback    plain, and feedback on the rollout that is scored
    concat      the question revealed part by part, all parts in one prompt
    turns       the question revealed part by part, a turn each, with the replies that came before the rollout
    future      plain, and a quarter of the later blocks of the denoised answer that is scored (d-OPSD, arXiv
                2606.18195, section 3); future:0.5 shows half

A teacher may see any of them. The deployed student sees `plain`, or the same information as `concat` or `turns`. Most
contexts depend on the example only; `feedback`, `turns` and `future` (ROLLOUT_DEPENDENT) also depend on the rollout.
"""

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from workbench.data.counterparts import WRONG
from workbench.data.images import MAX_PIXELS, open_image
from workbench.data.privileged_template import apply_template
from workbench.data.scripts import is_blank
from workbench.errors import ConfigError, DataError, unknown
from workbench.seeding import derive_seed
from workbench.types import Box, DenoisingTrace, Example, Prompt, Rollout, Turn

ROLLOUT_DEPENDENT = ("feedback", "turns", "future")
POST_ROLLOUT = ("feedback", "future")  # depend on an existing answer
FUTURE_FRACTION = 0.25  # default fraction of the positions of later blocks
_FORMS = ("plain", "concat", "turns")  # the same information, presented differently
EVIDENCE = ("crop", "crop_only", "marked", "boxes", "caption", "hint", "answer", "reference")
CONTEXTS = ("plain", *EVIDENCE, *WRONG, "feedback", "concat", "turns", "future")
_TEXTUAL = ("boxes", "caption", "hint", "reference", "answer")  # in prompt order
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def parse_context(context: str) -> tuple[str, ...]:
    """Split a context name into its parts. Raises ConfigError for an unknown part or an invalid combination."""
    names = [part.strip() for part in context.split("+")]
    for part in names:
        _fraction_of(part)
    parts = tuple("future" if part.startswith("future:") else part for part in names)
    for part in parts:
        if part not in CONTEXTS:
            raise ConfigError(unknown("context", part, CONTEXTS) + ' Join several with "+", as in boxes+caption.')
    if len(set(parts)) != len(parts) or ("plain" in parts and len(parts) > 1):
        raise ConfigError(
            f'context "{context}" repeats a part or adds "plain", which every context contains. Remove it.'
        )
    if "crop" in parts and "crop_only" in parts:
        raise ConfigError(f'context "{context}" shows the crop beside the image and instead of it. Choose one.')
    for wrong, part in WRONG.items():
        if wrong in parts and (part in parts or (part == "crop" and "crop_only" in parts)):
            raise ConfigError(f'context "{context}" shows the true {part} and a wrong one. Choose one.')
    forms = {"concat", "turns"}.intersection(parts)
    if len(forms) > 1 or (forms and {"crop_only", "marked"}.intersection(parts)):
        raise ConfigError(f'context "{context}": "{min(forms)}" sets the images itself. Choose one part.')
    return parts


def _fraction_of(part: str) -> float:
    """Parse the fraction of a part "future:FRACTION". Raises ConfigError unless it is a number from 0 to 1."""
    name, colon, number = part.partition(":")
    if name != "future" or not colon:
        return FUTURE_FRACTION
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f'context "{part}": the fraction of later blocks must be from 0 to 1, as in future:0.25.')
    return fraction


def is_privileged(context: str) -> bool:
    """Whether the context contains anything that the deployed student does not see."""
    return any(part not in _FORMS for part in parse_context(context))


def has_text_evidence(context: str) -> bool:
    """Whether the context shows evidence as text, and not as images alone."""
    parts = [WRONG.get(part, part) for part in parse_context(context)]
    return any(part in (*_TEXTUAL, "feedback") for part in parts)


def require_promptable(context: str) -> None:
    """Raise ConfigError for a context that depends on an existing answer, so that it cannot prompt a policy."""
    if any(part in POST_ROLLOUT for part in parse_context(context)):
        raise ConfigError(
            f'context "{context}" depends on an existing answer, so it cannot be used to prompt a policy. Use it for a '
            "scoring view."
        )


def depends_on_rollout(context: str) -> bool:
    """Whether the context depends on the rollout and not only on the example."""
    return any(part in ROLLOUT_DEPENDENT for part in parse_context(context))


def dummy_rollout(example: Example) -> Rollout:
    """Return a dummy rollout, to check whether a prompt can be built for an example under a context."""
    return Rollout(
        example,
        0,
        (),
        "",
        True,
        replies=("",) * (len(user_turns(example)) - 1),
        feedback="",
        denoising=DenoisingTrace((), 1, 1),
    )


def user_turns(example: Example) -> tuple[Turn, ...]:
    """Split the question and its images into turns: the example's own turns, else its sentences; () if it has only one.

    The question sentence (the last one with a question mark) comes first with all images, then the facts in order, so
    that every early reply is premature (CCOPD, arXiv 2605.30251). A sentence ends at . ! ? before a space, or with its
    line.
    """
    if example.turns:
        return example.turns
    sentences = [part.strip() for part in _SENTENCE_END.split(example.question) if part.strip()]
    if len(sentences) < 2:
        return ()
    question_idx = max((idx for idx, text in enumerate(sentences) if text.endswith("?")), default=len(sentences) - 1)
    first = Turn("user", sentences.pop(question_idx), example.images)
    return (first, *(Turn("user", text) for text in sentences))


def missing_evidence(example: Example, context: str) -> str | None:
    """Return the column that the context needs and the example lacks, or None. Ignores what a rollout provides."""
    for name in parse_context(context):
        part = WRONG.get(name, name)  # a control also needs the true evidence, to use the same examples
        if part in ("concat", "turns") and len(user_turns(example)) < 2:
            return "turns (or a question of several sentences)"
        if part in ("crop", "crop_only") and not example.evidence.crops and not example.evidence.boxes:
            return "boxes (or crop)"
        if part in ("boxes", "marked") and not example.evidence.boxes:
            return "boxes"
        cuts = part in ("crop", "crop_only") and not example.evidence.crops
        if (cuts or part in ("boxes", "marked")) and not example.images:
            return "images"
        if part in ("caption", "hint", "answer", "reference") and is_blank(_evidence(example, part)):
            return part
        if name in WRONG and _counterpart(example, name) is None:
            return f"wrong {part} (of another example of its domain)"
    return None


def _counterpart(example: Example, name: str) -> Example | None:
    return None if example.others is None else example.others.find(example, WRONG[name])


def is_missing_rollout_data(rollout: Rollout, context: str) -> bool:
    """Whether the rollout lacks what the context needs: feedback, replies to all earlier turns, or denoising steps.

    A view of such a context skips such a rollout.
    """
    parts = parse_context(context)
    unanswered = "turns" in parts and len(rollout.replies) != len(user_turns(rollout.example)) - 1
    undenoised = "future" in parts and rollout.denoising is None
    return unanswered or undenoised or ("feedback" in parts and rollout.feedback is None)


def build_prompt(example: Example, context: str, rollout: Rollout | None = None) -> Prompt:
    """Build the prompt of `example` under `context`; contexts in ROLLOUT_DEPENDENT need the rollout.

    Raises: ConfigError for an unknown context; DataError if the example or the rollout lacks the evidence.
    """
    parts = parse_context(context)
    if depends_on_rollout(context) and (rollout is None or is_missing_rollout_data(rollout, context)):
        raise DataError(
            f'{example.origin or example.id}: context "{context}" needs a rollout with feedback, replies to earlier '
            "turns, or denoising steps. Use it only for views that score rollouts."
        )
    missing = missing_evidence(example, context)
    if missing is not None:
        raise DataError(
            f'{example.origin or example.id} has no "{missing}"; context "{context}" needs one for every example. '
            "Add the column, drop such rows, or choose another context."
        )
    images, history, question = list(example.images), example.history, example.question
    if "turns" in parts:
        last = build_turn(example, rollout.replies)
        images, history, question = list(last.images), last.history, last.text
    if "concat" in parts:
        turns = user_turns(example)
        images, question = [image for turn in turns for image in turn.images], "\n".join(turn.text for turn in turns)
    if "marked" in parts:
        images[0] = draw_box(open_image(images[0]), example.evidence.boxes[0])
    if "crop" in parts:
        images += evidence_crops(example)
    if "crop_only" in parts:
        images = list(evidence_crops(example))
    sources = dict.fromkeys(parts, example) | {
        WRONG[name]: _counterpart(example, name) for name in parts if name in WRONG
    }
    if "wrong_crop" in parts:
        images += evidence_crops(sources["crop"])
    lines = [question]
    lines += [f"{part}: {evidence_text(sources[part], part)}" for part in _TEXTUAL if part in sources]
    if "feedback" in parts:
        lines.append(rollout.feedback)
    key = f"{example.origin or example.id}|{context}"
    future: tuple[tuple[int, ...], ...] = ()
    if "future" in parts:
        fraction = next(_fraction_of(part.strip()) for part in context.split("+") if part.strip().startswith("future"))
        future = _future(rollout, fraction)
    text = "\n".join(lines)
    if example.privileged_template and is_privileged(context):
        text = apply_template(example.privileged_template, question, "\n".join(lines[1:]))
    return Prompt(tuple(images), text, history, key, example.domain, future)


def _future(rollout: Rollout, fraction: float) -> tuple[tuple[int, ...], ...]:
    """Draw, for each denoising step, a fraction of the masked positions after its block, by the answer's seed."""
    denoising, revealed = rollout.denoising, []
    for step in range(denoising.num_steps):
        later = denoising.later(step, rollout.finished)
        draw = random.Random(derive_seed("future", denoising.seed, step))
        revealed.append(tuple(sorted(draw.sample(later, math.floor(fraction * len(later) + 0.5)))))
    return tuple(revealed)


def build_turn(example: Example, replies: tuple[str, ...]) -> Prompt:
    """Build the prompt of the next turn, after one turn for each reply."""
    turns = user_turns(example)
    pairs = zip(turns[: len(replies)], replies, strict=True)
    history = [turn for user_turn, reply in pairs for turn in (user_turn, Turn("assistant", reply))]
    turn, key = turns[len(replies)], f"{example.origin or example.id}|turns"
    return Prompt(turn.images, turn.text, (*example.history, *history), key, example.domain)


def evidence_text(example: Example, part: str) -> str:
    """Format a textual part of the evidence for a prompt."""
    if part == "boxes":
        width, height = open_image(example.images[0]).size
        return "; ".join(_box_text(box, width, height) for box in example.evidence.boxes)
    return _evidence(example, part)


def _evidence(example: Example, part: str) -> str:
    return getattr(example.evidence if part in ("caption", "hint") else example, part) or ""


def shown_texts(example: Example, context: str) -> Iterator[tuple[str, str]]:
    """Yield (column, text) of all texts of the example that a prompt under the context contains."""
    parts = parse_context(context)
    yield "question", example.question
    for idx, turn in enumerate(example.history):
        yield f"history[{idx}]", turn.text
    for idx, turn in enumerate(example.turns if {"concat", "turns"}.intersection(parts) else ()):
        yield f"turns[{idx}]", turn.text
    for idx, box in enumerate(example.evidence.boxes if "boxes" in parts else ()):
        yield f"boxes[{idx}].label", box.label
    for part in ("caption", "hint", "answer", "reference"):
        if part in parts:
            yield part, _evidence(example, part)
    if example.privileged_template and is_privileged(context):
        yield "data.privileged_template", example.privileged_template


def _box_text(box: Box, width: int, height: int) -> str:
    corners = (box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)
    numbers = " ".join(str(min(99, int(100 * corner))) for corner in corners)
    return f"{box.label or 'region'} at {numbers}"


def evidence_crops(example: Example) -> tuple[Image.Image | Path, ...]:
    """The example's own crops, or its first box cut out of its first image and, if small enough, enlarged twofold.

    Pixels that the box touches belong to it, so the crop of a box smaller than a pixel is one pixel.
    """
    if example.evidence.crops:
        return example.evidence.crops
    box = example.evidence.boxes[0]
    cut = open_image(example.images[0]).crop((int(box.x0), int(box.y0), math.ceil(box.x1), math.ceil(box.y1)))
    if 4 * cut.width * cut.height > MAX_PIXELS:
        return (cut,)
    return (cut.resize((2 * cut.width, 2 * cut.height), Image.Resampling.BICUBIC),)


def draw_box(image: Image.Image, box: Box) -> Image.Image:
    """A copy of the image with the box outlined in red."""
    marked = image.copy()
    width = max(1, min(image.size) // 100)
    corners = (box.x0, box.y0, max(box.x0, box.x1 - 1), max(box.y0, box.y1 - 1))
    ImageDraw.Draw(marked).rectangle(corners, outline=(255, 0, 0), width=width)
    return marked
