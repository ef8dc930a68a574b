"""Draw examples with their evidence, to check data before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from workbench.data.contexts import EVIDENCE, build_prompt, evidence_crops, missing_evidence
from workbench.render.evidence import evidence
from workbench.render.page import render_page
from workbench.render.view import TokenView, ViewImage
from workbench.types import Example


def write_preview(examples: Sequence[Example], path: Path, title: str, costs: Mapping[str, str] | None = None) -> Path:
    """Write examples to a self-contained HTML file, replacing an older one; `costs`: image tokens by id, as text."""
    pages = [(example.id, example_html(example, (costs or {}).get(example.id, ""))) for example in examples]
    path.write_text(render_page(pages, title), "utf-8")
    return path


def evidence_of(example: Example) -> list[str]:
    """Contexts that the example has evidence for."""
    return [name for name in EVIDENCE if missing_evidence(example, name) is None]


def pictures_of(example: Example) -> tuple[ViewImage, ...]:
    """The example's images, the first with its boxes, and the crops."""
    boxes, pictures = example.evidence.boxes, []
    for image_idx, image in enumerate(example.images):
        title = "image" if len(example.images) == 1 else f"image {image_idx + 1}"
        drawn = boxes if image_idx == 0 else ()
        crop = None
        if image_idx == 0 and example.evidence.crop_box is not None:
            crop = replace(example.evidence.crop_box, label="")
        elif drawn and not example.evidence.crops:
            crop = replace(drawn[0], label="")
        note = "The boxes are evidence, which the student does not see." if drawn else ""
        pictures.append(ViewImage(title, image, drawn, crop, note))
    if missing_evidence(example, "crop") is None:
        crops = evidence_crops(example)
        first = "crop" if example.evidence.crops else "crop, cut from the first box"
        titles = [first] if len(crops) == 1 else [f"crop {idx + 1}" for idx in range(len(crops))]
        pictures += map(ViewImage, titles, crops)
    return tuple(pictures)


def example_html(example: Example, image_tokens: str = "") -> str:
    """One example as HTML: images with evidence, texts, and the prompt of each context."""
    contexts = [
        "plain",
        *(name for name in evidence_of(example) if name in ("boxes", "caption", "hint", "answer", "reference")),
    ]
    prompts = {"student" if name == "plain" else name: build_prompt(example, name).text for name in contexts}
    context_labels = {"student": "plain", **{name: "a privileged view" for name in prompts if name != "student"}}
    view = TokenView(example.id, example.question, "", (), pictures=pictures_of(example))
    words = TokenView(example.id, example.question, "", (), prompts=prompts, contexts=context_labels)
    facts = {
        "answer": example.answer,
        "reference": example.reference,
        "domain": example.domain,
        "image tokens": image_tokens,
        "from": example.origin,
        "marks": "; ".join(f"{mark.kind}: {mark.truth or 'visibility unknown'}" for mark in example.marks),
    }
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in facts.items()
        if value
    )
    turns = "".join(f"<p class='wb-faint'>{escape(turn.role)}: {escape(turn.text)}</p>" for turn in example.history)
    return (
        '<div class="wb-root"><div class="wb-body"><div class="wb-grid wbu-example">'
        f'{evidence(view)}<section class="wb-main"><div class="wb-question">'
        f'<span class="wb-ask">{escape(example.question)}</span></div>{turns}'
        f'<table class="wbu-facts"><tbody>{lines}</tbody></table></section>{evidence(words)}</div></div></div>'
    )
