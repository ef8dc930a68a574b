"""Context and shared components of all tabs, parameters of the address, errors as messages on the page.

A tab is `build_tab(context, shared)`. Its callbacks are functions of (context, plain values); components only wire
them:

    draw = show_errors(partial(draw_answer, context))
    shared.on_show("answers", draw, inputs=[shared.run, shared.theme, shared.address], outputs=[picture])

`on_show` calls `draw` when the tab is open and the run, the theme or the address has changed since the last drawing,
and when the user presses Refresh. The browser keeps the page's state (run, theme, address), so it survives a restart of
the server.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from gradio.components import Component

from workbench.errors import RunError, WorkbenchError
from workbench.runs.folder import find_run_dir
from workbench.runs.jobs import JobState, find_jobs, read_job

CHOICES = {  # by tab: the parameters that its lists and switches have in the address, with their defaults
    "answers": {
        "at_step": "",
        "regime": "",
        "domain": "",
        "token_type": "",
        "visibility": "",
        "grade": "",
        "order": "-step",
    },
    "training": {"x": "step", "log": "", "smooth": "0", "metrics": "", "by": "", "seeds": "separate"},
    "movement": {"color": "regime", "from": "", "to": "", "of": "", "panels": "", "share": "position_share"},
    "compare": {"layout": "under"},
    "leakage": {"part": ""},
}
# parameters of the address that stay when another answer is opened
PERSISTENT_PARAMS = ("with", "study", "list", *(name for defaults in CHOICES.values() for name in defaults))
FORM_KEYS = ("start_from", "guide")  # of the form of a new run: what it starts from, and whether it shows the guide
ANSWER_KEYS = (
    "step",
    "rollout",
    "process",
    "probe",
    "evaluation",
    "token",
    "example",
    "context",
    "filter",
    "list_page",
)
ADDRESS_KEYS = (*ANSWER_KEYS, *FORM_KEYS, *PERSISTENT_PARAMS)
MAX_UPLOAD_MB = 20
MAX_PARAM_LENGTH = 200  # characters of one parameter of an address
MAX_RUNS_LENGTH = 4000  # of the parameters "with", which names the further ticked runs, and "metrics"
NO_RUN = "No run selected. Choose one at the left, or start one in Runs, New run."


@dataclass(frozen=True)
class AppContext:
    """The folders and the limits of the app.

    runs_dir     folder of all runs, those of a study one level deeper; the app reads and writes nothing outside it
    configs_dir  folder of recipes
    read_only    whether starting, stopping and writing are disabled
    folders      folders that images of data may be in, besides the data file's own
    max_runs     largest number of runs that train at a time; None = unlimited
    """

    runs_dir: Path
    configs_dir: Path
    read_only: bool = False
    folders: tuple[Path, ...] = ()
    max_runs: int | None = None

    @property
    def queue(self) -> Path | None:
        """The folder whose queue new runs join; None without a limit."""
        return None if self.max_runs is None else self.runs_dir

    def run_dir(self, name: str | None) -> Path:
        """The folder of an existing run. Raises RunError if the run does not exist or is outside the runs folder."""
        return self.job(name).run_dir

    def job(self, name: str | None) -> JobState:
        """The state of an existing run, named as on the page (STUDY/RUN in a study). Raises RunError as `run_dir`."""
        if not name:
            raise RunError(NO_RUN)
        return replace(read_job(find_run_dir(self.runs_dir, name)), name=name)

    def check_writable(self) -> None:
        """Raises RunError if the app was opened read-only."""
        if self.read_only:
            raise RunError("this page is read-only. Open the app without --read-only to start and stop runs.")


@dataclass
class Shared:
    """Components of the page that all tabs share.

    run              the selected run's name; `further_runs` has the others that are ticked
    theme            "light" or "dark", for figures
    address          parameters of the address: a mapping with some of ADDRESS_KEYS, values as text
    tab              the open tab's name; return another to open it
    sidebar          the list of runs
    refresh_trigger  by tab: a hidden text that changes when the open tab has to be drawn; see on_show
    """

    run: gr.Textbox
    theme: gr.Textbox
    address: gr.JSON
    tab: gr.Textbox
    sidebar: gr.HTML
    refresh_trigger: dict[str, gr.Textbox]

    def on_show(self, tab: str, draw: Callable, inputs: Sequence[Component], outputs: Sequence[Component]) -> Any:
        """Call `draw` when `tab` is open and run, theme or address has changed. Returns the event, for .then(...).

        An error is shown in place of the tab's contents, so that nothing of another run stays. No other function of the
        server may have always_last on this event: after a deferred call Gradio (6.31) repeats the event, not the call,
        so that two such functions call each other without end.
        """
        drawn = render_error_in_place(draw, outputs)
        return self.refresh_trigger[tab].change(
            drawn,
            inputs,
            outputs,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
            # a message over the page needs Gradio's queue; without the queue a response takes one request, not three
            queue=drawn is draw,
        )

    def on_choose(
        self,
        rows: gr.HTML,
        columns: Mapping[str, str],
        *,
        keeps: Sequence[str] = (),
        but: str = "",
        fixed: Mapping[str, str] | None = None,
        tab: str = "",
    ) -> None:
        """Open a chosen row. Runs in the browser: a busy server may reply to two quick choices in either order.

        columns  parameter of the address -> column of the row's key that has its value
        keeps    parameters of the present address that stay, beside the persistent ones
        but      tab whose choices are dropped, as in `persistent_params`
        fixed    parameters with a fixed value
        tab      tab that the row opens; "" = the open one
        """
        values = [[*persistent_names(but), *keeps], fixed or {}, columns]
        opened = f"workbenchApp.opened(...{json.dumps(values)}, address)"
        js = f"(address) => [{opened}, {json.dumps(tab)}]" if tab else f"(address) => {opened}"
        outputs = [self.address, self.tab] if tab else self.address
        rows.select(None, self.address, outputs, js=js)


def further_runs(address: Mapping | None, run: str | None) -> list[str]:
    """The runs that are ticked beside `run`, in the order of their ticks."""
    names = str((address or {}).get("with") or "").split(",")
    return list(dict.fromkeys(name for name in names if name and name != run))


def persistent_names(but: str = "") -> list[str]:
    """Names of the parameters that stay in the address when another answer is opened; `but` as in persistent_params."""
    return [name for name in PERSISTENT_PARAMS if name not in CHOICES.get(but, {})]


def persistent_params(address: Mapping | None, but: str = "") -> dict:
    """Parameters that stay in the address when another answer is opened: ticked runs, study, and each tab's choices.

    but  tab whose choices are dropped: the answer may be outside its filters
    """
    names = persistent_names(but)
    return {name: value for name, value in (address or {}).items() if name in names and value}


def choice(address: Mapping | None, tab: str, name: str, allowed: Sequence[str] | None = None) -> str:
    """One of a tab's parameters in the address; its default if it is missing or not allowed."""
    value = str((address or {}).get(name) or "")
    return value if value and (allowed is None or value in allowed) else CHOICES[tab][name]


def sync_to_url(
    shared: "Shared",
    boxes: Mapping[str, Component],
    *,
    tab: str = "",
    events: Mapping[str, Sequence] | None = None,
    forgets: Sequence[str] = (),
) -> None:
    """Write what the user chooses in a box into the address and redraw the open tab. Runs in the browser.

    Only that box is written: another may still show what a slow drawing of an earlier address gave it.

    boxes    by parameter of the address
    tab      tab whose defaults are left out of the address; without it, empty text is
    events   by parameter: events that choose, where these are not its box's input
    forgets  parameters that are dropped, since they depend on these choices
    """
    for name, box in boxes.items():
        values = json.dumps([name, CHOICES.get(tab, {}).get(name, ""), forgets])
        js = f"(address, chosen) => workbenchApp.choose(...{values}, address, chosen)"
        for event in (events or {}).get(name) or [box.input]:  # type: ignore[attr-defined]
            event(None, [shared.address, box], shared.address, js=js)


def read_address(search: str | None) -> dict[str, str]:
    """The parameters of an address such as "?run=a&tab=answers"; of a repeated parameter the last value."""
    return {
        key: values[-1][: MAX_RUNS_LENGTH if key in ("with", "metrics") else MAX_PARAM_LENGTH]
        for key, values in parse_qs((search or "").lstrip("?")).items()
    }


def requested_run(params: Mapping[str, str], runs: Sequence[str]) -> str | None:
    """The run in the address, or the newest run if the address names none or one that does not exist."""
    return params["run"] if params.get("run") in runs else next(iter(runs), None)


def first_tab(runs: Sequence) -> str:
    """The tab that opens if the address names none."""
    return "training" if runs else "runs"


def run_names(context: AppContext) -> list[str]:
    """Names of all runs, newest first."""
    return [state.name for state in find_jobs(context.runs_dir)]


def show_errors(callback: Callable, outputs: int = 1) -> Callable:
    """Wrap a callback: a WorkbenchError or OSError becomes a message on the page, and its outputs stay as they are.

    outputs  number of output components
    """

    @functools.wraps(callback, updated=())
    def safe(*values: object) -> object:
        try:
            return callback(*values)
        except (WorkbenchError, OSError) as error:
            gr.Warning(escape(sentence(error)), title="Error", duration=12)
            return gr.skip() if outputs == 1 else (gr.skip(),) * outputs

    safe.outputs = outputs  # type: ignore[attr-defined]
    return safe


def render_error_in_place(draw: Callable, outputs: Sequence[Component], *, others_stay: bool = False) -> Callable:
    """Wrap a callback: an error is shown in its first HTML output; other HTML and figures are emptied, or stay."""
    message_idx = next(
        (message_idx for message_idx, component in enumerate(outputs) if isinstance(component, gr.HTML)), None
    )
    if message_idx is None:
        return draw
    plain = getattr(draw, "__wrapped__", draw)

    @functools.wraps(draw, updated=())
    def drawn(*values: object) -> object:
        try:
            return plain(*values)
        except (WorkbenchError, OSError) as error:
            blank = [gr.skip() if others_stay else _emptied(component) for component in outputs]
            blank[message_idx] = note(sentence(error), "error")
            return tuple(blank) if len(blank) > 1 else blank[0]

    drawn.outputs = len(outputs)  # type: ignore[attr-defined]
    return drawn


def _emptied(component: Component) -> object:
    if isinstance(component, gr.HTML):
        return ""
    if isinstance(component, gr.Plot):
        return None
    return gr.DownloadButton(visible=False) if isinstance(component, gr.DownloadButton) else gr.skip()


def sentence(error: Exception) -> str:
    """The error as a sentence for the page."""
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} cannot be read or written ({error.strerror or error})."
    text = str(error)
    is_key = not text.split(" ", 1)[0].isalpha()  # keys such as training.steps are not capitalized
    return text if is_key else text[:1].upper() + text[1:]


def note(text: str, kind: str = "hint") -> str:
    """A sentence as HTML: an empty state, a hint or an error. kind: hint, error, good or warning."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="app-note app-{kind}" role="{role}">{escape(text)}</p>' if text else ""
