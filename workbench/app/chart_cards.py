"""Charts of Training as JSON for assets/charts.js, headline numbers as HTML, and all curves as CSV.

Choices come from the address: x axis, log axis, smoothing, metrics, the split by domain or token type, seeds.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from workbench.analysis import figures
from workbench.analysis.charts.curves import SEEDS, Curves, curves
from workbench.analysis.charts.figures import chart_figure, series_style
from workbench.analysis.charts.groups import GROUPS, Chart, charts_of, not_recorded
from workbench.analysis.charts.headlines import Headline, headlines
from workbench.analysis.charts.recorded import AXES, recorded
from workbench.analysis.charts.smoothing import parse_smoothing
from workbench.analysis.illusion import accuracy
from workbench.analysis.regimes import SPLITS, gaps_over_steps, shares_over_steps
from workbench.analysis.style import empty_figure
from workbench.analysis.table import names_of
from workbench.app.context import choice, note, sentence
from workbench.errors import WorkbenchError
from workbench.traces.reader import Traces

TITLES = {
    "quality": "Quality",
    "supervision": "Supervision",
    "optimization": "Optimization",
    "speed": "Speed",
    "other": "Other metrics",
}
PANELS = {  # of the run that is shown; the group and the title of each
    "accuracy-and-confidence": ("quality", "Accuracy and confidence"),
    "token-share": ("supervision", "Token share by regime"),
    "loss-share": ("supervision", "Loss share by regime"),
    "gaps-by-visibility": ("supervision", "Capability and information gap"),
}


@dataclass(frozen=True)
class ChartChoices:
    """Choices of the charts. metrics: those to draw, each in a chart of its own; none = the default charts."""

    axis: str = "step"
    log: bool = False
    smoothing: float = 0.0
    metrics: tuple[str, ...] = ()
    split: str = ""
    seeds: str = "separate"


def read_choices(address: Mapping | None) -> ChartChoices:
    """The choices in an address; a value that is not allowed is the default. Raises ConfigError for the smoothing."""
    metrics = str((address or {}).get("metrics") or "").split(",")
    return ChartChoices(
        axis=choice(address, "training", "x", tuple(AXES)),
        log=choice(address, "training", "log", ("1",)) == "1",
        smoothing=parse_smoothing((address or {}).get("smooth")),
        metrics=tuple(dict.fromkeys(filter(None, metrics))),
        split=choice(address, "training", "by", SPLITS),
        seeds=choice(address, "training", "seeds", SEEDS),
    )


def known_metrics(runs: Sequence[Path], split: str = "") -> list[str]:
    """Every metric that one of the runs recorded, in the order of the files."""
    splits = [split] if split else []
    return list(dict.fromkeys(name for run_dir in runs for name in recorded(run_dir, splits=splits).names))


def read_curves(runs: Sequence[Path], choices: ChartChoices) -> tuple[list[Chart], Curves, list[str]]:
    """The charts to draw, their curves, and notes on what they leave out.

    Raises: RunError or TraceError for files that cannot be read.
    """
    names = known_metrics(runs, choices.split)
    charts = charts_of(names, choices.metrics, choices.split)
    wanted = list(dict.fromkeys(name for chart in charts for name in (*chart.metrics, *chart.several)))
    drawn = curves(runs, wanted, axis=choices.axis, smoothing=choices.smoothing, seeds=choices.seeds)
    missing = [] if choices.metrics else not_recorded(names)
    missing += [name for name in choices.metrics if name not in names]
    notes = [f"Not recorded: {', '.join(missing)}."] if missing else []
    return charts, drawn, [*drawn.notes, *notes]


def charts_json(
    runs: Sequence[Path],
    choices: ChartChoices,
    theme: str,
    traces: Traces | None = None,
    fault: str = "",
    notes: Sequence[str] = (),
) -> str:
    """All charts of the runs, and those of the shown run, which is the first.

    traces  of the first run, if it has any
    fault   why they cannot be read
    notes   to show above the charts, before those of the charts
    """
    charts, drawn, further = read_curves(runs, choices)
    several = len(runs) > 1  # also as one series, the mean over seeds
    by_group: dict[str, list[dict]] = {group: [] for group in GROUPS}
    for chart in charts:
        if chart.name == "eval-accuracy" and not several:
            continue  # the panel below shows it, with the confidence and all policies
        figure = chart_figure(drawn, chart, theme=theme, log=choices.log)
        by_group[chart.group].append({"name": chart.name, "figure": figure})
    if not choices.metrics:
        for name, (group, _) in PANELS.items():
            panel = {"name": name, "figure": _panel(name, runs[0], traces, theme, fault), "wide": True}
            position = 0 if group == "quality" and not several else len(by_group[group])
            by_group[group].insert(position, panel)
    series = []
    for index, item in enumerate(drawn.series):
        color, dash = series_style(theme, index)
        series.append({"name": item.name, "color": color, "dash": dash})
    groups = [{"title": TITLES[group], "figures": items} for group, items in by_group.items() if items]
    return json.dumps({"series": series, "groups": groups, "notes": [*notes, *further]}, separators=(",", ":"))


def message_json(message: str) -> str:
    """Charts of a run that has nothing to draw: the reason."""
    return json.dumps({"series": [], "groups": [], "notes": [message]})


def curves_csv(runs: Sequence[Path], choices: ChartChoices) -> str:
    """All values of the drawn curves as CSV, without thinning."""
    _, drawn, _ = read_curves(runs, choices)
    out = io.StringIO()
    writer = csv.writer(out)
    names = {"step": "step", "x": AXES[choices.axis], "value": "value", "smoothed": "smoothed"}
    names |= {"low": "low", "high": "high", "count": "seeds"}
    if choices.axis == "step":
        del names["x"]
    writer.writerow(["run", "metric", *names.values()])
    for (series, name), part in drawn.parts.items():
        columns = (part[column] for column in names)
        for row in zip(*columns, strict=True):
            writer.writerow([series, name, *("" if value != value else value for value in row)])
    return out.getvalue()


def _panel(name: str, run_dir: Path, traces: Traces | None, theme: str, fault: str) -> dict:
    """A figure of the shown run; one that cannot be drawn shows the reason."""
    source = run_dir if traces is None else traces
    title = PANELS[name][1]
    makes: dict[str, Callable] = {
        "accuracy-and-confidence": lambda: figures.accuracy_curves(accuracy(run_dir), theme=theme),
        "token-share": lambda: figures.stacked_shares(shares_over_steps(source), theme=theme),
        "loss-share": lambda: figures.stacked_shares(shares_over_steps(source), by="loss_share", theme=theme),
        "gaps-by-visibility": lambda: figures.gap_curves(gaps_over_steps(source), theme=theme),
    }
    try:
        if fault and name != "accuracy-and-confidence":
            figure = empty_figure(fault, theme, title=title, height=270)
        else:
            figure = makes[name]()
    except (WorkbenchError, OSError) as error:
        figure = empty_figure(sentence(error), theme, title=title, height=270)
    return json.loads(figure.to_json())


def headlines_html(runs: Sequence[Path], names: Sequence[str] = ()) -> str:
    """Headline numbers: tiles for one run, a table with a row per run for several."""
    names = names or names_of(*runs)
    by_run = {}
    for run_dir, name in zip(runs, names, strict=True):
        try:
            by_run[name] = headlines(run_dir)
        except (WorkbenchError, OSError) as error:
            return note(f"{name}: {sentence(error)}", "error")
    if len(by_run) == 1:
        return _tiles(next(iter(by_run.values())))
    titles = list(dict.fromkeys(item.title for items in by_run.values() for item in items))
    if not titles:
        return ""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = "".join(_row(name, items, titles) for name, items in by_run.items())
    return (
        '<div class="wbu-scroll"><table aria-label="headline numbers of the runs"><thead><tr><th>run</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(name: str, items: Sequence[Headline], titles: Sequence[str]) -> str:
    by_title = {item.title: item for item in items}
    cells = "".join(_cell(by_title.get(title)) for title in titles)
    return f'<tr><td class="wbu-long">{escape(name)}</td>{cells}</tr>'


def _cell(item: Headline | None) -> str:
    if item is None:
        return '<td class="wbu-none">-</td>'
    title = escape(item.note, quote=True)
    return f'<td title="{title}">{escape(item.value)}<br><small>{escape(item.change)}</small></td>'


def _tiles(items: Sequence[Headline]) -> str:
    tiles = "".join(
        f"<div><h3>{escape(item.title)}</h3><b>{escape(item.value)}</b>"
        f"<span>{escape(item.change)}</span><small>{escape(item.note)}</small></div>"
        for item in items
    )
    return f'<div class="wbf-tiles">{tiles}</div>' if tiles else ""
