"""Watch: one run as it goes: its state, its curves, its answers; stop and resume.

The page asks again every two seconds while the run lives and the tab is open: of its state and its log (`poll`), a look at
a few small files. Only if there is more, everything is asked for (`look_at`). Curves are drawn anew only if a number was
added, and more seldom the older the run is and the longer drawing takes, so that watching does not slow the training down.
What was drawn last is remembered by the browser, so a restarted server goes on where the other one was.
"""

import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import gradio as gr
import plotly.graph_objects as go

from workbench.analysis import figures
from workbench.analysis.illusion import HOW_SURE, accuracy
from workbench.analysis.regimes import gaps_over_steps, shares_over_steps
from workbench.analysis.runs import metrics
from workbench.analysis.style import empty_figure
from workbench.analysis.table import Table, table
from workbench.app.answers import COLUMNS, answers_to, asked_questions
from workbench.app.components import (
    TRACES,
    Column,
    aside_html,
    empty_html,
    fragment_component,
    plot_component,
    rows_component,
    rows_html,
)
from workbench.app.context import (
    AppContext,
    Shared,
    note,
    render_error_in_place,
    run_choices,
    sentence,
    show_errors,
)
from workbench.app.status import status_html
from workbench.config.schema import RESUMABLE
from workbench.errors import RunError, TraceError, WorkbenchError
from workbench.runs.jobs import JobState, log_tail, resume_run, stop_run
from workbench.traces.reader import Traces

NO_RUNS = "No run is here yet. Launch one, or `workbench train configs/demo.yaml`."
POLL_S = 2.0
DRAW_S, OLD_DRAW_S = 20.0, 300.0  # between two drawings of the curves: a browser takes a second of a core for each
AGE_SHARE = 1 / 20  # between these two, the part of a run's age in which its curves hardly grow
SHARE = 1 / 50  # of the time, at most, that drawing takes the server
CURVES = (  # title, metrics
    ("Loss", ("loss",)),
    ("Right answers while sampling", ("accuracy",)),
    ("Entropy of the student", ("entropy",)),
    ("Length of answers", ("completion_length",)),
    ("Cut at the limit, and agreeing", ("truncated", "agreement")),
    ("Learning rate", ("learning_rate",)),
)
PANELS = {  # title
    "accuracy": "Accuracy and confidence",
    "shares": "Who supervised, by share of tokens",
    "loss_shares": "Who supervised, by share of loss",
    "gaps": "The two gaps over training",
}


def build_tab(context: AppContext, shared: Shared) -> None:
    """The tab."""
    timer = gr.Timer(POLL_S, active=False)
    seen = gr.Textbox("", visible="hidden", elem_id="watch-seen")
    heard, more_due = (gr.Textbox("", visible="hidden") for _ in range(2))
    with gr.Row(elem_id="watch-head", equal_height=True):
        status = gr.HTML(elem_id="watch-status", min_width=520)
        with gr.Column(scale=0, min_width=260, elem_id="watch-actions"):
            with gr.Row():
                stop = gr.Button("Stop", interactive=False, elem_id="watch-stop", min_width=100)
                resume = gr.Button("Resume", interactive=False, elem_id="watch-resume", min_width=100)
            kill = gr.Button("Stop at once", variant="stop", visible=False, elem_id="watch-kill")
            more = gr.Textbox(
                label="Resume with",
                placeholder="training.save_every=10",
                lines=1,
                max_lines=4,
                visible=False,
                info=f"lines of key=value, of {', '.join(RESUMABLE)}; empty: as before",
                elem_id="watch-overrides",
            )
    with gr.Accordion("What it printed", open=False, elem_id="watch-log-section"):
        log = gr.Textbox(
            show_label=False,
            label="Log",
            lines=16,
            max_lines=16,
            interactive=False,
            buttons=["copy"],
            elem_id="watch-log",
        )
    with gr.Row(elem_classes="app-plots"):
        plots = [plot_component(title) for title, _ in CURVES]
    with gr.Row(elem_classes="app-plots app-wide"):
        for name, title in PANELS.items():
            plots.append(plot_component(title, elem_id=f"watch-{name}"))
            if name == "accuracy":
                sure = fragment_component("how to read confidence", elem_id="watch-sure")
    gr.HTML("<h2>The same question over training</h2>", elem_classes="app-heading")
    question = gr.Dropdown(
        [],
        value=None,
        label="Question",
        info="those answered at most steps first",
        allow_custom_value=True,
        elem_id="watch-question",
    )
    answers = rows_component("Answers to one question, by step", elem_id="watch-answers")

    state_outputs = [status, stop, kill, resume, more, timer]
    outputs = [*state_outputs, shared.run, log, seen, question, answers, *plots, sure]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    look = render_error_in_place(partial(look_at, context), outputs, others_stay=True)
    inputs = [shared.run, shared.theme, seen, question, shared.tab]
    first_view = show_errors(partial(summary_view, context), len(state_outputs))
    first = shared.on_show("watch", first_view, [shared.run], state_outputs)
    first.then(
        render_error_in_place(partial(look_at, context, anew=True), outputs, others_stay=True),
        inputs,
        outputs,
        queue=False,
        **quiet,
    )
    beating = [status, log, heard, more_due]  # few: each component that may change costs the browser something
    timer.tick(
        render_error_in_place(partial(poll, context), beating, others_stay=True),
        [shared.run, shared.theme, seen, heard, shared.tab],
        beating,
        queue=False,
        **quiet,
    )
    more_due.change(look, inputs, outputs, queue=False, trigger_mode="once", **quiet)
    question.input(show_errors(partial(show_answers, context)), [shared.run, question], answers, **quiet)
    for button, act, given in (
        (stop, partial(stop_it, context), [shared.run]),
        (kill, partial(stop_it, context, at_once=True), [shared.run]),
        (resume, partial(resume_it, context), [shared.run, more]),
    ):
        click = button.click(show_errors(act, len(state_outputs)), given, state_outputs, **quiet)
        click.then(look, inputs, outputs, **quiet)


def summary_view(context: AppContext, run: str | None) -> tuple:
    """What is known of a run before any curve is drawn."""
    if not run:
        return (note(NO_RUNS), *_buttons(context, None))
    try:
        return _state(context, context.job(run))
    except RunError as error:  # deleted while it was looked at
        return (note(sentence(error), "error"), *_buttons(context, None))


def poll(context: AppContext, run: str | None, theme: str, seen: str, heard: str, tab: str = "watch") -> tuple:
    """State and log of a run as they are now, what of the log was `heard`, and a new text if `look_at` has more to show."""
    try:
        state = context.job(run)
    except RunError:  # deleted while it was looked at
        return (gr.skip(), gr.skip(), "", str(time.time()))
    before, log = _remembered(seen, run, theme), json.dumps([run, _log_mark(state.run_dir)])
    has_more = before.get("status") != state.status or _is_due(state, before, tab)
    said = gr.skip() if log == heard else log_tail(state.run_dir)
    return (status_html(state), said, log, str(time.time()) if has_more else gr.skip())


def look_at(
    context: AppContext,
    run: str | None,
    theme: str,
    seen: str,
    question: str | None,
    tab: str = "watch",
    *,
    anew: bool = False,
) -> tuple:
    """State, log, answers and curves of a run, of each only what has changed since `seen`; `anew` draws all of it.

    Behind another open tab nothing is drawn.
    """
    try:
        state = context.job(run)
        run_dir = state.run_dir
    except RunError:  # there is none, or it was deleted while it was looked at
        return (*summary_view(context, run), gr.skip(), "", "", *_cleared())
    before = _remembered(seen, run, theme)
    now = {
        "run": run,
        "theme": theme,
        "status": state.status,
        "log": _log_mark(run_dir),
    }
    log = gr.skip() if before.get("log") == now["log"] else log_tail(run_dir)
    marks = _marks(state)
    if anew or _is_due(state, before, tab):
        start = time.perf_counter()
        traces, fault = read_traces(run_dir)
        nothing = "" if fault else ended_with_nothing(state, traces)
        drawn = [*offer_questions(run_dir, traces, question, fault), *draw(run_dir, traces, theme, fault, nothing)]
        drawn[1] = empty_html(nothing) if nothing else drawn[1]
        drawn.append(how_sure(run_dir))
        cost = time.perf_counter() - start
        age = time.time() - state.started if state.started else 0.0
        now |= {"marks": marks, "next": time.time() + max(DRAW_S, min(age * AGE_SHARE, OLD_DRAW_S), cost / SHARE)}
    else:
        drawn = [gr.skip()] * len(_cleared())
        now |= {"marks": before.get("marks"), "next": before.get("next", 0.0)}
    has_turned = before.get("status") not in (None, state.status)
    picker = gr.Dropdown(choices=run_choices(context)) if has_turned or anew else gr.skip()
    # a run that has ended is drawn once more by the tick that finds it ended; then the timer rests
    return (status_html(state), *_buttons(context, state), picker, log, json.dumps(now), *drawn)


def read_traces(run_dir: Path) -> tuple[Traces | None, str]:
    """The run's traces, or None and why they cannot be read: metrics are drawn all the same."""
    try:
        return TRACES.of(run_dir), ""
    except (WorkbenchError, OSError) as error:
        return None, sentence(error)


def ended_with_nothing(state: JobState, traces: Traces | None) -> str:
    """What to say of a run that has ended and recorded nothing; "" of all others."""
    has_any = traces is not None or any((state.run_dir / name).exists() for name in ("metrics.jsonl", "evals"))
    if state.is_alive or has_any:
        return ""
    return f"The run {state.status} before it recorded anything. What it said stands above."


def draw(run_dir: Path, traces: Traces | None, theme: str, fault: str = "", nothing: str = "") -> list[go.Figure]:
    """All figures of a run, in the order of CURVES and PANELS; one that cannot be drawn says why.

    fault    why the traces cannot be read, if they cannot
    nothing  what to say in place of each figure, if there will be none
    """
    if nothing:
        titles = [*(title for title, _ in CURVES), *PANELS.values()]
        return [empty_figure(nothing, theme, title=title, height=270) for title in titles]

    def drawn(title: str, make: Callable[[], go.Figure]) -> go.Figure:
        try:
            return make()
        except (WorkbenchError, OSError) as error:
            return empty_figure(sentence(error), theme, title=title, height=270)

    def curve(title: str, names: tuple[str, ...]) -> go.Figure:
        made = figures.curves(_of(metrics_of(), names, title), title=title, theme=theme, height=270)
        return made if len(made.data) > 1 else made.update_layout(margin_t=62)  # no legend

    metrics_of = cache(partial(metrics, run_dir))
    source = run_dir if traces is None else traces
    shares_of = cache(partial(shares_over_steps, source))
    panels = {
        "accuracy": lambda: figures.accuracy_curves(accuracy(run_dir), theme=theme),
        "shares": lambda: figures.stacked_shares(shares_of(), theme=theme),
        "loss_shares": lambda: figures.stacked_shares(shares_of(), by="loss_share", theme=theme),
        "gaps": lambda: figures.gap_curves(gaps_over_steps(source), theme=theme),
    }
    if fault:
        panels |= {name: partial(_refuse, fault) for name in ("shares", "loss_shares", "gaps")}
    return [
        *(drawn(title, partial(curve, title, names)) for title, names in CURVES),
        *(drawn(PANELS[name], panels[name]) for name in PANELS),
    ]


def how_sure(run_dir: Path) -> str:
    """What confidence is, where any is drawn."""
    try:
        return "" if accuracy(run_dir).empty else aside_html(HOW_SURE)
    except (WorkbenchError, OSError):  # the figure says so
        return ""


def stop_it(context: AppContext, run: str, *, at_once: bool = False) -> tuple:
    """Asks a run to save and end, or ends it; returns its state."""
    context.check_writable()
    stop_run(context.run_dir(run), at_once=at_once)
    return _state(context, context.job(run))


def resume_it(context: AppContext, run: str, overrides: str) -> tuple:
    """Goes on with a run; returns its state."""
    context.check_writable()
    lines = [line.strip() for line in (overrides or "").split("\n") if line.strip()]
    for line in lines:
        if "=" not in line or line.startswith("-"):
            raise RunError(f'"{line}" is no key=value. Write one change a line, as training.save_every=10.')
    resume_run(context.run_dir(run), lines, folders=context.folders, queue=context.queue)
    return _state(context, context.job(run))


def offer_questions(run_dir: Path, traces: Traces | None, chosen: str | None, fault: str = "") -> tuple:
    """The questions of a run, and the answers to the chosen or the first of them; or the fault of its traces."""
    try:
        asked = [] if fault else asked_questions(run_dir, traces)
    except (WorkbenchError, OSError) as error:
        asked, fault = [], sentence(error)
    if fault:
        return gr.Dropdown(choices=[], value=None), empty_html(fault)
    known = [one.example for one in asked]
    example = chosen if chosen in known else known[0] if known else None
    picker = gr.Dropdown(choices=[(one.label, one.example) for one in asked], value=example)
    return picker, answers_html(answers_to(run_dir, traces, example or ""))


def show_answers(context: AppContext, run: str | None, example: str | None) -> str:
    """Every answer to a question, as a table."""
    run_dir = context.run_dir(run)
    return answers_html(answers_to(run_dir, TRACES.of(run_dir), example or ""))


def _refuse(fault: str) -> go.Figure:
    raise TraceError(fault)


def answers_html(found: Table) -> str:
    kinds = {"step": "number", "tokens": "number", "right": "right", "where": "short", "expected": "short"}
    columns = [Column(name, kind=kinds.get(name, "mono")) for name in COLUMNS]
    return rows_html(found, columns, label="Answers to one question, by step")


def _state(context: AppContext, state: JobState) -> tuple:
    return (status_html(state), *_buttons(context, state))


def _buttons(context: AppContext, state: JobState | None) -> tuple:
    """Stop, stop at once, resume, with what, and whether to ask again."""
    may = not context.read_only and state is not None
    is_alive = state is not None and state.is_alive
    can_resume = may and state is not None and state.can_resume
    is_stopping = state is not None and state.status == "stopping"
    return (
        gr.Button("Stopping …" if is_stopping else "Stop", interactive=may and is_alive and not is_stopping),
        gr.Button(visible=may and is_stopping),
        gr.Button(interactive=can_resume),
        gr.Textbox(visible=can_resume),
        gr.Timer(active=is_alive),
    )


def _of(trained: Table, names: tuple[str, ...], title: str) -> Table:
    """Some of the curves, those of peers that learn in the same run too; a table without rows says why."""
    if trained.empty:
        return trained
    own = trained.frame[trained.frame["metric"].str.rpartition("/")[2].isin(names)]
    empty = f"Nothing is recorded for {title.lower()}: this data has no answers to compare with."
    return table(own, list(trained.frame.columns), run=trained.run, empty=empty, units=trained.units)


def _is_due(state: JobState, before: dict, tab: str) -> bool:
    """Whether a number was added since the curves were drawn, and they may be drawn again."""
    is_time = time.time() >= before.get("next", 0.0) or not state.is_alive
    return tab == "watch" and is_time and before.get("marks") != _marks(state)


def _marks(state: JobState) -> list:
    run_dir = state.run_dir
    return _mark(run_dir / "metrics.jsonl", run_dir / "evals", run_dir / "run.json" if not state.is_alive else None)


def _log_mark(run_dir: Path) -> list:
    return _mark(run_dir.parent / ".jobs" / run_dir.name / "train.out", run_dir / "train.log")


def _mark(*files: Path | None) -> list:
    """Changes whenever one of the files does; reads none of them."""
    marks = []
    for file in files:
        try:
            found = file.stat() if file is not None else None
        except OSError:
            found = None
        marks.append([found.st_mtime_ns, found.st_size] if found else None)
    return marks


def _cleared() -> list:
    """No question, no answers, no curves, and nothing said of them."""
    return [gr.Dropdown(choices=[], value=None), "", *[None] * (len(CURVES) + len(PANELS)), ""]


def _remembered(seen: str, run: str, theme: str) -> dict:
    """What the browser holds, if it is about this run in this theme."""
    try:
        before = json.loads(seen) if seen else {}
    except ValueError:
        return {}
    is_same = isinstance(before, dict) and (before.get("run"), before.get("theme")) == (run, theme)
    return before if is_same else {}
