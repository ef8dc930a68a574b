"""The evidence column: images as the views saw them, with boxes and crop, and the prompts."""

import base64
import io
from html import escape

from PIL import Image

from workbench.data.images import open_image
from workbench.errors import DataError
from workbench.render.view import STUDENT, VIEW_ORDER, TokenView, ViewImage
from workbench.types import Box

MAX_SIDE = 640  # pixels of an embedded image's longer side
_SMALL = 256  # images up to this size are embedded without loss and enlarged pixel by pixel


def evidence(view: TokenView) -> str:
    """The left column as HTML; "" without images and prompts."""
    if not view.pictures and not view.prompts:
        return ""
    figures = "".join(_figure(picture) for picture in view.pictures)
    return f'<aside class="wb-evidence" aria-label="evidence">{figures}{_prompts(view)}</aside>'


def data_uri(image: Image.Image) -> str:
    """The image as a data URI, at most MAX_SIDE pixels long: PNG if small, else WebP."""
    thumbnail = image.copy()
    thumbnail.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    kind = "png" if max(thumbnail.size) <= _SMALL else "webp"
    buffer = io.BytesIO()
    thumbnail.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 86}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(picture: ViewImage) -> str:
    title = escape(picture.title, quote=True)
    try:
        image = open_image(picture.image)
    except DataError as error:  # shown in place of the image
        note = f'<p class="wb-note">{escape(str(error))}</p>'
        return f'<figure class="wb-figure"><figcaption>{title}</figcaption>{note}</figure>'
    width, height = image.size
    pixelated = " wb-pixelated" if max(width, height) <= _SMALL else ""
    drawn = "".join(_box(box, width, "wb-box") for box in picture.boxes)
    if picture.crop is not None:
        drawn += _box(picture.crop, width, "wb-crop")
    overlay = (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'
        if drawn
        else ""
    )
    labels = "".join(_label(box, width, height) for box in (*picture.boxes, *filter(None, [picture.crop])) if box.label)
    note = f'<p class="wb-note">{escape(picture.note)}</p>' if picture.note else ""
    return (
        f'<figure class="wb-figure"><figcaption>{title}<span class="wb-size">{width} × {height}</span></figcaption>'
        f'<div class="wb-picture" style="--ratio:{width}/{height}">'
        f'<img class="wb-image{pixelated}" alt="{title}" src="{data_uri(image)}">{overlay}{labels}</div>{note}</figure>'
    )


def _box(box: Box, width: int, kind: str) -> str:
    # a bright stroke over a dark one is visible on any image
    shape = f'x="{box.x0:g}" y="{box.y0:g}" width="{box.x1 - box.x0:g}" height="{box.y1 - box.y0:g}"'
    title = f"<title>{escape(box.label)}</title>" if box.label else ""
    return f'<rect class="wb-under" {shape}/><rect class="{kind}" {shape}>{title}</rect>'


def _label(box: Box, width: int, height: int) -> str:
    """The box's label above its upper left corner, or inside if there is not enough room above."""
    side = f"right:{100 - 100 * box.x1 / width:.1f}%" if box.x0 > 0.6 * width else f"left:{100 * box.x0 / width:.1f}%"
    inside = " wb-inside" if box.y0 < 0.08 * height else ""
    return f'<span class="wb-label{inside}" style="top:{100 * box.y0 / height:.1f}%;{side}">{escape(box.label)}</span>'


def _prompts(view: TokenView) -> str:
    """Each distinct prompt once; lines that are not in the student's prompt are marked as privileged."""
    if not view.prompts:
        return ""
    order = [name for name in VIEW_ORDER if name in view.prompts] + [n for n in view.prompts if n not in VIEW_ORDER]
    views_by_prompt: dict[str, list[str]] = {}
    for name in order:
        views_by_prompt.setdefault(view.prompts[name], []).append(name)
    plain_lines = set(view.prompts.get(STUDENT, "").split("\n")) if STUDENT in view.prompts else None
    blocks = []
    for text, names in views_by_prompt.items():
        lines = []
        for line in text.split("\n"):
            extra = plain_lines is not None and line not in plain_lines
            lines.append(f"<mark>{escape(line)}</mark>" if extra else escape(line))
        caption = " · ".join(f"{name} ({view.contexts[name]})" if view.contexts.get(name) else name for name in names)
        blocks.append(
            f'<div class="wb-prompt"><div class="wb-caption">{escape(caption)}</div>'
            f"<pre>{chr(10).join(lines)}</pre></div>"
        )
    return f'<details class="wb-prompts" open><summary>Prompts by view</summary>{"".join(blocks)}</details>'
