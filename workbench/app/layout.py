"""The page: five places, each with its views, a list of runs at the left, a header, theme and address.

Every view has an address, `?run=...&tab=answers&step=20&rollout=3`, and a link opens it again. The browser writes the
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
    further_runs,
    note,
    read_address,
    requested_run,
    run_names,
    show_errors,
)
from workbench.app.gradio_private import plotly_module, track_visible_progress
from workbench.app.guide import SECTIONS
from workbench.app.sidebar import build_sidebar, connect_sidebar, sidebar_html
from workbench.app.tabs import (
    answers,
    compare,
    data,
    geometry,
    leakage,
    movement,
    new_run,
    report,
    runs,
    score,
    studies,
    training,
)
from workbench.errors import RunError
from workbench.render import page_head

PLACES: dict[str, tuple[str, dict[str, tuple[str, ModuleType]]]] = {  # place: label, its views
    "runs": (
        "Runs",
        {
            "runs": ("All runs", runs),
            "new-run": ("New run", new_run),
            "score": ("Score rollouts", score),
            "studies": ("Studies", studies),
        },
    ),
    "training": (
        "Training",
        {"training": ("Charts", training), "movement": ("Movement", movement), "geometry": ("Geometry", geometry)},
    ),
    "answers": ("Answers", {"answers": ("Browse", answers), "compare": ("Compare", compare)}),
    "leakage": ("Leakage", {"leakage": ("Leakage", leakage)}),
    "data": ("Data", {"data": ("Examples", data)}),
}
TABS = [tab for _, views in PLACES.values() for tab in views]
WITHOUT_RUN = ("", "runs", "new-run", "score", "studies")  # tabs that draw no run
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
FAINT = ("block_label_text_color", "block_info_text_color", "body_text_color_subdued", "input_placeholder_color")


def build_app(context: AppContext) -> gr.Blocks:
    """The page over a runs folder."""
    with gr.Blocks(
        title="Distillation workbench", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)
    ) as app:
        with gr.Row(elem_id="app-header", equal_height=True):
            runs_toggle = gr.Button("☰ Runs", elem_id="app-runs-toggle", size="sm", min_width=84, scale=0)
            gr.HTML(_title(context), elem_id="app-title", padding=False)
            report_button = gr.Button("Report", elem_id="app-report", size="sm", min_width=96, scale=0)
            guide = gr.Button("Guide", elem_id="app-guide", size="sm", min_width=96, scale=0)
            refresh = gr.Button("Refresh", elem_id="app-refresh", size="sm", min_width=96, scale=0)
            toggle = gr.Button("◐ Theme", elem_id="app-theme", size="sm", min_width=96, scale=0)
        with gr.Row(visible="hidden"):
            search = gr.Textbox(visible="hidden")
            back = gr.Textbox("0", visible="hidden", elem_id="app-back")  # counts steps through the browser's history
            run = gr.Textbox(visible="hidden", elem_id="app-run")
            theme = gr.Textbox("light", visible="hidden", elem_id="app-theme-name")
            tab = gr.Textbox("", visible="hidden")
            address = gr.JSON({}, visible="hidden")
            reply = gr.JSON(visible="hidden")  # the address as the server has read it: see open_address
            listed_runs = gr.Textbox("", visible="hidden")  # mark of the listed runs
            triggers = {name: gr.Textbox("", visible="hidden", elem_id=f"app-trigger-{name}") for name in TABS}
        with gr.Row(elem_id="app-body"):
            with gr.Column(elem_id="app-sidebar", min_width=0, scale=0):
                sidebar = build_sidebar()
            with gr.Column(elem_id="app-main", min_width=0, scale=1):
                shared = Shared(run, theme, address, tab, sidebar, triggers)
                report.build_panel(context, shared, report_button)
                alert = gr.HTML("", elem_id="app-trouble", padding=False)
                places = _build_places(context, shared, first_tab(run_names(context)))
        runs_toggle.click(None, js="() => workbenchSidebar.toggle()")
        guide.click(None, tab, js=f"(tab) => workbenchApp.guide(({json.dumps(SECTIONS)})[tab])")
        _connect(context, app, shared, places, refresh, toggle, search, back, reply, listed_runs, alert)

        def load_first_paint(search: str) -> str:  # gr.api needs annotated parameters
            return first_paint(context, search)

        gr.api(load_first_paint, api_name="first_paint", queue=False, api_visibility="undocumented")
    track_visible_progress(app)
    return app


def _build_places(context: AppContext, shared: Shared, first: str) -> list[gr.Tabs]:
    """The places and their views. Returns the tabs of the places, then those of each place with several views.

    first  tab that is drawn before the address is known; most addresses open it
    """
    result = []
    with gr.Tabs(selected=place_of(first), elem_id="app-tabs") as places:
        for name, (label, views) in PLACES.items():
            with gr.Tab(label, id=name, elem_id=f"place-{name}") as place_item:
                if len(views) == 1:
                    ((tab, (_, module)),) = views.items()
                    with gr.Column(elem_id=f"tab-{tab}"):
                        module.build_tab(context, shared)
                else:
                    with gr.Tabs(
                        selected=first if first in views else next(iter(views)), elem_classes="app-views"
                    ) as inner:
                        for tab, (label, module) in views.items():
                            with gr.Tab(label, id=tab, elem_id=f"tab-{tab}") as item:
                                module.build_tab(context, shared)
                            item.select(None, None, shared.tab, js=f"() => {json.dumps(tab)}")
                    result.append(inner)
            enter = f"(tab) => workbenchApp.enter({json.dumps(list(views))}, tab)"
            place_item.select(None, shared.tab, shared.tab, js=enter)
    groups = json.dumps([[name, list(views)] for name, (_, views) in PLACES.items()])
    shared.tab.change(None, shared.tab, [places, *result], js=f"(tab) => workbenchApp.select({groups}, tab)")
    return [places, *result]


def place_of(tab: str) -> str:
    """The place of a tab."""
    return next(name for name, (_, views) in PLACES.items() if tab in views)


def _connect(
    context: AppContext,
    app: gr.Blocks,
    shared: Shared,
    places: list[gr.Tabs],
    refresh: gr.Button,
    toggle: gr.Button,
    search: gr.Textbox,
    back: gr.Textbox,
    reply: gr.JSON,
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
        "js": f"(...values) => workbenchApp.show({json.dumps(TABS)}, ...values)",
    }
    gr.on([run.change, tab.change, theme.change, address.change], **draw_open_tab)
    gr.on(
        [run.change, tab.change, refresh.click, gr.Timer(POLL_S).tick],
        show_errors(partial(poll, context), 3 + len(triggers)),
        [run, tab, listed_runs],
        [alert, shared.sidebar, listed_runs, *triggers],
        show_progress="hidden",
        api_visibility="private",
        queue=False,
    )
    connect_sidebar(shared)
    toggle.click(None, None, theme, js="() => workbenchApp.toggle()")
    refreshed = refresh.click(  # after a restart of the server the page has no run yet, but its address names one
        show_errors(partial(refresh_runs, context)),
        run,
        run,
        js="(run) => [workbenchApp.run(run)]",
        api_visibility="private",
    )
    refreshed.then(None, js="() => workbenchApp.refresh()").then(**draw_open_tab)
    outputs = [run, tab, address, theme]
    for event in (app.load, back.change):
        replied = event(
            show_errors(partial(open_address, context)),
            [search, theme],
            reply,
            js="() => workbenchApp.start()",
            api_visibility="private",
            show_progress="hidden",
        )
        open_reply = "(...values) => workbenchApp.open(...values)"
        replied.then(None, [reply, *outputs], [*outputs, reply], js=open_reply).then(**draw_open_tab)


def page_style() -> dict:
    """Theme, CSS and head for gr.Blocks.launch; they load nothing from other machines."""
    styles = "\n".join(map(read_asset, ("app.css", "runs.css", "charts.css")))
    style = f"{styles}\n#app-tabs :where(.wbu .html-container > div) {{ {read_asset('rows.css')} }}"
    return {"theme": _theme(), "css": style, "head": page_head()}


def early_head() -> str:
    """The page's script, and the style of its first paint."""
    font = f":root {{ --first-font: {SANS}; }}"
    scripts = "".join(
        map(read_asset, ("app.js", "sidebar.js", "runs.js", "lists.js", "rows.js", "charts.js", "new_run.js"))
    )
    scripts = f"window.workbenchPlotlyFile = {json.dumps(plotly_module())};\n{scripts}"
    return f"<style>{font}{read_asset('app.css')}</style><script>{scripts}</script>"


def first_paint(context: AppContext, search: str) -> str:
    """Title and run state as HTML for assets/app.js while Gradio loads; "" if the address opens another tab."""
    params, names = read_address(search), run_names(context)
    run = requested_run(params, names)
    if run is None or params.get("tab", "training") != "training":
        return ""
    state, *_ = training.summary_view(context, run)
    return f'<div class="app-title">{_title(context)}</div>{state}'


def refresh_runs(context: AppContext, run: str | None) -> str | None:
    """The run if it exists. If it was deleted, a warning names it, and the newest run is chosen."""
    names = run_names(context)
    if run in names:
        return run
    if run:
        gr.Warning(escape(f'The folder of run "{run}" was deleted or renamed. The newest run is shown instead.'))
    return names[0] if names else None


def poll(context: AppContext, run: str | None, tab: str, listed_runs: str) -> tuple:
    """The alert above the tabs, the list of runs and its mark, and each tab's trigger.

    The list changes only if runs or their states have; an open tab is redrawn if its run was deleted.
    """
    is_deleted = False
    if run and tab not in WITHOUT_RUN:
        try:
            context.job(run)
        except RunError:
            is_deleted = True
    html = sidebar_html(context)
    mark = hashlib.sha1(html.encode(), usedforsecurity=False).hexdigest()
    triggers = [f"deleted: {run}" if is_deleted and name == tab else gr.skip() for name in TABS]
    return alert_html(context, run, tab), gr.skip() if mark == listed_runs else html, mark, *triggers


def alert_html(context: AppContext, run: str | None, tab: str) -> str:
    """The alert above tabs that draw a run: how the run failed, and its error. Training shows the error itself."""
    if not run or tab in (*WITHOUT_RUN, "training"):
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


def open_address(context: AppContext, search: str, theme: str) -> list:
    """Run, name of the tab to open, the address's other known parameters, and the theme."""
    names = run_names(context)
    params = read_address(search)
    run = params.get("run")
    for name in [run] * (run is not None) + further_runs(params, run):
        if name not in names:
            message = f'Run "{name}" does not exist; it may have been deleted. Choose a run from the list at the left.'
            gr.Warning(escape(message), title="Run not found")
    tab = params["tab"] if params.get("tab") in TABS else first_tab(names)
    address = {key: params[key] for key in ADDRESS_KEYS if key in params}
    return [requested_run(params, names), tab, address, theme]


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
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        **dict.fromkeys(FAINT, "*neutral_600"),
        **dict.fromkeys((f"{name}_dark" for name in FAINT), "*neutral_400"),
    )
