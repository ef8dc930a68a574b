"""The form of the Data tab for scoring the user's own image."""

from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from workbench.app.components import empty_html, read_asset
from workbench.app.context import MAX_UPLOAD_MB


@dataclass(frozen=True)
class OwnImageForm:
    """Components of the form; `inputs` in the order of `data.score_own`."""

    file: gr.File
    picture: gr.HTML
    boxes: gr.Textbox
    inputs: list[Component]
    button: gr.Button


def own_image_form(is_open: bool, kinds: list[str]) -> OwnImageForm:
    """Lay out the form, collapsed; `kinds`: accepted file extensions."""
    with gr.Accordion("Your own image", open=False, elem_id="data-own"):
        if not is_open:
            message = "This page is read-only. Open the app without --read-only to score your own image."
            gr.HTML(empty_html(message), elem_classes="wbu", apply_default_css=False)
        with gr.Row(visible=is_open):
            with gr.Column(scale=2, min_width=320):
                file = gr.File(
                    label=f"image, at most {MAX_UPLOAD_MB} MB",
                    file_types=kinds,
                    type="filepath",
                    height=120,
                    elem_id="data-file",
                )
                picture = gr.HTML(
                    label="your image",
                    js_on_load=read_asset("boxes.js"),
                    css_template=read_asset("data.css"),
                    apply_default_css=False,
                    elem_id="data-preview",
                )
            with gr.Column(scale=3, min_width=320):
                question = gr.Textbox(label="question", elem_id="data-question", max_lines=3)
                boxes = gr.Textbox(
                    label="boxes: x0 y0 x1 y1 label, in pixels, one per line; or drag on the image",
                    lines=2,
                    elem_id="data-boxes",
                )
                with gr.Row():
                    answer = gr.Textbox(label="reference answer, if known", max_lines=1, elem_id="data-answer")
                    hint = gr.Textbox(label="hint: where to look", max_lines=1, elem_id="data-hint")
                caption = gr.Textbox(
                    label="caption, for views with context caption", max_lines=3, elem_id="data-caption"
                )
                given = gr.Textbox(
                    label="answer to score",
                    placeholder="empty: sampled from the student",
                    max_lines=1,
                    elem_id="data-own-given",
                )
                button = gr.Button("Score under every view", variant="primary", elem_id="data-own-score")
    return OwnImageForm(file, picture, boxes, [file, question, answer, caption, hint, boxes, given], button)
