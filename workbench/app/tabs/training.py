"""Charts of Training: a run's state, log, curves and answers while it trains; stop and resume it.

1. While the run is alive and the tab is open, the page calls `poll` every two seconds. It reads a few small files: the
   run's state and its log.
2. `poll` triggers `update` only if there is more to show. `update` redraws the curves only if a number was added, and
   less often the older the run is and the longer drawing takes, so that monitoring does not slow training down.
3. The browser keeps what was drawn last, so a restarted server continues where the other one stopped.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from workbench.analysis import figures
from workbench.analysis.illusion import CONFIDENCE_NOTE, accuracy
from workbench.analysis.regimes import gaps_over_steps, shares_over_steps
from workbench.analysis.runs import metrics
from workbench.analysis.style import empty_figure
from workbench.analysis.table import Table, table
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
    sentence,
    show_errors,
)
from workbench.app.questions import COLUMNS, answered_questions, answers_to
from workbench.app.sidebar import sidebar_html
from workbench.app.status import status_html
from workbench.config.schema import RESUMABLE
from workbench.errors import RunError, TraceError, WorkbenchError
from workbench.runs.jobs import JobState, log_tail, resume_run, stop_run
from workbench.traces.reader import Traces

NO_RUNS = "No runs yet. Start one in Runs, New run, or in a terminal: workbench train configs/demo.yaml"
POLL_S = 2.0
MIN_REDRAW_S, MAX_REDRAW_S = 20.0, 300.0  # between two redraws: each costs the browser a second of one core
REDRAW_AGE_FRACTION = 1 / 20  # of a run's age: the interval between redraws, within these bounds
MAX_DRAW_SHARE = 1 / 50  # of the server's time spent on drawing
PARTS = ("sample", "score", "learn", "update", "trace", "probe", "evaluate", "save")
CURVES = (  # title, metrics
    ("Loss", ("loss",)),
    ("Accuracy of training answers", ("accuracy",)),
    ("Student entropy", ("entropy",)),
    ("Answer length", ("completion_length",)),
    ("Truncated and duplicate answers", ("truncated", "duplicate_rate")),
    ("Learning rate", ("learning_rate",)),
    ("Answer tokens per second", ("tokens_per_second",)),
    ("Padding in passes", ("padding_share",)),
    ("Seconds per part of a step", tuple(f"seconds/{part}" for part in PARTS)),
)
PANELS = {  # title
    "accuracy": "Accuracy and confidence",
    "shares": "Token share by regime",
    "loss_shares": "Loss share by regime",
    "gaps": "Capability and information gap",
}


@dataclass(frozen=True)
class _Components:
    """Components of the tab. `last_state` and `last_log` keep in the browser what was drawn last."""

    timer: gr.Timer
    last_state: gr.Textbox
    last_log: gr.Textbox
    update_trigger: gr.Textbox
    status: gr.HTML
    stop: gr.Button
    resume: gr.Button
    kill: gr.Button
    overrides: gr.Textbox
    log: gr.Textbox
    plots: list[gr.Plot]
    confidence: gr.HTML
    question: gr.Dropdown
    answers: gr.HTML


def build_tab(context: AppContext, shared: Shared) -> None:
    """State and buttons, log, curves, and the answers to one question over training."""
    parts = _lay_out()
    state_outputs = [parts.status, parts.stop, parts.kill, parts.resume, parts.overrides, parts.timer]
    outputs = [*state_outputs, shared.sidebar, parts.log, parts.last_state, parts.question, parts.answers]
    outputs += [*parts.plots, parts.confidence]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    refresh = render_error_in_place(partial(update, context), outputs, others_stay=True)
    inputs = [shared.run, shared.theme, parts.last_state, parts.question, shared.tab]
    first_view = show_errors(partial(summary_view, context), len(state_outputs))
    first = shared.on_show("training", first_view, [shared.run], state_outputs)
    first.then(
        render_error_in_place(partial(update, context, redraw_all=True), outputs, others_stay=True),
        inputs,
        outputs,
        queue=False,
        **quiet,
    )
    # few: each component that may change costs the browser something
    poll_outputs = [parts.status, parts.log, parts.last_log, parts.update_trigger]
    parts.timer.tick(
        render_error_in_place(partial(poll, context), poll_outputs, others_stay=True),
        [shared.run, shared.theme, parts.last_state, parts.last_log, shared.tab],
        poll_outputs,
        queue=False,
        **quiet,
    )
    parts.update_trigger.change(refresh, inputs, outputs, queue=False, trigger_mode="once", **quiet)
    parts.question.input(
        show_errors(partial(show_answers, context)), [shared.run, parts.question], parts.answers, **quiet
    )
    for button, action, values in (
        (parts.stop, partial(stop_selected, context), [shared.run]),
        (parts.kill, partial(stop_selected, context, at_once=True), [shared.run]),
        (parts.resume, partial(resume_selected, context), [shared.run, parts.overrides]),
    ):
        click = button.click(show_errors(action, len(state_outputs)), values, state_outputs, **quiet)
        click.then(refresh, inputs, outputs, **quiet)


def _lay_out() -> _Components:
    timer = gr.Timer(POLL_S, active=False)
    last_state = gr.Textbox("", visible="hidden", elem_id="training-seen")
    last_log, update_trigger = (gr.Textbox("", visible="hidden") for _ in range(2))
    with gr.Row(elem_id="training-head", equal_height=True):
        status = gr.HTML(elem_id="training-status", min_width=520)
        with gr.Column(scale=0, min_width=260, elem_id="training-actions"):
            stop, resume, kill, overrides = _action_buttons()
    with gr.Accordion("Log", open=False, elem_id="training-log-section"):
        log = gr.Textbox(
            show_label=False,
            label="Log",
            lines=16,
            max_lines=16,
            interactive=False,
            buttons=["copy"],
            elem_id="training-log",
        )
    with gr.Row(elem_classes="app-plots"):
        plots = [plot_component(title) for title, _ in CURVES]
    with gr.Row(elem_classes="app-plots app-wide"):
        for name, title in PANELS.items():
            plots.append(plot_component(title, elem_id=f"training-{name}"))
            if name == "accuracy":
                confidence = fragment_component("how to read confidence", elem_id="training-sure")
    gr.HTML("<h2>The same question over training</h2>", elem_classes="app-heading")
    question = gr.Dropdown(
        [],
        value=None,
        label="Question",
        info="questions answered at the most steps come first",
        allow_custom_value=True,
        elem_id="training-question",
    )
    answers = rows_component("Answers to one question, by step", elem_id="training-answers")
    return _Components(
        timer,
        last_state,
        last_log,
        update_trigger,
        status,
        stop,
        resume,
        kill,
        overrides,
        log,
        plots,
        confidence,
        question,
        answers,
    )


def _action_buttons() -> tuple[gr.Button, gr.Button, gr.Button, gr.Textbox]:
    """Stop, Resume, Kill, and the overrides of Resume."""
    with gr.Row():
        stop = gr.Button("Stop", interactive=False, elem_id="training-stop", min_width=100)
        resume = gr.Button("Resume", interactive=False, elem_id="training-resume", min_width=100)
    kill = gr.Button("Kill", variant="stop", visible=False, elem_id="training-kill")
    overrides = gr.Textbox(
        label="Overrides for resuming",
        placeholder="training.save_every=10",
        lines=1,
        max_lines=4,
        visible=False,
        info=f"one key=value per line; allowed keys: {', '.join(RESUMABLE)}. Empty: unchanged",
        elem_id="training-overrides",
    )
    return stop, resume, kill, overrides


def summary_view(context: AppContext, run: str | None) -> tuple:
    """State and buttons of a run, before any curve is drawn."""
    if not run:
        return (note(NO_RUNS), *_buttons(context, None))
    try:
        return _state(context, context.job(run))
    except RunError as error:  # deleted while the page was open
        return (note(sentence(error), "error"), *_buttons(context, None))


def poll(
    context: AppContext, run: str | None, theme: str, last_state: str, last_log: str, tab: str = "training"
) -> tuple:
    """State and log of a run now, the log's new mark, and a new text for the trigger if `update` has more to show."""
    try:
        state = context.job(run)
    except RunError:  # deleted while the page was open
        return (gr.skip(), gr.skip(), "", str(time.time()))
    before, log_mark = _parse_last_state(last_state, run, theme), json.dumps([run, _log_mark(state.run_dir)])
    has_more = before.get("status") != state.status or _is_due(state, before, tab)
    log = gr.skip() if log_mark == last_log else log_tail(state.run_dir)
    return (status_html(state), log, log_mark, str(time.time()) if has_more else gr.skip())


def update(
    context: AppContext,
    run: str | None,
    theme: str,
    last_state: str,
    question: str | None,
    tab: str = "training",
    *,
    redraw_all: bool = False,
) -> tuple:
    """State, log, answers and curves of a run: what has changed since `last_state`, or everything with `redraw_all`.

    Nothing is drawn while another tab is open.
    """
    try:
        state = context.job(run)
        run_dir = state.run_dir
    except RunError:  # no run is chosen, or it was deleted while the page was open
        return (*summary_view(context, run), gr.skip(), "", "", *_cleared())
    before = _parse_last_state(last_state, run, theme)
    now: dict[str, Any] = {"run": run, "theme": theme, "status": state.status, "log": _log_mark(run_dir)}
    log = gr.skip() if before.get("log") == now["log"] else log_tail(run_dir)
    marks = _marks(state)
    if redraw_all or _is_due(state, before, tab):
        start = time.perf_counter()
        traces, fault = read_traces(run_dir)
        nothing = "" if fault else ended_with_nothing(state, traces)
        drawn = [*question_picker(run_dir, traces, question, fault), *draw(run_dir, traces, theme, fault, nothing)]
        drawn[1] = empty_html(nothing) if nothing else drawn[1]
        drawn.append(confidence_note(run_dir))
        cost = time.perf_counter() - start
        age = time.time() - state.started if state.started else 0.0
        now |= {"marks": marks, "next": time.time() + _redraw_interval(age, cost)}
    else:
        drawn = [gr.skip()] * len(_cleared())
        now |= {"marks": before.get("marks"), "next": before.get("next", 0.0)}
    status_changed = before.get("status") not in (None, state.status)
    listed = sidebar_html(context) if status_changed or redraw_all else gr.skip()
    # the tick that finds the run ended draws it once more; then the timer stops
    return (status_html(state), *_buttons(context, state), listed, log, json.dumps(now), *drawn)


def _redraw_interval(age: float, cost: float) -> float:
    """Seconds until the curves of a run of this age may be redrawn, if drawing them took `cost` seconds."""
    return max(MIN_REDRAW_S, min(age * REDRAW_AGE_FRACTION, MAX_REDRAW_S), cost / MAX_DRAW_SHARE)


def read_traces(run_dir: Path) -> tuple[Traces | None, str]:
    """The run's traces, or None and the reason why they cannot be read; metrics are drawn in either case."""
    try:
        return TRACES.of(run_dir), ""
    except (WorkbenchError, OSError) as error:
        return None, sentence(error)


def ended_with_nothing(state: JobState, traces: Traces | None) -> str:
    """The message for a run that ended without recording anything; "" for all others."""
    has_any = traces is not None or any((state.run_dir / name).exists() for name in ("metrics.jsonl", "evals"))
    if state.is_alive or has_any:
        return ""
    return f"The run {state.status} before it recorded anything. Its error is shown above."


def draw(run_dir: Path, traces: Traces | None, theme: str, fault: str = "", nothing: str = "") -> list[go.Figure]:
    """All figures of a run, in the order of CURVES and PANELS; a figure that cannot be drawn shows the reason.

    fault    why the traces cannot be read; "" if they can
    nothing  message in place of each figure, if the run recorded nothing
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
        figure = figures.curves(_of(metrics_of(), names, title), title=title, theme=theme, height=270)
        return figure if len(figure.data) > 1 else figure.update_layout(margin_t=62)  # no legend

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


def confidence_note(run_dir: Path) -> str:
    """The definition of confidence, if the run has evaluations."""
    try:
        return "" if accuracy(run_dir).empty else aside_html(CONFIDENCE_NOTE)
    except (WorkbenchError, OSError):  # the figure shows the error
        return ""


def stop_selected(context: AppContext, run: str, *, at_once: bool = False) -> tuple:
    """Ask a run to save a checkpoint and stop, or kill it; return its state."""
    context.check_writable()
    stop_run(context.run_dir(run), at_once=at_once)
    return _state(context, context.job(run))


def resume_selected(context: AppContext, run: str, overrides: str) -> tuple:
    """Resume a run; return its state."""
    context.check_writable()
    lines = [line.strip() for line in (overrides or "").split("\n") if line.strip()]
    for line in lines:
        if "=" not in line or line.startswith("-"):
            raise RunError(f'"{line}" is not key=value. Write one change per line, such as training.save_every=10.')
    resume_run(context.run_dir(run), lines, folders=context.folders, queue=context.queue)
    return _state(context, context.job(run))


def question_picker(run_dir: Path, traces: Traces | None, chosen: str | None, fault: str = "") -> tuple:
    """The questions of a run and the answers to the chosen one, else the first; or why its traces cannot be read."""
    try:
        questions = [] if fault else answered_questions(run_dir, traces)
    except (WorkbenchError, OSError) as error:
        questions, fault = [], sentence(error)
    if fault:
        return gr.Dropdown(choices=[], value=None), empty_html(fault)
    example_ids = [question.example for question in questions]
    example = chosen if chosen in example_ids else example_ids[0] if example_ids else None
    picker = gr.Dropdown(choices=[(question.label, question.example) for question in questions], value=example)
    return picker, answers_html(answers_to(run_dir, traces, example or ""))


def show_answers(context: AppContext, run: str | None, example: str | None) -> str:
    """Table of every answer to a question."""
    run_dir = context.run_dir(run)
    return answers_html(answers_to(run_dir, TRACES.of(run_dir), example or ""))


def _refuse(fault: str) -> go.Figure:
    raise TraceError(fault)


def answers_html(answers: Table) -> str:
    kinds = {"step": "number", "tokens": "number", "right": "right", "from": "short", "expected": "short"}
    columns = [Column(name, kind=kinds.get(name, "mono")) for name in COLUMNS]
    return rows_html(answers, columns, label="Answers to one question, by step")


def _state(context: AppContext, state: JobState) -> tuple:
    return (status_html(state), *_buttons(context, state))


def _buttons(context: AppContext, state: JobState | None) -> tuple:
    """Stop, Kill, Resume, its overrides, and the timer."""
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
    """The curves of these metrics, with those of peers that learn in the same run; an empty table says why."""
    if trained.empty:
        return trained
    endings = tuple(f"/{name}" for name in names)
    curves = trained.frame[("/" + trained.frame["metric"]).str.endswith(endings)]
    reason = " This data has no reference answers to compare with." if names == ("accuracy",) else ""
    empty = f"Not recorded: {title.lower()}.{reason}"
    return table(curves, list(trained.frame.columns), run=trained.run, empty=empty, units=trained.units)


def _is_due(state: JobState, before: dict, tab: str) -> bool:
    """Whether a number was added since the curves were drawn, and the interval between redraws has passed."""
    is_time = time.time() >= before.get("next", 0.0) or not state.is_alive
    return tab == "training" and is_time and before.get("marks") != _marks(state)


def _marks(state: JobState) -> list:
    run_dir = state.run_dir
    return _mark(run_dir / "metrics.jsonl", run_dir / "evals", run_dir / "run.json" if not state.is_alive else None)


def _log_mark(run_dir: Path) -> list:
    return _mark(run_dir.parent / ".jobs" / run_dir.name / "train.out", run_dir / "train.log")


def _mark(*files: Path | None) -> list:
    """Modification time and size of each file, without reading any."""
    marks = []
    for file in files:
        try:
            stat = file.stat() if file is not None else None
        except OSError:
            stat = None
        marks.append([stat.st_mtime_ns, stat.st_size] if stat else None)
    return marks


def _cleared() -> list:
    """Empty values for question, answers, curves and the note on confidence."""
    return [gr.Dropdown(choices=[], value=None), "", *[None] * (len(CURVES) + len(PANELS)), ""]


def _parse_last_state(last_state: str, run: str, theme: str) -> dict:
    """What the browser drew last, if that was this run in this theme; else {}."""
    try:
        before = json.loads(last_state) if last_state else {}
    except ValueError:
        return {}
    is_same = isinstance(before, dict) and (before.get("run"), before.get("theme")) == (run, theme)
    return before if is_same else {}
