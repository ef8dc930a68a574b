"""Tokens: a page of answers, and one of them token by token beside its image evidence.

1. The address says which answer is open (step, rollout, process, probe), which of its tokens, which page of the list, and its filters.
2. Choosing a row or a filter changes the address and nothing else; whatever changes the address draws.
3. Hovering, pinning and colors happen in the browser. Up and down inside an answer ask for its neighbour in the list.
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
    sync_to_address,
)
from workbench.app.live_updates import follow_run
from workbench.errors import WorkbenchError
from workbench.render import render_tokens
from workbench.traces.reader import Traces

PAGE_SIZE = 20
KEY = ("step", "process", "rollout")
FILTERS = {
    "at_step": "step",
    "regime": "regime",
    "domain": "domain",
    "kind": "kind",
    "truth": "truth",
}  # choices come from the run
ORDERS = (
    ("newest first", "step"),
    ("largest information gap", "information_gap"),
    ("largest capability gap", "capability_gap"),
    ("largest loss", "loss"),
)
VERDICTS = (("any", ""), ("right", "right"), ("wrong", "wrong"))
OPENED = ("step", "rollout", "process", "token", "list_page")  # of the address: what another list does not have
COLUMNS = (
    Column("step", kind="number"),
    Column("rollout", "no.", "number"),
    Column("question"),
    Column("answer"),
    Column("expected", kind="short"),
    Column("right", "", "right"),
    Column("tokens", "", "number"),
    Column("information_gap", "information", "signed"),
    Column("capability_gap", "capability", "signed"),
    Column("loss", kind="number"),
    Column("regimes", kind="short"),
)


def draw(context: AppContext, run: str | None, address: Mapping | None) -> tuple:
    """Everything on the tab: the filters, the example, the probe box, the list, where it is, the answer."""
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
    with ThreadPoolExecutor(1) as beside:  # the answer is read while the list is
        answer = beside.submit(draw_answer, traces, key or first, selection, run or "", token)
        listed, where = draw_list(traces, selection, page_idx, total, key)
    fragment = empty_html(fault) if fault else answer.result()
    boxes = [*_filter_boxes(choices, selection), _verdict(selection), selection.order]
    return *boxes, selection.example or "", selection.probe, listed, where, fragment


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
    """What the address asks for, as far as this run has it: an address that was another run's is no mistake."""
    filters = {
        name: choice(address, "tokens", key, [str(option) for option in choices[name]]) for key, name in FILTERS.items()
    }
    right = choice(address, "tokens", "right", ("right", "wrong"))
    return Selection(
        **{name: value or None for name, value in filters.items() if name != "step"},
        step=int(filters["step"]) if filters["step"] else None,
        right=right == "right" if right else None,
        example=str(address.get("example") or "") or None,
        order=choice(address, "tokens", "order", [value for _, value in ORDERS]),
        probe=bool(address.get("probe")),
    )


def key_of(address: Mapping | None) -> dict | None:
    """The answer that the address names, or None. Raises TraceError if a part is no number."""
    step, rollout = int_param(address, "step"), int_param(address, "rollout")
    if step is None or rollout is None:
        return None
    return {"step": step, "process": int_param(address, "process") or 0, "rollout": rollout}


def page_of(address: Mapping | None) -> int:
    """Index of the list's page; a link's nonsense is the first one."""
    try:
        return int_param(address, "list_page") or 0
    except WorkbenchError:
        return 0


def draw_list(
    traces: Traces | None, selection: Selection, page_idx: int, total: int, key: dict | None
) -> tuple[str, str]:
    """A page of the list, and where in it the page is."""
    if traces is None:
        return empty_html(NO_TRACES), ""
    page = tokens.page(traces, selection, page_idx=page_idx, size=PAGE_SIZE)
    first = {name: page.rows[0][name] for name in KEY} if page.rows else None
    html = rows_html(page, COLUMNS, label="answers", key=KEY, chosen=key or first, tall=290, follow=True)
    start = page_idx * PAGE_SIZE
    where = f"{start + 1:,}–{min(total, start + PAGE_SIZE):,} of {total:,}" if total else "none"
    is_elsewhere = key is not None and all({name: row[name] for name in KEY} != key for row in page.rows)
    open_note = f"open: step {key['step']}, no. {key['rollout']}, not on this page · " if is_elsewhere else ""
    listed = f"{open_note}{where} {'probes' if selection.probe else 'answers'}"
    return html, f'<p class="wbu-where" aria-live="polite">{listed}</p>'


def draw_answer(
    traces: Traces | None, key: dict | None, selection: Selection, run: str, token: int | None = None
) -> str:
    """One answer as a live fragment with a token pinned, or why there is none.

    The tokens that the filters ask for are marked and counted; without a `token` the first of them is pinned.
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
    """How many tokens of the open answer the filters ask for."""
    criteria = [f"{name} {value}" for name in ("regime", "kind", "truth") if (value := getattr(selection, name))]
    if not criteria:
        return ""
    ringed = "none here" if count == 0 else f"{count:,} of {total:,} tokens, ringed"
    return f'<p class="wbu-aside">{escape(", ".join(criteria))}: {ringed}</p>'


def address_of_row(address: Mapping | None, key: Mapping) -> dict:
    """The address after a row was chosen."""
    params = {name: value for name, value in (address or {}).items() if name in ("probe", "example", "list_page")}
    return (
        persistent_params(address)
        | params
        | answer_address(int(key["step"]), int(key["rollout"]), process=int(key["process"]))
    )


def page_address(context: AppContext, run: str | None, address: Mapping | None, by: int) -> dict:
    """The address one page on (by = 1) or back (by = -1), with that page's first answer."""
    traces = TRACES.of(context.run_dir(run))
    address = address or {}
    page_idx = 0
    if traces is not None:
        _, _, page_idx = _keys(traces, select(address, tokens.choices(traces)), max(0, page_of(address) + by))
    params = {name: value for name, value in address.items() if name in ("probe", "example")}
    return persistent_params(address) | params | ({"list_page": str(page_idx)} if page_idx else {})


def neighbor_address(context: AppContext, run: str | None, address: Mapping | None, direction: int) -> dict:
    """The address of the answer before (-1) or after (1) the open one, in the order of the list, across pages."""
    traces = TRACES.of(context.run_dir(run))
    address = address or {}
    if traces is None:
        return dict(address)
    selection = select(address, tokens.choices(traces))
    key = key_of(address)
    keys, total, page_idx = _page_with(traces, selection, page_of(address), key)
    row_idx = (keys.index(key) if key in keys else 0 if key is None else -1) + direction
    if key is not None and key not in keys:
        row_idx = 0  # it came by a link and is not on this page: go on from the page's first
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
    """As `_keys`, of the page that has the answer now: a run that trains puts newer ones before it."""
    start = _keys(traces, selection, page_idx)
    if key is None or key in start[0] or selection.order != "step":
        return start
    at = tuple(key[name] for name in KEY)
    page = _keys(traces, selection, traces.count_rollouts(**selection.filters, before=at) // PAGE_SIZE)
    return page if key in page[0] else start


def _keys(traces: Traces | None, selection: Selection, page_idx: int) -> tuple[list[dict], int, int]:
    """The answers of a page, how many there are on all, and which page it is: the last one for a number beyond it."""
    keys, total = tokens.keys(traces, selection, page_idx=page_idx, size=PAGE_SIZE) if traces is not None else ([], 0)
    last = max(0, (total - 1) // PAGE_SIZE)
    if page_idx > last:
        return _keys(traces, selection, last)
    return [dict(zip(KEY, key, strict=True)) for key in keys], total, page_idx


def build_tab(context: AppContext, shared: Shared) -> None:
    """Filters, the list, the answer under it."""
    with gr.Row(elem_classes="wbu-bar"):
        boxes = [
            gr.Dropdown(
                [("any", "")],
                value="",
                label=name,
                min_width=104,
                elem_id=f"tokens-{name}",
                allow_custom_value=name == "step",
            )
            for name in FILTERS.values()
        ]
        right = gr.Dropdown(VERDICTS, value="", label="right or wrong", min_width=104, elem_id="tokens-right")
        order = gr.Dropdown(ORDERS, value="step", label="order", min_width=210, elem_id="tokens-order")
        example = gr.Textbox(label="example", placeholder="id", min_width=130, elem_id="tokens-example", max_lines=1)
        probe = gr.Checkbox(label="probes", min_width=90, elem_id="tokens-probe")
    follow_run(context, shared, "tokens", "rollouts")
    listed = rows_component("answers", elem_id="tokens-list")
    with gr.Row(elem_classes="wbu-pager"):
        where = fragment_component("where in the list", elem_id="tokens-where")
        back = gr.Button("← Previous", size="sm", scale=0, min_width=96, elem_id="tokens-back")
        on = gr.Button("Next →", size="sm", scale=0, min_width=96, elem_id="tokens-on")
    answer_view = fragment_component("the answer, token by token", js=read_asset("answer.js"), elem_id="tokens-answer")

    filters = [*boxes, right, order]
    inputs = [shared.run, shared.address]
    outputs = [*filters, example, probe, listed, where, answer_view]
    shared.on_show("tokens", show_errors(partial(draw, context), len(outputs)), inputs, outputs)
    sync_to_address(shared, [box.input for box in filters], CHOICES["tokens"], filters, OPENED)
    sync_to_address(shared, [probe.input, example.submit], {"probe": "", "example": ""}, [probe, example], OPENED)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def choose(event: gr.EventData, address: dict) -> dict:
        return address_of_row(address, event.key)

    def turn(event: gr.EventData, run: str, address: dict) -> dict:
        return neighbor_address(context, run, address, 1 if event.direction > 0 else -1)

    def page(by: int, run: str, address: dict) -> dict:
        return page_address(context, run, address, by)

    listed.select(show_errors(choose), shared.address, shared.address, trigger_mode="always_last", **quiet)
    answer_view.turn(show_errors(turn), inputs, shared.address, **quiet)
    back.click(show_errors(partial(page, -1)), inputs, shared.address, **quiet)
    on.click(show_errors(partial(page, 1)), inputs, shared.address, **quiet)
