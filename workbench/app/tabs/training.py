"""Charts of Training: state and log of a run, headline numbers, charts of all ticked runs; stop and resume it.

1. While a ticked run is alive and the tab is open, the page calls `poll` every two seconds. It reads a few small files:
   the shown run's state and its log.
2. `poll` triggers `update` only if there is more to show. `update` redraws the charts only if a number was added, and
   less often the older the run is and the longer drawing takes, so that monitoring does not slow training down.
3. The browser keeps what was drawn last, so a restarted server continues where the other one stopped.
4. The browser draws only charts in sight that have changed, and keeps their zoom (assets/charts.js).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.analysis.charts.groups import title_of
from workbench.analysis.charts.recorded import AXES
from workbench.analysis.charts.smoothing import MAX_SMOOTHING
from workbench.analysis.illusion import CONFIDENCE_NOTE, accuracy
from workbench.analysis.regimes import SPLITS
from workbench.analysis.table import Table
from workbench.app.chart_cards import (
    ChartChoices,
    charts_json,
    curves_csv,
    headlines_html,
    known_metrics,
    message_json,
    read_choices,
)
from workbench.app.components import (
    TRACES,
    Column,
    aside_html,
    empty_html,
    fragment_component,
    rows_component,
    rows_html,
)
from workbench.app.context import (
    CHOICES,
    AppContext,
    Shared,
    choice,
    further_runs,
    note,
    persistent_params,
    render_error_in_place,
    sentence,
    show_errors,
    sync_to_url,
)
from workbench.app.questions import COLUMNS, answered_questions, answers_to
from workbench.app.sidebar import sidebar_html
from workbench.app.status import status_html
from workbench.config.schema import RESUMABLE
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.runs.jobs import JobState, log_tail, resume_run, stop_run
from workbench.traces.reader import Traces

NO_RUNS = "No runs yet. Start one in Runs, New run, or in a terminal: workbench train configs/demo.yaml"
POLL_S = 2.0
MIN_REDRAW_S, MAX_REDRAW_S = 20.0, 300.0  # between two redraws: each costs the browser a second of one core
REDRAW_AGE_FRACTION = 1 / 20  # of a run's age: the interval between redraws, within these bounds
MAX_DRAW_SHARE = 1 / 50  # of the server's time spent on drawing
SEEDS = (
    ("a curve per run", "separate"),
    ("mean and range", "range"),
    ("mean and 95% interval", "interval"),
)


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
    headlines: gr.HTML
    bar: "_Bar"
    charts: gr.HTML
    confidence: gr.HTML
    question: gr.Dropdown
    answers: gr.HTML


@dataclass(frozen=True)
class _Bar:
    """Choices of the charts, in the order of CHOICES["training"], and the buttons beside them."""

    axis: gr.Dropdown
    log: gr.Checkbox
    smoothing: gr.Slider
    metrics: gr.Dropdown
    split: gr.Dropdown
    seeds: gr.Dropdown
    csv: gr.Button
    csv_text: gr.Textbox
    link: gr.Button

    @property
    def boxes(self) -> list:
        return [self.axis, self.log, self.smoothing, self.metrics, self.split, self.seeds]


def build_tab(context: AppContext, shared: Shared) -> None:
    """State and buttons, log, curves, and the answers to one question over training."""
    parts = _lay_out()
    state_outputs = [parts.status, parts.stop, parts.kill, parts.resume, parts.overrides, parts.timer]
    outputs = [*state_outputs, shared.sidebar, parts.log, parts.last_state, parts.question, parts.answers]
    outputs += [parts.headlines, parts.bar.metrics, parts.charts, parts.confidence]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    refresh = render_error_in_place(partial(update, context), outputs, others_stay=True)
    inputs = [shared.run, shared.theme, parts.last_state, parts.question, shared.tab, shared.address]
    first_outputs = [*state_outputs, *(box for box in parts.bar.boxes if box is not parts.bar.metrics)]
    first_view = show_errors(partial(first_draw, context), len(first_outputs))
    first = shared.on_show("training", first_view, [shared.run, shared.address], first_outputs)
    first.then(
        render_error_in_place(partial(update, context, redraw_all=True), outputs, others_stay=True),
        inputs,
        outputs,
        queue=False,
        **quiet,
    )
    _connect_bar(context, shared, parts)
    # few: each component that may change costs the browser something
    poll_outputs = [parts.status, parts.log, parts.last_log, parts.update_trigger]
    parts.timer.tick(
        render_error_in_place(partial(poll, context), poll_outputs, others_stay=True),
        [shared.run, shared.theme, parts.last_state, parts.last_log, shared.tab, shared.address],
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


def _connect_bar(context: AppContext, shared: Shared, parts: _Components) -> None:
    """Choices change the address; a click on a step opens its answers; buttons copy the link and save all curves."""
    bar, quiet = parts.bar, {"show_progress": "hidden", "api_visibility": "private"}
    boxes = dict(zip(CHOICES["training"], bar.boxes, strict=True))
    sync_to_url(shared, boxes, tab="training", events={"smooth": [bar.smoothing.release]})

    def open_step(event: gr.EventData, run: str, address: dict) -> tuple:
        return answers_of_step(context, run, address, int(event.key["step"])), "answers"

    parts.charts.select(show_errors(open_step, 2), [shared.run, shared.address], [shared.address, shared.tab], **quiet)
    saved = bar.csv.click(
        show_errors(partial(csv_of_charts, context)), [shared.run, shared.address], bar.csv_text, **quiet
    )
    saved.then(None, bar.csv_text, None, js="(text) => workbenchFigures.saveCsv('curves.csv', text)")
    bar.link.click(None, js="() => workbenchFigures.copyLink()")


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
    headlines = fragment_component("headline numbers", elem_id="training-headlines")
    bar = _lay_out_bar()
    charts = gr.HTML(
        label="charts",
        html_template="",
        js_on_load="workbenchCharts(element, trigger, watch, props);",
        apply_default_css=False,
        elem_id="training-charts",
    )
    confidence = fragment_component("how to read confidence", elem_id="training-sure")
    gr.HTML("<h2>Samples over training</h2>", elem_classes="app-heading")
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
        headlines,
        bar,
        charts,
        confidence,
        question,
        answers,
    )


def _lay_out_bar() -> _Bar:
    defaults = CHOICES["training"]
    with gr.Row(elem_id="training-bar", elem_classes="wbu-bar"):
        axis = gr.Dropdown(list(AXES), value=defaults["x"], label="x axis", min_width=92, scale=1, elem_id="training-x")
        log = gr.Checkbox(label="log y", min_width=74, scale=0, elem_id="training-log-axis")
        smoothing = gr.Slider(
            0, MAX_SMOOTHING, value=0, step=0.01, label="smoothing", min_width=150, scale=1, elem_id="training-smooth"
        )
        metrics = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            label="metrics",
            min_width=170,
            scale=3,
            elem_id="training-metrics",
        )
        splits = [("none", ""), *((name.replace("_", " "), name) for name in SPLITS)]
        split = gr.Dropdown(splits, value="", label="split by", min_width=104, scale=1, elem_id="training-by")
        seeds = gr.Dropdown(
            SEEDS, value=defaults["seeds"], label="seeds", min_width=150, scale=1, elem_id="training-seeds"
        )
        csv = gr.Button("CSV", size="sm", scale=0, min_width=88, elem_id="training-csv")
        link = gr.Button("Copy link", size="sm", scale=0, min_width=88, elem_id="training-link")
        csv_text = gr.Textbox(visible="hidden")
    return _Bar(axis, log, smoothing, metrics, split, seeds, csv, csv_text, link)


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


def first_draw(context: AppContext, run: str | None, address: Mapping | None) -> tuple:
    """State and buttons of a run, and the choices in the address, before any chart is drawn."""
    chosen = partial(choice, address, "training")
    try:
        smoothing = read_choices(address).smoothing
    except ConfigError:  # the charts show the error
        smoothing = 0.0
    boxes = (
        chosen("x", tuple(AXES)),
        chosen("log", ("1",)) == "1",
        smoothing,
        chosen("by", SPLITS),
        gr.Dropdown(value=chosen("seeds", [value for _, value in SEEDS]), visible=bool(further_runs(address, run))),
    )
    return (*summary_view(context, run), *boxes)


def ticked_runs(context: AppContext, run: str | None, address: Mapping | None) -> tuple[list[JobState], list[str]]:
    """The shown run and the other ticked ones, and notes on those that do not exist. RunError if the first does not."""
    states, notes = [context.job(run)], []
    for name in further_runs(address, run):
        try:
            states.append(context.job(name))
        except RunError as error:
            notes.append(f"{name} is not drawn: {sentence(error)}")
    return states, notes


def answers_of_step(context: AppContext, run: str | None, address: Mapping | None, step: int) -> dict:
    """The address of the answers of a step, or of the nearest step whose answers are recorded."""
    traces = TRACES.of(context.run_dir(run))
    steps = traces.steps("rollouts") if traces is not None else []
    nearest = min(steps, key=lambda recorded: (abs(recorded - step), recorded), default=step)
    if nearest != step:
        gr.Info(f"Answers of step {step:,} are not recorded. The nearest recorded step is {nearest:,}.")
    return persistent_params(address, but="answers") | {"at_step": str(nearest)}


def csv_of_charts(context: AppContext, run: str | None, address: Mapping | None) -> str:
    """All values of the drawn curves as CSV."""
    states, _ = ticked_runs(context, run, address)
    return curves_csv([state.run_dir for state in states], read_choices(address))


def poll(
    context: AppContext,
    run: str | None,
    theme: str,
    last_state: str,
    last_log: str,
    tab: str = "training",
    address: Mapping | None = None,
) -> tuple:
    """State and log of a run now, the log's new mark, and a new text for the trigger if `update` has more to show."""
    try:
        states, _ = ticked_runs(context, run, address)
    except RunError:  # deleted while the page was open
        return (gr.skip(), gr.skip(), "", str(time.time()))
    state = states[0]
    before, log_mark = _parse_last_state(last_state, run, theme), json.dumps([run, _log_mark(state.run_dir)])
    has_more = before.get("status") != state.status or _is_due(states, before, tab)
    log = gr.skip() if log_mark == last_log else log_tail(state.run_dir)
    return (status_html(state), log, log_mark, str(time.time()) if has_more else gr.skip())


def update(
    context: AppContext,
    run: str | None,
    theme: str,
    last_state: str,
    question: str | None,
    tab: str = "training",
    address: Mapping | None = None,
    *,
    redraw_all: bool = False,
) -> tuple:
    """State, log, answers and charts of runs: what has changed since `last_state`, or everything with `redraw_all`.

    Nothing is drawn while another tab is open.
    """
    try:
        states, notes = ticked_runs(context, run, address)
        state = states[0]
        run_dir = state.run_dir
    except RunError:  # no run is chosen, or it was deleted while the page was open
        return (*summary_view(context, run), gr.skip(), "", "", *_cleared())
    before = _parse_last_state(last_state, run, theme)
    now: dict[str, Any] = {"run": run, "theme": theme, "status": state.status, "log": _log_mark(run_dir)}
    log = gr.skip() if before.get("log") == now["log"] else log_tail(run_dir)
    marks = _marks(states)
    if redraw_all or _is_due(states, before, tab):
        start = time.perf_counter()
        drawn = draw(states, theme, address, question, notes, redraw_all=redraw_all)
        cost = time.perf_counter() - start
        age = time.time() - state.started if state.started else 0.0
        now |= {"marks": marks, "next": time.time() + _redraw_interval(age, cost)}
    else:
        drawn = [gr.skip()] * len(_cleared())
        now |= {"marks": before.get("marks"), "next": before.get("next", 0.0)}
    status_changed = before.get("status") not in (None, state.status)
    listed = sidebar_html(context) if status_changed or redraw_all else gr.skip()
    # the tick that finds the runs ended draws them once more; then the timer stops
    buttons = (*_buttons(context, state)[:-1], gr.Timer(active=any(item.is_alive for item in states)))
    return (status_html(state), *buttons, listed, log, json.dumps(now), *drawn)


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


def draw(
    states: Sequence[JobState],
    theme: str,
    address: Mapping | None,
    question: str | None,
    notes: Sequence[str] = (),
    *,
    redraw_all: bool = True,
) -> list:
    """Questions, answers, headline numbers, metrics to choose from, charts and the note on confidence.

    redraw_all  whether the choices may change; else the list of metrics stays, since the user may be choosing
    """
    run_dir = states[0].run_dir
    traces, fault = read_traces(run_dir)
    nothing = "" if fault else ended_with_nothing(states[0], traces)
    picker, answers = question_picker(run_dir, traces, question, fault)
    if nothing and len(states) == 1:
        return [
            picker,
            empty_html(nothing),
            "",
            gr.Dropdown(choices=[], value=[], multiselect=True),
            message_json(nothing),
            "",
        ]
    runs = [state.run_dir for state in states]
    try:
        choices = read_choices(address)
        charts = charts_json(runs, choices, theme, traces, fault, notes)
        metrics = metrics_box(runs, choices) if redraw_all else gr.skip()
    except (WorkbenchError, OSError) as error:
        charts, metrics = message_json(sentence(error)), gr.skip()
    return [picker, answers, headlines_html(runs), metrics, charts, confidence_note(run_dir)]


def metrics_box(runs: Sequence[Path], choices: ChartChoices) -> gr.Dropdown:
    """Every recorded metric to choose from, those of the address chosen."""
    names = list(dict.fromkeys([*known_metrics(runs, choices.split), *choices.metrics]))
    return gr.Dropdown(
        choices=[(title_of(name), name) for name in names], value=list(choices.metrics), multiselect=True
    )


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


def _is_due(states: Sequence[JobState], before: dict, tab: str) -> bool:
    """Whether a number was added since the charts were drawn, and the interval between redraws has passed."""
    is_time = time.time() >= before.get("next", 0.0) or not any(state.is_alive for state in states)
    return tab == "training" and is_time and before.get("marks") != _marks(states)


def _marks(states: Sequence[JobState]) -> list:
    files: list[Path | None] = []
    for state in states:
        run_dir = state.run_dir
        files += [run_dir / "metrics.jsonl", run_dir / "evals", None if state.is_alive else run_dir / "run.json"]
    return _mark(*files)


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
    """Empty values for question, answers, headline numbers, metrics, charts and the note on confidence."""
    return [gr.Dropdown(choices=[], value=None), "", "", gr.Dropdown(choices=[], value=[], multiselect=True), "", ""]


def _parse_last_state(last_state: str, run: str, theme: str) -> dict:
    """What the browser drew last, if that was this run in this theme; else {}."""
    try:
        before = json.loads(last_state) if last_state else {}
    except ValueError:
        return {}
    is_same = isinstance(before, dict) and (before.get("run"), before.get("theme")) == (run, theme)
    return before if is_same else {}
