"""The page around the tabs: header, run picker, theme and address.

Every view has an address, `?run=...&tab=tokens&step=20&rollout=3`, and a link opens it again. The browser writes the
address (assets/app.js) whenever the run, the tab or one of a tab's parameters changes. The server reads it on load and
when the user goes back or forward in the browser's history.
"""

import hashlib
import json
from functools import partial
from html import escape
from types import ModuleType

import gradio as gr

from workbench.analysis.style import MONO, SANS
from workbench.app.components import read_asset
from workbench.app.context import (
    ADDRESS_KEYS,
    AppContext,
    Shared,
    first_tab,
    note,
    read_address,
    requested_run,
    run_choices,
    show_errors,
)
from workbench.app.tabs import compare, data, geometry, illusion, launch, monitor, movement, report, studies, tokens
from workbench.errors import RunError
from workbench.render import page_head

TABS: dict[str, tuple[str, ModuleType]] = {
    "launch": ("Launch", launch),
    "monitor": ("Monitor", monitor),
    "tokens": ("Tokens", tokens),
    "movement": ("Movement", movement),
    "compare": ("Compare", compare),
    "illusion": ("Illusion", illusion),
    "geometry": ("Geometry", geometry),
    "data": ("Data", data),
    "studies": ("Studies", studies),
    "report": ("Report", report),
}
POLL_S = 10.0  # seconds between looks for new runs, and at whether the shown run has died or was deleted
ACCENT = gr.themes.Color(
    "#eef6fb",
    "#d3e6f4",
    "#a9d0ea",
    "#7bb8de",
    "#4aa9e6",
    "#1f86c4",
    "#0072b2",
    "#005f99",
    "#004b79",
    "#00395c",
    "#00263d",
)
INK = gr.themes.Color(
    "#f7f8f9",
    "#eceef0",
    "#dfe2e6",
    "#c5cad0",
    "#a4adb7",
    "#747d88",
    "#565e68",
    "#333940",
    "#1f242a",
    "#15181c",
    "#101316",
)


def build_app(context: AppContext) -> gr.Blocks:
    """The page over a runs folder."""
    choices = run_choices(context)
    with gr.Blocks(
        title="Distillation workbench", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)
    ) as app:
        with gr.Row(elem_id="app-header", equal_height=True):
            gr.HTML(_title(context), elem_id="app-title", padding=False)
            run = gr.Dropdown(
                choices,
                value=None,
                label="Run",
                container=False,
                allow_custom_value=True,  # a run that was started elsewhere is not among the choices yet
                elem_id="app-run",
                min_width=300,
                scale=2,
            )
            refresh = gr.Button("Refresh", elem_id="app-refresh", size="sm", min_width=110, scale=0)
            toggle = gr.Button("◐ Theme", elem_id="app-theme", size="sm", min_width=110, scale=0)
        with gr.Row(visible="hidden"):
            search = gr.Textbox(visible="hidden")
            back = gr.Textbox("0", visible="hidden", elem_id="app-back")  # counts steps through the browser's history
            theme = gr.Textbox("light", visible="hidden", elem_id="app-theme-name")
            tab = gr.Textbox("", visible="hidden")
            address = gr.JSON({}, visible="hidden")
            listed_runs = gr.Textbox("", visible="hidden")  # mark of the picker's choices
            triggers = {name: gr.Textbox("", visible="hidden", elem_id=f"app-trigger-{name}") for name in TABS}
        alert = gr.HTML("", elem_id="app-trouble", padding=False)
        first = first_tab(choices)  # drawn before the address is known; most addresses open it
        with gr.Tabs(selected=first, elem_id="app-tabs") as tabs:
            shared = Shared(run, theme, address, tab, tabs, triggers)
            for name, (label, module) in TABS.items():
                with gr.Tab(label, id=name, elem_id=f"tab-{name}") as tab_item:
                    module.build_tab(context, shared)
                tab_item.select(None, None, tab, js=f"() => {json.dumps(name)}")
        _connect(context, app, shared, refresh, toggle, search, back, listed_runs, alert)

        def load_first_paint(search: str) -> str:  # gr.api needs annotated parameters
            return first_paint(context, search)

        gr.api(load_first_paint, api_name="first_paint", queue=False, api_visibility="undocumented")
    return app


def _connect(
    context: AppContext,
    app: gr.Blocks,
    shared: Shared,
    refresh: gr.Button,
    toggle: gr.Button,
    search: gr.Textbox,
    back: gr.Textbox,
    listed_runs: gr.Textbox,
    alert: gr.HTML,
) -> None:
    """The events of header and address: draw the open tab when the run, the tab, the theme or the address changes."""
    run, tab, theme, address = shared.run, shared.tab, shared.theme, shared.address
    triggers = list(shared.refresh_trigger.values())
    draw_open_tab = {
        "fn": None,
        "inputs": [run, tab, theme, address, *triggers],
        "outputs": triggers,
        "js": f"(...values) => workbenchApp.show({json.dumps(list(TABS))}, ...values)",
    }
    gr.on([run.change, tab.change, theme.change, address.change], **draw_open_tab)
    gr.on(
        [run.change, tab.change, refresh.click, gr.Timer(POLL_S).tick],
        show_errors(partial(poll, context), 3 + len(triggers)),
        [run, tab, listed_runs],
        [alert, run, listed_runs, *triggers],
        show_progress="hidden",
        api_visibility="private",
        queue=False,
    )
    toggle.click(None, None, theme, js="() => workbenchApp.toggle()")
    refreshed = refresh.click(  # after a restart of the server the page has no run yet, but its address names one
        show_errors(partial(refresh_runs, context)),
        run,
        run,
        js="(run) => [workbenchApp.run(run)]",
        api_visibility="private",
    )
    refreshed.then(None, js="() => workbenchApp.refresh()").then(**draw_open_tab)
    outputs = [run, shared.tabs, tab, address, theme]
    for event in (app.load, back.change):
        opened = event(
            show_errors(partial(open_address, context), len(outputs)),
            [search, theme],
            outputs,
            js="() => workbenchApp.start()",
            api_visibility="private",
            show_progress="hidden",
        )
        opened.then(None, js="() => workbenchApp.open()").then(**draw_open_tab)


def page_style() -> dict:
    """Theme, CSS and head for gr.Blocks.launch; they load nothing from other machines."""
    style = f"{read_asset('app.css')}\n#app-tabs :where(.wbu .html-container > div) {{ {read_asset('rows.css')} }}"
    return {"theme": _theme(), "css": style, "head": page_head()}


def early_head() -> str:
    """The page's script, and the style of its first paint."""
    font = f":root {{ --first-font: {SANS}; }}"
    scripts = "".join(map(read_asset, ("app.js", "lists.js", "rows.js")))
    return f"<style>{font}{read_asset('app.css')}</style><script>{scripts}</script>"


def first_paint(context: AppContext, search: str) -> str:
    """Title and run state as HTML for assets/app.js while Gradio loads; "" if the address opens another tab."""
    params, names = read_address(search), [name for _, name in run_choices(context)]
    run = requested_run(params, names)
    if run is None or params.get("tab", "monitor") != "monitor":
        return ""
    state, *_ = monitor.summary_view(context, run)
    return f'<div class="app-title">{_title(context)}</div>{state}'


def refresh_runs(context: AppContext, run: str | None) -> object:
    """The run picker with the current runs. The chosen run stays; if it was deleted, a warning names it."""
    choices = run_choices(context)
    names = [name for _, name in choices]
    if run and run not in names:
        gr.Warning(escape(f'The folder of run "{run}" was deleted or renamed. The newest run is shown instead.'))
    return gr.Dropdown(choices=choices, value=run if run in names else names[0] if names else None)


def poll(context: AppContext, run: str | None, tab: str, listed_runs: str) -> tuple:
    """The alert above the tabs, the run picker and the mark of its choices, and each tab's trigger.

    The picker changes only if runs or their states have; an open tab is redrawn if its run was deleted.
    """
    is_deleted = False
    if run and tab not in ("", "launch", "studies"):
        try:
            context.job(run)
        except RunError:
            is_deleted = True
    choices = run_choices(context)
    mark = hashlib.sha1(json.dumps(choices).encode(), usedforsecurity=False).hexdigest()
    picker = gr.skip() if mark == listed_runs else gr.Dropdown(choices=choices)
    triggers = [f"deleted: {run}" if is_deleted and name == tab else gr.skip() for name in TABS]
    return alert_html(context, run, tab), picker, mark, *triggers


def alert_html(context: AppContext, run: str | None, tab: str) -> str:
    """The alert above tabs that draw a run: how the run failed, and its error. Monitor shows the error itself."""
    if not run or tab in ("", "launch", "monitor", "studies"):
        return ""
    try:
        state = context.job(run)
    except RunError:  # deleted: the tab shows the error
        return ""
    if state.status not in ("failed", "died", "unreadable"):
        return ""
    where = f"at step {state.step:,} of {state.steps:,}" if state.step and state.steps else "before its first step"
    ended = "cannot be read" if state.status == "unreadable" else f"{state.status} {where}"
    return note(f"{state.name} {ended}: {state.error or 'no error was recorded.'}", "error")


def open_address(context: AppContext, search: str, theme: str) -> tuple:
    """Run, tab to open, its name, the address's other known parameters, and the theme."""
    choices = run_choices(context)
    names = [name for _, name in choices]
    params = read_address(search)
    run = params.get("run")
    if run is not None and run not in names:
        message = f'Run "{run}" does not exist; it may have been deleted. Choose a run from the list above.'
        gr.Warning(escape(message), title="Run not found")
    tab = params["tab"] if params.get("tab") in TABS else first_tab(names)
    address = {key: params[key] for key in ADDRESS_KEYS if key in params}
    return gr.Dropdown(choices=choices, value=requested_run(params, names)), gr.Tabs(selected=tab), tab, address, theme


def _title(context: AppContext) -> str:
    locked = '<span class="app-badge" title="Runs can be viewed, not started or stopped">read-only</span>'
    return "<h1>Distillation workbench</h1><p>which policy supervised each token, and why</p>" + (
        locked if context.read_only else ""
    )


def _theme() -> gr.themes.Base:
    """System fonts, one accent, square-cut and dense."""
    theme = gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=INK,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_sm,
        font=[name.strip(' "') for name in SANS.split(",")],
        font_mono=[name.strip(' "') for name in MONO.split(",")],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_radius="8px",
        input_radius="5px",
        button_large_radius="6px",
        button_small_radius="6px",
        block_shadow="none",
        block_shadow_dark="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        input_border_width="1px",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        checkbox_background_color_dark="*neutral_800",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_400",
        button_large_text_size="*text_md",
        button_large_padding="8px 16px",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
    )
