"""What every tab is given, and the one way in which a mistake reaches the page: as a sentence.

A tab is `build_tab(context, shared)`. Its callbacks are functions of (context, plain values); components only wire them:

    draw = show_errors(partial(draw_answer, context))
    shared.on_show("tokens", draw, inputs=[shared.run, shared.theme, shared.address], outputs=[picture])

`on_show` calls when the tab is open and the run, the theme or the address has changed since it was last drawn, and when
the reader asks to look again. What the page holds (run, theme, address) is kept by the browser, so it survives a restart
of the server.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from urllib.parse import parse_qs

import gradio as gr
from gradio.components import Component

from workbench.errors import RunError, WorkbenchError
from workbench.runs.folder import find_run_dir
from workbench.runs.jobs import JobState, find_jobs, read_job

CHOICES = {  # what a tab's lists and switches may say in the address, and what they say at first
    "tokens": {"at_step": "", "regime": "", "domain": "", "kind": "", "truth": "", "right": "", "order": "step"},
    "movement": {"color": "regime", "from": "", "to": "", "of": "", "panels": "", "share": "position_share"},
    "compare": {"metric": "", "layout": "under"},
}
PERSISTENT_PARAMS = (
    "other",
    "study",
    *(name for chosen in CHOICES.values() for name in chosen),
)  # stay when another answer is opened
ADDRESS_KEYS = ("step", "rollout", "process", "probe", "token", "example", "context", "list_page", *PERSISTENT_PARAMS)
MAX_UPLOAD_MB = 20
_LONGEST = 200  # characters of one part of an address
NO_RUN = "No run is chosen. Launch one, or choose one above."


@dataclass(frozen=True)
class AppContext:
    """The folders that the app works in.

    runs_dir     every run is inside it, those of a study one folder deeper; nothing else is read or written
    configs_dir  recipes to start from
    read_only    look, and change nothing
    folders      where pictures of data may lie besides the data file's own folder
    max_runs     how many runs may be at work at once; None = any number
    """

    runs_dir: Path
    configs_dir: Path
    read_only: bool = False
    folders: tuple[Path, ...] = ()
    max_runs: int | None = None

    @property
    def queue(self) -> Path | None:
        """The folder whose queue new runs wait in."""
        return None if self.max_runs is None else self.runs_dir

    def run_dir(self, name: str | None) -> Path:
        """The folder of an existing run. Raises RunError if the name leads out of the runs folder or to no run."""
        return self.job(name).run_dir

    def job(self, name: str | None) -> JobState:
        """The state of an existing run, under the name that the page has for it. Raises RunError as `run_dir`."""
        if not name:
            raise RunError(NO_RUN)
        return replace(read_job(find_run_dir(self.runs_dir, name)), name=name)

    def check_writable(self) -> None:
        """Raises RunError if the app was opened read-only."""
        if self.read_only:
            raise RunError("this page is read-only. Open the app without --read-only to start and stop runs.")


@dataclass
class Shared:
    """Components of the page that all tabs see.

    run       the chosen run's name
    theme     "light" or "dark", for figures
    address   the rest of the address: a mapping with some of ADDRESS_KEYS, values as text
    tab       the open tab's name
    tabs      return gr.Tabs(selected="tokens") to open another tab
    wake      by tab: a hidden text that changes when an open tab has to be drawn; see on_show
    """

    run: gr.Dropdown
    theme: gr.Textbox
    address: gr.JSON
    tab: gr.Textbox
    tabs: gr.Tabs
    refresh_trigger: dict[str, gr.Textbox]

    def on_show(self, tab: str, draw: Callable, inputs: Sequence[Component], outputs: Sequence[Component]) -> object:
        """Call `draw` when `tab` is open and what the page shows has changed. Returns the event, for .then(...).

        What cannot be drawn is said in its place: nothing of another run stays.
        """
        drawn = render_error_in_place(draw, outputs)
        return self.refresh_trigger[tab].change(
            drawn,
            inputs,
            outputs,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
            queue=drawn
            is draw,  # a message over the page needs Gradio's queue; without it an answer takes one request, not three
        )


def persistent_params(address: Mapping | None, but: str = "") -> dict:
    """What stays in the address when another answer is opened: the second run, the study, and each tab's choices.

    but  the tab that is opened for that answer, wherever it is in its list: its choices do not stay
    """
    left = CHOICES.get(but, {})
    return {
        name: value
        for name, value in (address or {}).items()
        if name in PERSISTENT_PARAMS and name not in left and value
    }


def choice(address: Mapping | None, tab: str, name: str, allowed: Sequence[str] | None = None) -> str:
    """What the address says of one of a tab's choices; what it does not say, or nothing allowed, is the default."""
    said = str((address or {}).get(name) or "")
    return said if said and (allowed is None or said in allowed) else CHOICES[tab][name]


def sync_to_url(
    shared: "Shared",
    events: Sequence,
    defaults: Mapping[str, str],
    boxes: Sequence[Component],
    forgets: Sequence[str] = (),
) -> None:
    """At one of the events the browser writes the boxes' values into the address, and the open tab is drawn anew.

    defaults  name in the address -> what is not written into it, in the order of the boxes
    forgets   parts of the address that mean nothing once the reader has chosen otherwise
    """
    js = f"(...values) => workbenchApp.choose({json.dumps(defaults)}, {json.dumps(forgets)}, ...values)"
    gr.on(events, None, [shared.address, *boxes], shared.address, js=js)


def read_address(search: str | None) -> dict[str, str]:
    """The parts of an address as the browser has it, "?run=a&tab=tokens"; of a part that stands twice the last."""
    return {key: values[-1][:_LONGEST] for key, values in parse_qs((search or "").lstrip("?")).items()}


def requested_run(asked: Mapping[str, str], runs: Sequence[str]) -> str | None:
    """The run that an address names, or the newest if it names none that is here."""
    return asked["run"] if asked.get("run") in runs else next(iter(runs), None)


def first_tab(runs: Sequence) -> str:
    """The tab of an address that names none."""
    return "watch" if runs else "launch"


def run_choices(context: AppContext) -> list[tuple[str, str]]:
    """The runs, newest first, each with its state: (label, name) pairs for the run picker."""
    return [(f"{state.name}  ·  {state.status}", state.name) for state in find_jobs(context.runs_dir)]


def show_errors(callback: Callable, outputs: int = 1) -> Callable:
    """The callback; a mistake of the user's or of the disk becomes a message on the page, and the page stays as it is.

    outputs  how many components it changes: Gradio wants to hear of each that it stays
    """

    @functools.wraps(callback, updated=())
    def safe(*values: object) -> object:
        try:
            return callback(*values)
        except (WorkbenchError, OSError) as error:
            gr.Warning(escape(sentence(error)), title="That did not work", duration=12)
            return gr.skip() if outputs == 1 else (gr.skip(),) * outputs

    safe.outputs = outputs  # type: ignore[attr-defined]
    return safe


def render_error_in_place(draw: Callable, outputs: Sequence[Component], *, others_stay: bool = False) -> Callable:
    """The callback; if it fails, its first text says why, and its other texts and figures are emptied, or stay."""
    place = next((place for place, one in enumerate(outputs) if isinstance(one, gr.HTML)), None)
    if place is None:
        return draw
    plain = getattr(draw, "__wrapped__", draw)

    @functools.wraps(draw, updated=())
    def drawn(*values: object) -> object:
        try:
            return plain(*values)
        except (WorkbenchError, OSError) as error:
            blank = [gr.skip() if others_stay else _emptied(one) for one in outputs]
            blank[place] = note(sentence(error), "error")
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
    """What went wrong, for a reader."""
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} cannot be read or written ({error.strerror or error})."
    text = str(error)
    is_key = not text.split(" ", 1)[0].isalpha()  # training.steps stays as it is written
    return text if is_key else text[:1].upper() + text[1:]


def note(text: str, kind: str = "hint") -> str:
    """A sentence as HTML: an empty state, a hint or an error. kind: hint, error, good or warning."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="app-note app-{kind}" role="{role}">{escape(text)}</p>' if text else ""
