"""Browse in Answers: a page of answers, and one of them token by token beside its image evidence.

1. The address has the open answer (step, rollout, process, probe), its pinned token, the page of the list, and the
   filters.
2. Choosing a row or a filter only changes the address; a change of the address draws the tab.
3. Hovering, pinning and coloring happen in the browser. The up and down keys in an answer open its neighbor in the
   list.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape

import gradio as gr

from workbench.analysis import tokens
from workbench.analysis.table import NO_TRACES
from workbench.analysis.tokens import Selection
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
from workbench.errors import WorkbenchError
from workbench.render import render_tokens
from workbench.traces.reader import Traces

PAGE_SIZE = 20
KEY = ("step", "process", "rollout")
# parameter of the address -> field of the selection; choices come from the run
FILTERS = {"at_step": "step"} | {name: name for name in ("regime", "domain", "token_type", "visibility")}
ORDERS = (
    ("newest first", "step"),
    ("largest |information gap|", "information_gap"),
    ("largest |capability gap|", "capability_gap"),
    ("largest loss", "loss"),
)
VERDICTS = (("any", ""), ("correct", "right"), ("incorrect", "wrong"))
ANSWER_PARAMS = ("step", "rollout", "process", "token", "list_page")  # dropped from the address with another list
COLUMNS = (
    Column("step", kind="number"),
    Column("rollout", kind="number"),
    Column("question"),
    Column("answer"),
    Column("expected", kind="short"),
    Column("right", "grade", "right"),
    Column("tokens", "", "number"),
    Column("information_gap", kind="signed"),
    Column("capability_gap", kind="signed"),
    Column("loss", kind="number"),
    Column("regimes", kind="short"),
)


def draw(context: AppContext, run: str | None, address: Mapping | None) -> tuple:
    """Filters, example, probe switch, list, position in the list, answer."""
    traces = TRACES.of(context.run_dir(run))
    choices = tokens.choices(traces) if traces is not None else {name: [] for name in FILTERS.values()}
    address = address or {}
    selection = select(address, choices)
    try:
        key, token, fault = key_of(address), int_param(address, "token"), ""
    except WorkbenchError as error:
        key, token, fault = None, None, sentence(error)
    keys, total, page_idx = _keys(traces, selection, page_of(address))
    first = keys[0] if keys else None
    with ThreadPoolExecutor(1) as executor:  # reads the answer and the list in parallel
        answer = executor.submit(draw_answer, traces, key or first, selection, run or "", token)
        listed, position = draw_list(traces, selection, page_idx, total, key)
    fragment = empty_html(fault) if fault else answer.result()
    boxes = [*_filter_boxes(choices, selection), _verdict(selection), selection.order]
    return *boxes, selection.example or "", selection.probe, listed, position, fragment


def _filter_boxes(choices: Mapping[str, list], selection: Selection) -> list[gr.Dropdown]:
    offered = {**choices, "step": evenly_spaced(choices["step"])}
    return [
        gr.Dropdown(
            choices=[("any", ""), *((str(value), str(value)) for value in offered[name])],
            value=str(getattr(selection, name) or ""),
            allow_custom_value=name == "step",
        )
        for name in FILTERS.values()
    ]


def _verdict(selection: Selection) -> str:
    return {None: "", True: "right", False: "wrong"}[selection.right]


def select(address: Mapping, choices: Mapping[str, list]) -> Selection:
    """The selection of the address; filters with values that this run lacks are ignored, as after a change of run."""
    filters = {
        name: choice(address, "answers", key, [str(option) for option in choices[name]])
        for key, name in FILTERS.items()
    }
    right = choice(address, "answers", "right", ("right", "wrong"))
    return Selection(
        **{name: value or None for name, value in filters.items() if name != "step"},
        step=int(filters["step"]) if filters["step"] else None,
        right=right == "right" if right else None,
        example=str(address.get("example") or "") or None,
        order=choice(address, "answers", "order", [value for _, value in ORDERS]),
        probe=bool(address.get("probe")),
    )


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
    traces: Traces | None, selection: Selection, page_idx: int, total: int, key: dict | None
) -> tuple[str, str]:
    """A page of the list, and its position, both as HTML."""
    if traces is None:
        return empty_html(NO_TRACES), ""
    page = tokens.page(traces, selection, page_idx=page_idx, size=PAGE_SIZE)
    first = {name: page.rows[0][name] for name in KEY} if page.rows else None
    html = rows_html(page, COLUMNS, label="answers", key=KEY, chosen=key or first, tall=290, follow=True)
    start = page_idx * PAGE_SIZE
    position = f"{start + 1:,}–{min(total, start + PAGE_SIZE):,} of {total:,}" if total else "0"
    is_elsewhere = key is not None and all({name: row[name] for name in KEY} != key for row in page.rows)
    open_note = f"open: step {key['step']}, rollout {key['rollout']}, not on this page · " if is_elsewhere else ""
    listed = f"{open_note}{position} {'probes' if selection.probe else 'answers'}"
    return html, f'<p class="wbu-where" aria-live="polite">{listed}</p>'


def draw_answer(
    traces: Traces | None, key: dict | None, selection: Selection, run: str, token: int | None = None
) -> str:
    """One answer as a token view with a pinned token; or an error message.

    Tokens that match the filters are marked and counted. Without `token`, the first match is pinned.
    """
    if traces is None or key is None:
        return ""
    probe = selection.probe
    try:
        view = tokens.answer(traces, key["step"], key["rollout"], process=key["process"], probe=probe, name=run)
    except WorkbenchError as error:
        return empty_html(sentence(error))
    address = json.dumps(answer_address(key["step"], key["rollout"], process=key["process"], probe=probe))
    marked = tokens.matches(view, selection)
    jumps = token is None and bool(marked)
    fragment = render_tokens(view, standalone=False, pinned=marked[0] if jumps else token, marked=set(marked))
    counted = _counted(selection, len(marked), len(view.tokens))
    return remount(
        f'<div data-answer="{escape(address, quote=True)}"{" data-jump" if jumps else ""}>{counted}{fragment}</div>'
    )


def _counted(selection: Selection, count: int, total: int) -> str:
    """Number of tokens of the open answer that match the filters, as HTML."""
    criteria = [
        f"{name.replace('_', ' ')} {value}"
        for name in ("regime", "token_type", "visibility")
        if (value := getattr(selection, name))
    ]
    if not criteria:
        return ""
    matches = "no tokens in this answer" if count == 0 else f"{count:,} of {total:,} tokens, outlined"
    return f'<p class="wbu-aside">{escape(", ".join(criteria))}: {matches}</p>'


def address_of_row(address: Mapping | None, key: Mapping) -> dict:
    """The address that opens a row's answer."""
    params = {name: value for name, value in (address or {}).items() if name in ("probe", "example", "list_page")}
    return (
        persistent_params(address)
        | params
        | answer_address(int(key["step"]), int(key["rollout"]), process=int(key["process"]))
    )


def change_page(context: AppContext, run: str | None, address: Mapping | None, by: int) -> dict:
    """The address of the next (by = 1) or previous (by = -1) page, with its first answer open."""
    traces = TRACES.of(context.run_dir(run))
    address = address or {}
    page_idx = 0
    if traces is not None:
        _, _, page_idx = _keys(traces, select(address, tokens.choices(traces)), max(0, page_of(address) + by))
    params = {name: value for name, value in address.items() if name in ("probe", "example")}
    return persistent_params(address) | params | ({"list_page": str(page_idx)} if page_idx else {})


def step_selection(context: AppContext, run: str | None, address: Mapping | None, direction: int) -> dict:
    """The address of the answer before (-1) or after (1) the open one in the list, across pages."""
    traces = TRACES.of(context.run_dir(run))
    address = address or {}
    if traces is None:
        return dict(address)
    selection = select(address, tokens.choices(traces))
    key = key_of(address)
    keys, total, page_idx = _page_with(traces, selection, page_of(address), key)
    row_idx = (keys.index(key) if key in keys else 0 if key is None else -1) + direction
    if key is not None and key not in keys:
        row_idx = 0  # opened by a link and not on this page: continue from the page's first answer
    if row_idx < 0 and page_idx > 0:
        keys, total, page_idx = _keys(traces, selection, page_idx - 1)
        row_idx = len(keys) - 1
    elif row_idx >= len(keys) and total > (page_idx + 1) * PAGE_SIZE:
        keys, total, page_idx = _keys(traces, selection, page_idx + 1)
        row_idx = 0
    if not keys:
        return dict(address)
    row_idx = max(0, min(len(keys) - 1, row_idx))
    return address_of_row({**address, "list_page": str(page_idx) if page_idx else ""}, keys[row_idx])


def _page_with(traces: Traces, selection: Selection, page_idx: int, key: dict | None) -> tuple[list[dict], int, int]:
    """`_keys` of the page that has the answer now; while a run trains, newer answers move it to later pages."""
    start = _keys(traces, selection, page_idx)
    if key is None or key in start[0] or selection.order != "step":
        return start
    at = tuple(key[name] for name in KEY)
    page = _keys(traces, selection, traces.count_rollouts(**selection.filters, before=at) // PAGE_SIZE)
    return page if key in page[0] else start


def _keys(traces: Traces | None, selection: Selection, page_idx: int) -> tuple[list[dict], int, int]:
    """Keys of a page's answers, the total number of answers, and the page's index, clipped to the last page."""
    keys, total = tokens.keys(traces, selection, page_idx=page_idx, size=PAGE_SIZE) if traces is not None else ([], 0)
    last = max(0, (total - 1) // PAGE_SIZE)
    if page_idx > last:
        return _keys(traces, selection, last)
    return [dict(zip(KEY, key, strict=True)) for key in keys], total, page_idx


def build_tab(context: AppContext, shared: Shared) -> None:
    """Filters, list, and the open answer below it."""
    with gr.Row(elem_classes="wbu-bar"):
        boxes = [
            gr.Dropdown(
                [("any", "")],
                value="",
                label=name.replace("_", " "),
                min_width=104,
                elem_id=f"answers-{name}",
                allow_custom_value=name == "step",
            )
            for name in FILTERS.values()
        ]
        right = gr.Dropdown(VERDICTS, value="", label="answer", min_width=104, elem_id="answers-right")
        order = gr.Dropdown(ORDERS, value="step", label="sort by", min_width=210, elem_id="answers-order")
        example = gr.Textbox(label="example", placeholder="id", min_width=130, elem_id="answers-example", max_lines=1)
        probe = gr.Checkbox(label="probes", min_width=90, elem_id="answers-probe")
    follow_run(context, shared, "answers", "rollouts")
    listed = rows_component("answers", elem_id="answers-list")
    with gr.Row(elem_classes="wbu-pager"):
        position = fragment_component("position in the list", elem_id="answers-where")
        back = gr.Button("← Previous", size="sm", scale=0, min_width=96, elem_id="answers-back")
        forward = gr.Button("Next →", size="sm", scale=0, min_width=96, elem_id="answers-on")
    answer_view = fragment_component("the answer, token by token", js=read_asset("answer.js"), elem_id="answers-answer")

    filters = [*boxes, right, order]
    inputs = [shared.run, shared.address]
    outputs = [*filters, example, probe, listed, position, answer_view]
    shared.on_show("answers", show_errors(partial(draw, context), len(outputs)), inputs, outputs)
    sync_to_url(shared, [box.input for box in filters], CHOICES["answers"], filters, ANSWER_PARAMS)
    sync_to_url(shared, [probe.input, example.submit], {"probe": "", "example": ""}, [probe, example], ANSWER_PARAMS)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def turn(event: gr.EventData, run: str, address: dict) -> dict:
        return step_selection(context, run, address, 1 if event.direction > 0 else -1)

    def page(by: int, run: str, address: dict) -> dict:
        return change_page(context, run, address, by)

    shared.on_choose(listed, address_of_row)
    answer_view.turn(show_errors(turn), inputs, shared.address, **quiet)
    back.click(show_errors(partial(page, -1)), inputs, shared.address, **quiet)
    forward.click(show_errors(partial(page, 1)), inputs, shared.address, **quiet)
