"""The page around the tabs: header, run picker, theme and address.

Every view has its address, `?run=...&tab=tokens&step=20&rollout=3`: a link opens it again. The browser writes it
(assets/app.js) whenever the run, the tab or a tab's own part of it changes, and the server reads it once, on load.
"""

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
    "watch": ("Watch", monitor),
    "tokens": ("Tokens", tokens),
    "movement": ("Movement", movement),
    "compare": ("Compare", compare),
    "illusion": ("Illusion", illusion),
    "geometry": ("Geometry", geometry),
    "data": ("Data", data),
    "studies": ("Studies", studies),
    "report": ("Report", report),
}
TROUBLE_S = 10.0  # between looks whether the run that is shown has died or was deleted
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
    """The whole page over a runs folder."""
    names = run_choices(context)
    with gr.Blocks(
        title="Distillation workbench", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)
    ) as app:
        with gr.Row(elem_id="app-header", equal_height=True):
            gr.HTML(_title(context), elem_id="app-title", padding=False)
            run = gr.Dropdown(
                names,
                value=None,
                label="Run",
                container=False,
                allow_custom_value=True,
                elem_id="app-run",
                min_width=300,
                scale=2,
            )  # a run that was started elsewhere is not among the choices yet
            look = gr.Button("Look again", elem_id="app-look", size="sm", min_width=110, scale=0)
            toggle = gr.Button("Light / dark", elem_id="app-theme", size="sm", min_width=110, scale=0)
        with gr.Row(visible="hidden"):
            search = gr.Textbox(visible="hidden")
            theme = gr.Textbox("light", visible="hidden", elem_id="app-theme-name")
            tab = gr.Textbox("", visible="hidden")
            address = gr.JSON({}, visible="hidden")
            wake = {name: gr.Textbox("", visible="hidden", elem_id=f"app-wake-{name}") for name in TABS}
        trouble = gr.HTML("", elem_id="app-trouble", padding=False)
        first = first_tab(names)  # drawn before the address is known: what most addresses ask for
        with gr.Tabs(selected=first, elem_id="app-tabs") as tabs:
            shared = Shared(run, theme, address, tab, tabs, wake)
            for name, (label, module) in TABS.items():
                with gr.Tab(label, id=name, elem_id=f"tab-{name}") as one:
                    module.build_tab(context, shared)
                one.select(None, None, tab, js=f"() => {json.dumps(name)}")
        shown = {
            "fn": None,
            "inputs": [run, tab, theme, address, *wake.values()],
            "outputs": list(wake.values()),
            "js": f"(...values) => workbenchApp.show({json.dumps(list(TABS))}, ...values)",
        }
        gr.on([run.change, tab.change, theme.change, address.change], **shown)
        gr.on(
            [run.change, tab.change, look.click, gr.Timer(TROUBLE_S).tick],
            show_errors(partial(look_over, context), 1 + len(wake)),
            [run, tab],
            [trouble, *wake.values()],
            show_progress="hidden",
            api_visibility="private",
            queue=False,
        )
        toggle.click(None, None, theme, js="() => workbenchApp.toggle()")
        again = look.click(  # a page that is just coming back from a lost server has no run yet, and its address has
            show_errors(partial(look_again, context)),
            run,
            run,
            js="(run) => [workbenchApp.run(run)]",
            api_visibility="private",
        )
        again.then(None, js="() => workbenchApp.look()").then(**shown)
        opened = [run, tabs, tab, address, theme]
        asked = app.load(
            show_errors(partial(open_address, context), len(opened)),
            [search, theme],
            opened,
            js="() => workbenchApp.start()",
            api_visibility="private",
            show_progress="hidden",
        )
        asked.then(None, js="() => workbenchApp.open()").then(**shown)

        def glance(search: str) -> str:  # Gradio asks for the types of what it is given
            return first_glance(context, search)

        gr.api(glance, api_name="first_glance", queue=False, api_visibility="undocumented")
    return app


def look() -> dict:
    """What gr.Blocks.launch needs to dress the page: all of it lies on this machine."""
    style = f"{read_asset('app.css')}\n#app-tabs :where(.wbu .html-container > div) {{ {read_asset('rows.css')} }}"
    return {"theme": _theme(), "css": style, "head": page_head()}


def early_head() -> str:
    """Our own script, and the style of what it shows at once."""
    font = f":root {{ --first-font: {SANS}; }}"
    return f"<style>{font}{read_asset('app.css')}</style><script>{read_asset('app.js')}{read_asset('rows.js')}</script>"


def first_glance(context: AppContext, search: str) -> str:
    """The title and the state of the run that an address asks for, as HTML: assets/app.js shows it while Gradio is still
    loading its own parts. Empty if the address asks for another tab."""
    asked, names = read_address(search), [name for _, name in run_choices(context)]
    run = requested_run(asked, names)
    if run is None or asked.get("tab", "watch") != "watch":
        return ""
    state, *_ = monitor.summary_view(context, run)
    return f'<div class="app-title">{_title(context)}</div>{state}'


def look_again(context: AppContext, run: str | None) -> object:
    """The run picker with the runs that there are now; the chosen one stays, or it is said that it is gone."""
    choices = run_choices(context)
    names = [name for _, name in choices]
    if run and run not in names:
        gr.Warning(escape(f'The run "{run}" is gone: its folder was deleted or renamed. The newest one is shown.'))
    return gr.Dropdown(choices=choices, value=run if run in names else names[0] if names else None)


def look_over(context: AppContext, run: str | None, tab: str) -> tuple:
    """What stands over the open tab, and each tab's `wake`: an open tab of a run that is gone is drawn anew, and says so."""
    is_gone = False
    if run and tab not in ("", "launch", "studies"):
        try:
            context.job(run)
        except RunError:
            is_gone = True
    wakes = [f"gone: {run}" if is_gone and name == tab else gr.skip() for name in TABS]
    return trouble_html(context, run, tab), *wakes


def trouble_html(context: AppContext, run: str | None, tab: str) -> str:
    """Over every tab that draws a run: that it ended before its end, and why. Watch says it in its own place."""
    if not run or tab in ("", "launch", "watch", "studies"):
        return ""
    try:
        state = context.job(run)
    except RunError:  # deleted: the tab says it
        return ""
    if state.status not in ("failed", "died", "unreadable"):
        return ""
    where = f"at step {state.step:,} of {state.steps:,}" if state.step and state.steps else "before its first step"
    ended = "cannot be read" if state.status == "unreadable" else f"{state.status} {where}"
    return note(f"{state.name} {ended}: {state.error or 'it did not say why.'}", "error")


def open_address(context: AppContext, search: str, theme: str) -> tuple:
    """Run, tab (to open, and its name), the rest of what an address says, theme; what says nothing useful is left out."""
    choices = run_choices(context)
    names = [name for _, name in choices]
    asked = read_address(search)
    run = asked.get("run")
    if run is not None and run not in names:
        message = f'There is no run "{run}" here. It may have been deleted; the list above shows what there is.'
        gr.Warning(escape(message), title="An old link?")
    tab = asked["tab"] if asked.get("tab") in TABS else first_tab(names)
    address = {key: asked[key] for key in ADDRESS_KEYS if key in asked}
    return gr.Dropdown(choices=choices, value=requested_run(asked, names)), gr.Tabs(selected=tab), tab, address, theme


def _title(context: AppContext) -> str:
    locked = '<span class="app-badge" title="Runs can be looked at, not started or stopped">read-only</span>'
    return "<h1>Distillation workbench</h1><p>who supervised every token, and why</p>" + (
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
