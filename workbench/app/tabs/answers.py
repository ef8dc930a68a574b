"""Browse in Answers: a page of answers, and one of them token by token beside its image evidence.

1. The address has the open answer (step, rollout, process, probe), its pinned token, the page of the list, the text of
   the filter (workbench.traces.selection) and the lists' choices; all of them must hold.
2. Choosing a row or a filter only changes the address; a change of the address draws the tab.
3. Hovering, pinning and coloring happen in the browser. The up and down keys in an answer open its neighbor in the
   list.
"""

import functools
import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr

from workbench.analysis import tokens
from workbench.analysis.eval_answers import EvaluationAnswers
from workbench.analysis.query import Answers, answers_as_json
from workbench.analysis.table import NO_TRACES
from workbench.app import evaluated_answers
from workbench.app.components import (
    TRACES,
    Column,
    answer_address,
    empty_html,
    evenly_spaced,
    fragment_component,
    int_param,
    read_asset,
    remount,
    rows_component,
    rows_html,
)
from workbench.app.context import (
    CHOICES,
    AppContext,
    Shared,
    choice,
    persistent_params,
    sentence,
    show_errors,
    sync_to_url,
)
from workbench.app.live_updates import follow_run
from workbench.app.related_answers import question_html, related_html
from workbench.errors import TraceError, WorkbenchError
from workbench.render import render_tokens
from workbench.traces.reader import Traces
from workbench.traces.selection import GRADES, TOKEN, Selection, parse_selection

TALL = 640  # pixels above which the list scrolls
MAX_EXPORTED = 10_000
# the address has list=closed while the list is folded
FOLD = """(address) => ({ ...address, list: address?.list ? "" : "closed" })"""
SHOW_LIST = """(address) => {
    const [body, isClosed] = [document.querySelector("#answers-body"), address?.list === "closed"];
    if (!body) return; // the tab was never open
    body.classList.toggle("answers-closed", isClosed);
    document.querySelector("#answers-fold").textContent = isClosed ? "▸ List" : "◂ List";
}"""
# the browser saves the file when its link has been drawn, which stays as the count of what was saved
DOWNLOAD = """(file) => { if (file) setTimeout(() => document.querySelector("#answers-link")?.click(), 100); }"""

PAGE_SIZE = 20
_SOURCE_PARAMS = ("probe", "evaluation")
_ROW_PARAMS = (*_SOURCE_PARAMS, "example", "filter", "list_page")  # stay in the address when a row is opened
KEY = ("step", "process", "rollout")
# parameter of the address -> field of the selection; choices come from the run
FILTERS = {
    "at_step": "step",
    "regime": "token.regime",
    "domain": "domain",
    "token_type": "token.token_type",
    "visibility": "token.visibility",
}
GRADE_CHOICES = (("any", ""), *((grade, grade) for grade in GRADES))
SORTABLE = (
    *("step", "tokens", "reward", "loss", "information_gap", "abs_information_gap", "capability_gap"),
    *("abs_capability_gap", "contribution", "domain", "example"),
)
SOURCES = (("training", ""), ("probes", "probe"), ("evaluations", "evaluation"))
# the source is one of two parameters of the address; another source has other answers
SOURCE_JS = """(address, chosen) => {
    const { probe, evaluation, step, rollout, process, token, list_page, ...rest } = address;
    return chosen ? { ...rest, [chosen]: "1" } : rest;
}"""
ANSWER_PARAMS = ("step", "rollout", "process", "token", "list_page")  # dropped from the address with another list
EXAMPLES_OF_FILTERS = "word, /reg(ex|ular)/, tokens>200, token.information_gap>2 …"
COLUMNS = (
    Column("answer"),
    Column("right", "grade", "right"),
    Column("step", kind="number"),
    Column("rollout", kind="number"),
    Column("tokens", "", "number"),
    Column("information_gap", kind="signed"),
    Column("capability_gap", kind="signed"),
    Column("loss", kind="number"),
    Column("regimes", kind="short"),
    Column("question"),
    Column("expected", kind="short"),
)


def draw(context: AppContext, run: str | None, address: Mapping | None) -> tuple:
    """Filters, search, example, source, list, position in the list, answer.

    Raises: TraceError for a wrong filter, with the place of what is wrong.
    """
    run_dir = context.run_dir(run)
    address = address or {}
    answers = answers_at(run_dir, address)
    choices = choices_of(answers)
    selection = select(address, choices)
    try:
        key, token, fault = key_of(address), int_param(address, "token"), ""
    except WorkbenchError as error:
        key, token, fault = None, None, sentence(error)
    keys, total, page_idx = _keys(answers, selection, page_of(address))
    key_opened = key or (keys[0] if keys else None)
    with ThreadPoolExecutor(1) as executor:  # reads the answer and the list in parallel
        answer = executor.submit(draw_answer, answers, key_opened, selection, run or "", token)
        listed, position = draw_list(answers, selection, page_idx, total, key)
    fragment = empty_html(fault) if fault else answer.result()
    order = f"{'-' if selection.descending else ''}{selection.order}"
    ordered = gr.Dropdown(orders(selection.source), value=order)
    boxes = [*_filter_boxes(choices, selection), str(selection.value_of("grade") or ""), ordered]
    search, source = str(address.get("filter") or ""), next((name for name in _SOURCE_PARAMS if address.get(name)), "")
    return *boxes, search, str(address.get("example") or ""), source, listed, position, fragment


def answers_at(run_dir: Path, address: Mapping) -> Traces | EvaluationAnswers | None:
    """What holds the answers of the address's source; None for a run without traces."""
    is_evaluation = (
        address.get("evaluation") or parse_selection(str(address.get("filter") or "")).source == "evaluation"
    )
    return EvaluationAnswers(run_dir) if is_evaluation else TRACES.of(run_dir)


def orders(source: str) -> list[tuple[str, str]]:
    """Choices of the list's order, as (label, value)."""
    return [
        (f"{'|' * is_size}{name.removeprefix('abs_').replace('_', ' ')}{'|' * is_size} {arrow}", sign + name)
        for name in (evaluated_answers.SORTABLE if source == "evaluation" else SORTABLE)
        for is_size in [name.startswith("abs_")]
        for arrow, sign in (("↓", "-"), ("↑", ""))
    ]


def choices_of(answers: Traces | EvaluationAnswers | None) -> dict[str, list]:
    """Recorded values of each list of filters, by field of the selection."""
    if isinstance(answers, EvaluationAnswers):
        return answers.choices()
    choices = tokens.choices(answers) if answers is not None else {}
    return {field: choices.get(field.removeprefix(TOKEN), []) for field in FILTERS.values()}


def _filter_boxes(choices: Mapping[str, list], selection: Selection) -> list[gr.Dropdown]:
    """The lists of filters; those that the source's answers do not have are hidden."""
    offered = {**choices, "step": evenly_spaced(choices["step"])}
    filters = _filters(selection.source)
    boxes = []
    for name in FILTERS:
        field = filters.get(name, "")
        value = selection.value_of(field)
        boxes.append(
            gr.Dropdown(
                choices=[("any", ""), *((str(option), str(option)) for option in offered.get(field, ()))],
                value="" if value is None else str(int(value) if isinstance(value, float) else value),
                allow_custom_value=field == "step",
                visible=bool(field),
            )
        )
    return boxes


def _filters(source: str) -> Mapping[str, str]:
    return evaluated_answers.FILTERS if source == "evaluation" else FILTERS


def select(address: Mapping, choices: Mapping[str, list]) -> Selection:
    """The selection of the address: the text of its filter, and its lists' choices.

    Choices that this run or source lacks are ignored, as after a change of run. Raises: TraceError for a wrong filter.
    """
    source = "probes" if address.get("probe") else "evaluation" if address.get("evaluation") else None
    selection = parse_selection(str(address.get("filter") or ""), source)
    for name, field in _filters(selection.source).items():
        value = choice(address, "answers", name, [str(option) for option in choices[field]])
        selection = selection.add(field, "=", value) if value else selection
    grade = choice(address, "answers", "grade", GRADES)
    selection = selection.add("grade", "=", grade) if grade else selection
    if address.get("example"):
        selection = selection.add("example", "=", str(address["example"]))
    order = choice(address, "answers", "order", [value for _, value in orders(selection.source)])
    if order and order != CHOICES["answers"]["order"]:
        selection = selection.sorted_by(order.removeprefix("-"), descending=order.startswith("-"))
    return selection


def key_of(address: Mapping | None) -> dict | None:
    """The key of the address's answer, or None. Raises TraceError if a parameter is not a number."""
    step, rollout = int_param(address, "step"), int_param(address, "rollout")
    if step is None or rollout is None:
        return None
    return {"step": step, "process": int_param(address, "process") or 0, "rollout": rollout}


def page_of(address: Mapping | None) -> int:
    """Index of the list's page; 0 if the address has an invalid one."""
    try:
        return int_param(address, "list_page") or 0
    except WorkbenchError:
        return 0


def draw_list(
    answers: Traces | EvaluationAnswers | None, selection: Selection, page_idx: int, total: int, key: dict | None
) -> tuple[str, str]:
    """A page of the list, and its position, both as HTML."""
    if answers is None:
        return empty_html(NO_TRACES), ""
    is_evaluation = isinstance(answers, EvaluationAnswers)
    if isinstance(answers, EvaluationAnswers):
        page = answers.page(selection, page_idx=page_idx, size=PAGE_SIZE)
    else:
        page = tokens.page(answers, selection, page_idx=page_idx, size=PAGE_SIZE)
    first = {name: page.rows[0][name] for name in KEY} if page.rows else None
    order = f"{'-' if selection.descending else ''}{selection.order}"
    html = rows_html(
        page,
        evaluated_answers.COLUMNS if is_evaluation else COLUMNS,
        label="answers",
        key=KEY,
        chosen=key or first,
        tall=TALL,
        follow=True,
        sortable=evaluated_answers.SORTABLE if is_evaluation else SORTABLE,
        order=order,
    )
    start = page_idx * PAGE_SIZE
    position = f"{start + 1:,}–{min(total, start + PAGE_SIZE):,} of {total:,}" if total else "0"
    is_elsewhere = key is not None and all({name: row[name] for name in KEY} != key for row in page.rows)
    open_note = f"step {key['step']}, rollout {key['rollout']} is open, not on this page · " if is_elsewhere else ""
    listed = f"{open_note}{position} {'probes' if selection.source == 'probes' else 'answers'}"
    return html, f'<p class="wbu-where" aria-live="polite">{listed}</p>'


def draw_answer(
    answers: Traces | EvaluationAnswers | None,
    key: dict | None,
    selection: Selection,
    run: str,
    token: int | None = None,
) -> str:
    """One answer as a token view with a pinned token; or an error message.

    Tokens that match the filters are marked and counted. Without `token`, the first match is pinned.
    """
    if answers is None or key is None:
        return ""
    probe = selection.source == "probes"
    try:
        if isinstance(answers, EvaluationAnswers):
            return evaluated_answers.answer_html(answers.get(key["step"], key["rollout"]), run)
        view = tokens.answer(answers, key["step"], key["rollout"], process=key["process"], probe=probe, name=run)
    except WorkbenchError as error:
        return empty_html(sentence(error))
    address = json.dumps(answer_address(key["step"], key["rollout"], process=key["process"], probe=probe))
    marked = answers.matching_positions(selection, (key["step"], key["process"], key["rollout"]))
    jumps = token is None and bool(marked)
    fragment = render_tokens(view, standalone=False, pinned=marked[0] if jumps else token, marked=set(marked))
    counted = _counted(selection, len(marked), len(view.tokens))
    return remount(
        f'<div data-answer="{escape(address, quote=True)}"{" data-jump" if jumps else ""}>{counted}{fragment}</div>'
    )


def draw_related(context: AppContext, run: str | None, address: Mapping | None) -> str:
    """Siblings of the open answer, and its question over training; "" after an error, which `draw` shows."""
    try:
        run_dir = context.run_dir(run)
        answers = answers_at(run_dir, address or {})
        selection = select(address or {}, choices_of(answers))
        key = key_of(address) or next(iter(_keys(answers, selection, page_of(address))[0]), None)
        if answers is None or key is None:
            return ""
        if isinstance(answers, EvaluationAnswers):
            example = answers.get(key["step"], key["rollout"])["example_id"]
            return question_html(run_dir, TRACES.of(run_dir), example)
        return related_html(run_dir, answers, key, probe=selection.source == "probes")
    except (WorkbenchError, OSError):
        return ""


def _counted(selection: Selection, count: int, total: int) -> str:
    """Number of tokens of the open answer that match the filters, as HTML."""
    if not selection.of_tokens:
        return ""
    criteria = " ".join(condition.text for condition in selection.of_tokens)
    matches = "no tokens in this answer" if count == 0 else f"{count:,} of {total:,} tokens, outlined"
    return f'<p class="wbu-aside"><code>{escape(criteria)}</code>: {matches}</p>'


def address_of_row(address: Mapping | None, key: Mapping) -> dict:
    """The address that opens a row's answer."""
    params = {name: value for name, value in (address or {}).items() if name in _ROW_PARAMS}
    return (
        persistent_params(address)
        | params
        | answer_address(int(key["step"]), int(key["rollout"]), process=int(key["process"]))
    )


def change_page(context: AppContext, run: str | None, address: Mapping | None, by: int) -> dict:
    """The address of the next (by = 1) or previous (by = -1) page, with its first answer open."""
    address = address or {}
    answers = answers_at(context.run_dir(run), address)
    page_idx = 0
    if answers is not None:
        _, _, page_idx = _keys(answers, select(address, choices_of(answers)), max(0, page_of(address) + by))
    params = {name: value for name, value in address.items() if name in (*_SOURCE_PARAMS, "example", "filter")}
    return persistent_params(address) | params | ({"list_page": str(page_idx)} if page_idx else {})


def step_selection(context: AppContext, run: str | None, address: Mapping | None, direction: int) -> dict:
    """The address of the answer before (-1) or after (1) the open one in the list, across pages."""
    address = address or {}
    answers = answers_at(context.run_dir(run), address)
    if answers is None:
        return dict(address)
    selection = select(address, choices_of(answers))
    key = key_of(address)
    keys, total, page_idx = _page_with(answers, selection, page_of(address), key)
    row_idx = (keys.index(key) if key in keys else 0 if key is None else -1) + direction
    if key is not None and key not in keys:
        row_idx = 0  # opened by a link and not on this page: continue from the page's first answer
    if row_idx < 0 and page_idx > 0:
        keys, total, page_idx = _keys(answers, selection, page_idx - 1)
        row_idx = len(keys) - 1
    elif row_idx >= len(keys) and total > (page_idx + 1) * PAGE_SIZE:
        keys, total, page_idx = _keys(answers, selection, page_idx + 1)
        row_idx = 0
    if not keys:
        return dict(address)
    row_idx = max(0, min(len(keys) - 1, row_idx))
    return address_of_row({**address, "list_page": str(page_idx) if page_idx else ""}, keys[row_idx])


def _page_with(
    answers: Traces | EvaluationAnswers, selection: Selection, page_idx: int, key: dict | None
) -> tuple[list[dict], int, int]:
    """`_keys` of the page that has the answer now; while a run trains, newer answers move it to later pages."""
    start = _keys(answers, selection, page_idx)
    if key is None or key in start[0] or (selection.order, selection.descending) != ("step", True):
        return start
    if isinstance(answers, EvaluationAnswers):
        return start
    at = tuple(key[name] for name in KEY)
    page = _keys(answers, selection, answers.count_rollouts(selection, before=at) // PAGE_SIZE)
    return page if key in page[0] else start


def _keys(
    answers: Traces | EvaluationAnswers | None, selection: Selection, page_idx: int
) -> tuple[list[dict], int, int]:
    """Keys of a page's answers, the total number of answers, and the page's index, clipped to the last page."""
    if answers is None:
        keys, total = [], 0
    elif isinstance(answers, EvaluationAnswers):
        keys, total = answers.keys(selection, page_idx=page_idx, size=PAGE_SIZE)
    else:
        keys, total = tokens.keys(answers, selection, page_idx=page_idx, size=PAGE_SIZE)
    last = max(0, (total - 1) // PAGE_SIZE)
    if page_idx > last:
        return _keys(answers, selection, last)
    return [dict(zip(KEY, key, strict=True)) for key in keys], total, page_idx


def sort_by(address: Mapping | None, field: str) -> dict:
    """The address with the list sorted by a field: descending first, ascending if it already was so."""
    address = dict(address or {})
    order = "" if address.get("order") == f"-{field}" else "-"
    for name in ANSWER_PARAMS:
        address.pop(name, None)
    return address | {"order": f"{order}{field}"}


def export(context: AppContext, run: str | None, address: Mapping | None) -> gr.DownloadButton:
    """Write the selected answers, at most MAX_EXPORTED, as JSON lines. Returns the download link."""
    run_dir = context.run_dir(run)
    address = address or {}
    answers, traces = answers_at(run_dir, address), TRACES.of(run_dir)
    if answers is None:
        raise TraceError(NO_TRACES)
    selection = select(address, choices_of(answers))
    rows, total = answers_as_json(Answers(run_dir, traces, run or ""), selection, MAX_EXPORTED)
    file = Path(_folder().name) / f"{run_dir.name}-answers.jsonl"
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    left_out = f", the first of {total:,}: narrow the selection for the others" if total > len(rows) else ""
    label = f"Save {len(rows):,} answers{left_out}"
    return gr.DownloadButton(label, value=str(file), visible=True)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when the app exits."""
    return tempfile.TemporaryDirectory(prefix="workbench-answers-")


def build_tab(context: AppContext, shared: Shared) -> None:
    """Search and filters; the list at the left, the open answer with its token at the right."""
    with gr.Row(elem_classes="wbu-bar"):
        source = gr.Radio(SOURCES, value="", label="source", min_width=340, elem_id="answers-source", scale=1)
        search = gr.Textbox(
            label="search and filter",
            placeholder=EXAMPLES_OF_FILTERS,
            min_width=260,
            scale=3,
            max_lines=1,
            elem_id="answers-filter",
        )
        order = gr.Dropdown(orders(""), value="-step", label="sort by", min_width=150, elem_id="answers-order")
        save = gr.Button("JSONL", size="sm", scale=0, min_width=70, elem_id="answers-export")
        link = gr.DownloadButton("Save", size="sm", visible=False, elem_id="answers-link", scale=0, min_width=160)
    with gr.Row(elem_classes="wbu-bar"):
        boxes = _list_boxes()
        grade = gr.Dropdown(GRADE_CHOICES, value="", label="grade", min_width=104, elem_id="answers-grade")
        example = gr.Textbox(label="example", placeholder="id", min_width=110, elem_id="answers-example", max_lines=1)
    follow_run(context, shared, "answers", "rollouts")
    with gr.Row(elem_id="answers-body"):
        with gr.Column(elem_id="answers-side", min_width=0, scale=0):
            with gr.Row(elem_classes="wbu-pager"):
                position = fragment_component("position in the list", elem_id="answers-where")
                back = gr.Button("←", size="sm", scale=0, min_width=36, elem_id="answers-back")
                forward = gr.Button("→", size="sm", scale=0, min_width=36, elem_id="answers-on")
            listed = rows_component("answers", elem_id="answers-list")
        with gr.Column(elem_id="answers-main", min_width=0, scale=1):
            fold = gr.Button("◂ List", size="sm", scale=0, min_width=70, elem_id="answers-fold")
            answer_view = fragment_component(
                "the answer, token by token", js=read_asset("answer.js"), elem_id="answers-answer"
            )
            related = rows_component("answers related to it", elem_id="answers-related")
    filters = [*boxes, grade, order]
    typed = [search, example]
    inputs = [shared.run, shared.address]
    outputs = [*filters, *typed, source, listed, position, answer_view]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    drawn = shared.on_show("answers", show_errors(partial(draw, context), len(outputs)), inputs, outputs)
    drawn.then(partial(draw_related, context), inputs, related, queue=False, **quiet)
    lists = dict(zip(CHOICES["answers"], filters, strict=True))
    sync_to_url(shared, lists, tab="answers", forgets=ANSWER_PARAMS)
    texts = {"filter": search, "example": example}
    events = {name: [box.submit, box.blur] for name, box in texts.items()}
    sync_to_url(shared, texts, events=events, forgets=ANSWER_PARAMS)
    source.input(None, [shared.address, source], shared.address, js=SOURCE_JS)
    fold.click(None, shared.address, shared.address, js=FOLD)
    for changed in (drawn.then, shared.address.change):
        changed(None, shared.address, js=SHOW_LIST)
    exported = save.click(show_errors(partial(export, context)), inputs, link, **quiet)
    exported.then(None, link, js=DOWNLOAD)
    shared.address.change(lambda: gr.DownloadButton(visible=False), None, link, queue=False, **quiet)
    _connect(context, shared, listed, related, answer_view, back, forward)


def _list_boxes() -> list[gr.Dropdown]:
    """The lists of filters, one per parameter of FILTERS."""
    return [
        gr.Dropdown(
            [("any", "")],
            value="",
            label=name.removeprefix("at_").replace("_", " "),
            min_width=104,
            elem_id=f"answers-{name.removeprefix('at_')}",
            allow_custom_value=name == "at_step",
        )
        for name in FILTERS
    ]


def _connect(
    context: AppContext,
    shared: Shared,
    listed: gr.HTML,
    related: gr.HTML,
    answer_view: gr.HTML,
    back: gr.Button,
    forward: gr.Button,
) -> None:
    """Rows, headings, pages and keys, which change the address."""
    inputs = [shared.run, shared.address]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def turn(event: gr.EventData, run: str, address: dict) -> dict:
        return step_selection(context, run, address, 1 if event.direction > 0 else -1)

    def page(by: int, run: str, address: dict) -> dict:
        return change_page(context, run, address, by)

    def sort(event: gr.EventData, address: dict) -> dict:
        return sort_by(address, event.field)

    for rows in (listed, related):
        shared.on_choose(rows, {name: name for name in KEY}, keeps=_ROW_PARAMS)
    listed.sort(show_errors(sort), shared.address, shared.address, **quiet)
    answer_view.turn(show_errors(turn), inputs, shared.address, **quiet)
    back.click(show_errors(partial(page, -1)), inputs, shared.address, **quiet)
    forward.click(show_errors(partial(page, 1)), inputs, shared.address, **quiet)
