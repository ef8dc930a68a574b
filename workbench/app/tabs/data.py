"""Data: examples with their evidence, and answers scored under every view of a run's checkpoint: an example's answer,
before and after a change, and the user's own image.

At most one checkpoint is in memory. Uploads have a size limit, are opened like any other image, and stay on this
machine.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.analysis.evals import answers_of
from workbench.analysis.table import table
from workbench.app.components import (
    Column,
    empty_html,
    fragment_component,
    read_asset,
    remount,
    rows_component,
    rows_html,
)
from workbench.app.context import (
    MAX_UPLOAD_MB,
    AppContext,
    Shared,
    note,
    render_error_in_place,
    sentence,
    show_errors,
)
from workbench.app.examples import (
    DECODE_LOCK,
    MAX_DECODED,
    MAX_EVALUATED_EXAMPLES,
    MAX_EXAMPLES,
    example_fragment,
    load,
)
from workbench.app.own_image import own_image_form
from workbench.app.scoring import OWN_IMAGE, SCORER
from workbench.app.view_prompts import prompts_html
from workbench.app.what_if import what_if, what_if_form
from workbench.config.schema import read_yaml
from workbench.data.images import open_image
from workbench.data.source_list import paths_in
from workbench.errors import DataError, WorkbenchError
from workbench.render import TokenView, ViewImage, render_tokens
from workbench.render.evidence import evidence
from workbench.render.examples import evidence_of
from workbench.runs.commands import value_at
from workbench.runs.jobs import config_file
from workbench.types import Box, Evidence, Example

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
COLUMNS = (
    Column("id", kind="short"),
    Column("domain", kind="short"),
    Column("question"),
    Column("answer", kind="short"),
    Column("evidence"),
)
_REVEAL = """watch("value", () => {
  const shown = element.querySelector(".app-note, .wb-root, .wbu-prompts");
  if (shown) element.scrollIntoView({ block: "nearest", behavior: "smooth" });
});"""
_WAITING = note("Loading what this run's views need. The first example of a run takes longest.")
NO_SOURCE = "This run lists no data. Enter a source above: a .jsonl or .parquet file, or scenes:eval?count=40."


def draw(
    context: AppContext, run: str | None, address: Mapping | None, source: str | None, *, is_typed: bool = False
) -> tuple:
    """Sources, the list of examples, the chosen example with its evidence, and the answer to score.

    An example of the address is searched in all data of the run. If the address also names a context, the answer to
    score is the student's answer in that context at the last evaluation.

    is_typed  whether the user has just entered the source; then a forbidden source is an error, otherwise the run's own
              source is listed instead
    """
    run_dir = context.run_dir(run)
    sources = sources_of(run_dir)
    try:
        source = chosen_source(context, run_dir, source)
    except DataError as error:
        if is_typed:
            return gr.Dropdown(choices=sources, value=source), empty_html(sentence(error)), "", gr.skip()
        source = chosen_source(context, run_dir, None)  # the page still has the source of another run
    chooser = gr.Dropdown(choices=sources, value=source)
    if source is None:
        return chooser, empty_html(NO_SOURCE), "", gr.skip()
    try:
        limit = MAX_EXAMPLES
        if not is_typed:
            limit = list_limit(run_dir, address)
            source = source_with(context, run_dir, source, address, limit)
            chooser = gr.Dropdown(choices=sources, value=source)
        examples, is_cut = load(source, limit, context.folders)
    except (WorkbenchError, OSError) as error:
        return chooser, empty_html(sentence(error)), "", gr.skip()
    example = find(examples, address)
    fragment = example_fragment(example) if example else ""
    return chooser, list_html(source, examples, example, is_cut), fragment, evaluated_answer(run_dir, address)


def list_limit(run_dir: Path, address: Mapping | None) -> int:
    """Number of examples to list; at least as many as were evaluated if the address names an evaluated example."""
    count = (
        value_at(read_yaml(run_dir / "config.yaml"), "evaluation.max_examples")
        if (address or {}).get("context")
        else None
    )
    return min(max(MAX_EXAMPLES, count), MAX_EVALUATED_EXAMPLES) if isinstance(count, int) else MAX_EXAMPLES


def source_with(context: AppContext, run_dir: Path, source: str, address: Mapping | None, limit: int) -> str:
    """The source of the run that has the address's example: this one if possible, and this one if none has it."""
    wanted = str((address or {}).get("example") or "")
    others = [value for _, value in sources_of(run_dir) if value != source] if wanted else []
    loaded = ((candidate, load(candidate, limit, context.folders)[0]) for candidate in (source, *others))
    return next(
        (candidate for candidate, examples in loaded if any(example.id == wanted for example in examples)), source
    )


def evaluated_answer(run_dir: Path, address: Mapping | None) -> object:
    """The student's answer to the address's example in the address's context, at the last evaluation."""
    example, context = (str((address or {}).get(name) or "") for name in ("example", "context"))
    if not (example and context):
        return gr.skip()
    rows = [row for row in answers_of(run_dir) if row.policy == "student"]
    last = max((row.step for row in rows), default=0)
    given = (row.text for row in rows if (row.step, row.example_id, row.context) == (last, example, context))
    return next(given, gr.skip())


def sources_of(run_dir: Path) -> list[tuple[str, str]]:
    """The data sources of the run's configuration, as (label, source)."""
    try:
        named = read_yaml(config_file(run_dir) or run_dir / "config.yaml").get("data")
    except WorkbenchError:
        return []
    if not isinstance(named, dict):
        return []
    labels = {"train": "training", "eval": "evaluation", "probes": "probes"}
    return [(f"{label}  {path}", path) for name, label in labels.items() for path in paths_in(named.get(name))]


def chosen_source(context: AppContext, run_dir: Path, source: str | None) -> str | None:
    """The source to list: `source`, else the run's own.

    Raises DataError if `source` is neither the run's own, nor built-in scenes, nor a file inside the runs folder. A
    read-only page reads only the run's own.
    """
    own_sources = [value for _, value in sources_of(run_dir)]
    if not source:
        return own_sources[-1] if len(own_sources) > 1 else own_sources[0] if own_sources else None
    if source in own_sources or (not context.read_only and _is_ours(context, source)):
        return source
    others = "" if context.read_only else f", built-in scenes (scenes:eval?count=40), or a file in {context.runs_dir}"
    raise DataError(
        f'source "{source}" is not allowed here. Expected data that the run names{others}. '
        "To view other data, start a run with it as data.train."
    )


def _is_ours(context: AppContext, source: str) -> bool:
    """Whether the app may read an entered source."""
    if source.startswith("scenes:"):
        return True
    file = Path(source.partition("?")[0]).resolve()
    return file.is_relative_to(context.runs_dir.resolve()) and file.is_file()


def find(examples: list[Example], address: Mapping | None) -> Example | None:
    """The address's example, else the first."""
    wanted = str((address or {}).get("example") or "")
    return next((example for example in examples if example.id == wanted), examples[0] if examples else None)


def list_html(source: str, examples: list[Example], chosen: Example | None, is_cut: bool = False) -> str:
    """Examples with their evidence as a table. is_cut: whether the images' size ended the list early."""
    rows = [
        {
            "id": example.id,
            "domain": example.domain or None,
            "question": example.question,
            "answer": example.answer,
            "evidence": ", ".join(evidence_of(example)) or None,
        }
        for example in examples
    ]
    more = f", the first {len(examples)}" if len(examples) >= MAX_EXAMPLES else ""
    more = f", the first {len(examples)}: more would exceed {MAX_DECODED >> 20} MiB of images" if is_cut else more
    rows_table = table(
        rows, [column.name for column in COLUMNS], run=f"{source}{more}", empty=f"{source} has no examples."
    )
    key = None if chosen is None else {"id": chosen.id}
    return rows_html(
        rows_table, COLUMNS, label="examples", key=("id",), chosen=key, title="Examples", tall=270, follow=True
    )


def parse_boxes(text: str, size: tuple[int, int]) -> tuple[Box, ...]:
    """Boxes as lines of "x0 y0 x1 y1 label", in pixels. Raises DataError naming the line."""
    boxes = []
    for number, line in enumerate((text or "").split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.replace(",", " ").split(maxsplit=4)
        try:
            x0, y0, x1, y1 = (float(part) for part in parts[:4])
        except ValueError:
            raise DataError(
                f'line {number} of the boxes is "{line.strip()}". Expected x0 y0 x1 y1 and a label, in pixels.'
            ) from None
        if not (x0 < x1 and y0 < y1):
            raise DataError(
                f'line {number} of the boxes, "{line.strip()}", has its corners in the wrong order. Expected x0 y0 x1 '
                "y1 with x0 < x1 and y0 < y1: first the upper left corner, then the lower right one."
            )
        if min(x0, y0) < 0 or x1 > size[0] or y1 > size[1]:
            raise DataError(
                f'line {number} of the boxes, "{line.strip()}", is not inside the image of {size[0]} x {size[1]} '
                "pixels. Correct the line."
            )
        boxes.append(Box(x0, y0, x1, y1, parts[4].strip() if len(parts) > 4 else ""))
    return tuple(boxes)


def own_example(
    file: str | None, question: str | None, answer: str | None, caption: str | None, hint: str | None, boxes: str | None
) -> Example:
    """The user's image and texts as an example. Raises DataError for an invalid file, box or question."""
    image = open_upload(file)
    if not (question or "").strip():
        raise DataError("the question is empty. Enter a question about the image.")
    return Example(
        OWN_IMAGE,
        question.strip(),
        (image,),
        answer=(answer or "").strip() or None,
        evidence=Evidence(
            parse_boxes(boxes, image.size), caption=(caption or "").strip() or None, hint=(hint or "").strip() or None
        ),
        origin=OWN_IMAGE,
    )


def open_upload(file: str | None) -> Any:
    """The uploaded image. Raises DataError if it is missing, too large, or not an image."""
    if not file:
        raise DataError(f"the image is missing. Upload a PNG, JPEG or WebP file of at most {MAX_UPLOAD_MB} MB.")
    path = Path(file)
    size = path.stat().st_size
    if size > MAX_UPLOAD_MB * 2**20:
        raise DataError(
            f"{path.name} has {size / 2**20:.0f} MB. Expected at most {MAX_UPLOAD_MB} MB. Shrink the image."
        )
    return open_image(path, name=path.name)


def preview(file: str | None, boxes: str | None) -> str:
    """The uploaded image with its boxes, on which the user can draw boxes; an error of the boxes stands above it."""
    if not file:
        return ""
    drawn: tuple[Box, ...] = ()
    fault = ""
    with DECODE_LOCK:
        try:
            image = open_upload(file)
        except DataError as error:
            return note(sentence(error), "error")
        try:
            drawn = parse_boxes(boxes, image.size)
        except DataError as error:
            fault = note(sentence(error), "error")
        picture = ViewImage("image", image, drawn, note="Drag on the image to draw a box.")
        pictures = evidence(TokenView("", "", "", (), pictures=(picture,)))
    return remount(f'{fault}<div class="wb-root"><div class="wb-body">{pictures}</div></div>')


def with_box(file: str | None, boxes: str | None, corners: Mapping) -> str:
    """The lines of boxes with a drawn box added; `corners` as shares of width and height."""
    with DECODE_LOCK:
        width, height = open_upload(file).size
    shares = [max(0.0, min(1.0, float(corners[name]))) for name in ("x0", "y0", "x1", "y1")]
    pixels = [round(share * size) for share, size in zip(shares, (width, height, width, height), strict=True)]
    return "\n".join(filter(None, [(boxes or "").rstrip(), f"{' '.join(map(str, pixels))} region"]))


def score(context: AppContext, run: str | None, example: Example, answer: str | None) -> str:
    """The answer's tokens under every view of the run's newest checkpoint, as HTML."""
    context.check_writable()
    view = SCORER.score(context.run_dir(run), example, (answer or "").strip() or None)
    return remount(render_tokens(view, standalone=False))


def score_own(
    context: AppContext,
    run: str | None,
    file: str | None,
    question: str | None,
    answer: str | None,
    caption: str | None,
    hint: str | None,
    boxes: str | None,
    given: str | None,
) -> str:
    """Score the uploaded image. Raises DataError if evidence of the run's views is missing."""
    context.check_writable()
    return score(context, run, own_example(file, question, answer, caption, hint, boxes), given)


def score_listed(
    context: AppContext, run: str | None, address: Mapping | None, source: str | None, given: str | None
) -> str:
    """Score the chosen example of the list."""
    context.check_writable()
    example, _ = listed_example(context, run, address, source)
    return score(context, run, example, given)


def prompts_of_listed(context: AppContext, run: str | None, address: Mapping | None, source: str | None) -> str:
    """The prompts of the chosen example of the list under every view of the run."""
    example, _ = listed_example(context, run, address, source)
    return prompts_html(context.run_dir(run), example)


def compare_listed(
    context: AppContext, run: str | None, address: Mapping | None, source: str | None, given: str | None, *change: Any
) -> str:
    """Score the chosen example of the list before and after a change; `change` as in what_if."""
    context.check_writable()
    return what_if(context, run, *listed_example(context, run, address, source), given, *change)


def listed_example(
    context: AppContext, run: str | None, address: Mapping | None, source: str | None
) -> tuple[Example, list[Example]]:
    """The chosen example of the list, and all that are listed. Raises DataError if the source lacks it."""
    run_dir = context.run_dir(run)
    chosen = chosen_source(context, run_dir, source)
    examples = load(chosen, list_limit(run_dir, address), context.folders)[0] if chosen else []
    example = find(examples, address)
    wanted = str((address or {}).get("example") or "")
    if example is None:
        raise DataError("no example to score. Choose a source that has examples.")
    if wanted and example.id != wanted:
        raise DataError(f'{chosen} has no example "{wanted}" among its first {len(examples)}. Choose one of the list.')
    return example, examples


def build_tab(context: AppContext, shared: Shared) -> None:
    """Examples with their evidence, a form for the user's own image, and scores under every view."""
    css = read_asset("data.css")
    is_open = not context.read_only
    with gr.Row(elem_classes="wbu-bar"):
        source = gr.Dropdown([], label="source", allow_custom_value=is_open, elem_id="data-source", scale=3)
        given = gr.Textbox(
            label="answer to score",
            placeholder="empty: sampled from the student",
            elem_id="data-given",
            max_lines=1,
            scale=2,
            interactive=is_open,
        )
        prompts_button = gr.Button("Show prompts", elem_id="data-show-prompts", scale=0, min_width=150)
        button = gr.Button("Score this example", elem_id="data-score", scale=0, min_width=190, interactive=is_open)
    listed = rows_component("examples", elem_id="data-list")
    example_view = gr.HTML(
        label="the example", js_on_load=None, css_template=css, apply_default_css=False, elem_id="data-example"
    )
    prompts = fragment_component("prompts of the views", js=_REVEAL, css_template=css, elem_id="data-prompts")
    scored = fragment_component("supervision of each token", js=_REVEAL, elem_id="data-scored")
    change = what_if_form(is_open)
    compared = fragment_component(
        "the answer before and after the change", js=_REVEAL, css_template=css, elem_id="data-compared"
    )
    form = own_image_form(is_open, list(KINDS))

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    inputs, outputs = [shared.run, shared.address, source], [source, listed, example_view, given]
    drawing = show_errors(partial(draw, context), len(outputs))
    shared.on_show("data", drawing, inputs, outputs)
    source.input(show_errors(partial(draw, context, is_typed=True), len(outputs)), inputs, outputs, **quiet)

    def add_box(event: gr.EventData, dropped: str, lines: str) -> str:
        return with_box(dropped, lines, event.corners)

    shared.on_choose(listed, {"example": "id"})
    shown_boxes = [form.file, form.boxes]
    gr.on([form.file.change, form.boxes.change], show_errors(preview), shown_boxes, form.picture, **quiet)
    form.picture.box(show_errors(add_box), shown_boxes, form.boxes, **quiet)
    events = (
        (button.click, scored, score_listed, [shared.run, shared.address, source, given]),
        (form.button.click, scored, score_own, [shared.run, *form.inputs]),
        (change.button.click, compared, compare_listed, [shared.run, shared.address, source, given, *change.inputs]),
        (prompts_button.click, prompts, prompts_of_listed, [shared.run, shared.address, source]),
    )
    busy = {"show_progress": "hidden", "concurrency_limit": 1, "concurrency_id": "scorer", "api_visibility": "private"}
    for event, result, callback, values in events:
        event(None, None, result, js=f"() => {json.dumps(_WAITING)}")
        event(render_error_in_place(partial(callback, context), [result]), values, result, **busy)
    stale = [shared.address.change, source.input, shared.run.change]
    gr.on(stale, None, None, [scored, compared, prompts], js="() => ['', '', '']")
