"""Self-contained HTML report of a run: curves, movement, illusion, and selected answers token by token.

    write_report("runs/demo", "demo.html")

The file contains plotly.js once. The renderer of the app and the notebooks draws the answers.
"""

import functools
from collections.abc import Callable
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.analysis import figures, illusion, movement, regimes, tokens
from workbench.analysis.runs import metrics
from workbench.analysis.style import THEMES
from workbench.analysis.summary import sampled_by
from workbench.analysis.table import NO_TRACES, Table, traces_of
from workbench.config.schema import read_yaml
from workbench.errors import ConfigError, RunError, require_one_of
from workbench.evals.benchmarks import BenchmarkResult, benchmark_rows, headlines, load_benchmarks
from workbench.render import render_movement, render_page, render_tokens
from workbench.render.text import NONE, signed, visible_text
from workbench.runs.folder import RunFolder
from workbench.traces.reader import Traces
from workbench.traces.selection import Selection

REPORT_NAME = "report.html"
MAX_ANSWERS = 24
_NUM_HEATMAPS = 3  # probes drawn as heatmaps: those with the most regime changes
_FIT = "addEventListener('load', () => dispatchEvent(new Event('resize')))"  # figures fit beside those drawn later
_PLOT = {"displaylogo": False, "responsive": True, "displayModeBar": False}
_LAYOUT = """
.rp-facts,.rp-table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
.rp-facts th{font-weight:400;text-align:left;padding:2px 22px 2px 0;opacity:.7;vertical-align:baseline}
.rp-table{width:100%}
.rp-table :is(th,td){text-align:left;padding:4px 14px 4px 0;vertical-align:baseline}
.rp-table :is(th,td){border-bottom:1px solid light-dark(#dfe2e6,#333940)}
.rp-table th{font-weight:400;opacity:.75;font-size:13px}.rp-table .rp-number{text-align:right;white-space:nowrap}
.rp-wide{overflow-x:auto}.rp-none{opacity:.75}
.rp-card{background:light-dark(#fff,#15181c);border:1px solid light-dark(#dfe2e6,#333940);border-radius:8px}
.rp-card{padding:12px 16px;margin:0 0 14px}
.rp-pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr));gap:14px}
.rp-pair>*{min-width:0}
details summary{cursor:pointer;font-size:14px}
details pre{font:12.5px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow:auto}
"""


def write_report(
    run_dir: str | Path, destination: str | Path | None = None, *, answers: int = 8, theme: str = "light"
) -> Path:
    """Write the report of a run and return its path.

    destination  file; default: report.html in the run's folder
    answers      number of answers drawn token by token, 0 to MAX_ANSWERS
    theme        light or dark

    Raises: RunError if the run does not exist or the file cannot be written; ConfigError for an invalid option.
    """
    require_one_of("theme", theme, THEMES)
    if not 0 <= answers <= MAX_ANSWERS:
        raise ConfigError(f"answers={answers} is out of range. Expected 0 to {MAX_ANSWERS}. Change --answers.")
    folder = RunFolder.open(run_dir)
    destination = folder.path / REPORT_NAME if destination is None else Path(destination)
    if destination.is_dir():
        destination /= f"{folder.path.name}-{REPORT_NAME}"
    traces = traces_of(folder.path)
    sections: list = [
        f"<style>{_LAYOUT}</style><script>{get_plotlyjs()}{_FIT}</script>" + _facts(folder),
        ("Accuracy and training", _learned(folder.path, theme)),
        ("Regimes", _supervised(traces, theme)),
        ("Movement", _moved(traces, theme)),
        ("Illusion", _imitated(folder.path, traces, theme)),
    ]
    if answers:
        sections.append(("Answers token by token", _answers(traces, folder.path.name, answers, theme)))
    page = render_page(sections, f"Report of {folder.path.name}", theme=theme)
    temporary = destination.with_name(f".{destination.name}")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(destination)
    except OSError as error:
        raise RunError(f"{destination} cannot be written ({error.strerror}). Choose another --out.") from None
    return destination


def _facts(folder: RunFolder) -> str:
    status = folder.status
    named = {
        "run": folder.path.name,
        "method": status.get("method"),
        "status": status.get("status"),
        "steps": f"{status.get('steps_done', 0)} of {status.get('steps', '?')}",
        "started": status.get("started"),
        "seed": status.get("seed"),
        "commit": f"{status.get('commit') or NONE}{' with changes' if status.get('dirty') else ''}",
        "skipped examples": ", ".join(f"{reason}: {count}" for reason, count in (status.get("skipped") or {}).items())
        or None,
        "answers in prompts": status.get("answers_in_prompts"),
        "prepared": "; ".join(f"{name}: {value}" for name, value in (status.get("prepared") or {}).items()) or None,
        "sequences": "; ".join(f"{name}: {description}" for name, description in sampled_by(folder.path).items())
        or None,
        "benchmarks": "; ".join(map(_benchmark, headlines(load_benchmarks(folder.path))[0])) or None,
        "warnings": " ".join(status.get("warnings") or ()) or None,
        "error": status.get("error"),
    }
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{escape(str(value))}</td></tr>'
        for name, value in named.items()
        if value is not None
    )
    read_yaml(folder.path / "config.yaml")  # raises for a truncated file, which would be shown in part otherwise
    config = escape((folder.path / "config.yaml").read_text(encoding="utf-8"))
    details = f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
    return f'<div class="rp-card"><table class="rp-facts"><tbody>{rows}</tbody></table>{details}</div>'


def _benchmark(row: BenchmarkResult) -> str:
    benchmark, metric, value, stderr, count, tool, model = benchmark_rows([row])[0]
    error = "" if row.stderr is None else f" ± {stderr}"
    return f"{benchmark} {metric} {value}{error} (questions: {count}; {tool}; {model})"


def _learned(run_dir: Path, theme: str) -> str:
    accuracy = illusion.accuracy(run_dir)
    formats = {
        "policy": str,
        "context": str,
        "visibility": str,
        "step": str,
        "count": str,
        "accuracy": _share,
        "confidence": _share,
        "overconfidence": _points,
        "calibration_error": _share,
        "length": _length,
        "truncated": _share,
    }
    curve = functools.partial(metrics, run_dir)
    return (
        _plot(figures.accuracy_curves(accuracy, theme=theme))
        + _table(illusion.newest(accuracy), formats)
        + f'<p class="rp-none">{escape(illusion.CONFIDENCE_NOTE)}</p>'
        + _pair(
            figures.curves(curve(("loss",)), title="Loss", theme=theme),
            figures.curves(curve(("accuracy",)), title="Accuracy of training answers", theme=theme),
            figures.curves(curve(("entropy",)), title="Student entropy", theme=theme),
            figures.curves(curve(("completion_length",)), title="Answer length", theme=theme),
        )
    )


def _supervised(traces: Traces | None, theme: str) -> str:
    if traces is None:
        return _none(NO_TRACES)
    over_steps = regimes.shares_over_steps(traces)
    by_token_type, by_visibility = regimes.shares_by(traces, "token_type"), regimes.shares_by(traces, "visibility")
    return _pair(
        figures.stacked_shares(over_steps, theme=theme),
        figures.stacked_shares(over_steps, by="loss_share", theme=theme),
        figures.share_bars(by_token_type, title="by token type", theme=theme),
        figures.share_bars(by_visibility, title="by visibility", theme=theme),
    ) + _plot(figures.gap_curves(regimes.gaps_over_steps(traces), theme=theme))


def _moved(traces: Traces | None, theme: str) -> str:
    if traces is None:
        return _none(NO_TRACES)
    probes = movement.probes(traces)
    if probes.empty:
        return _none(probes.empty)
    most = sorted(probes.rows, key=lambda row: -row["changes"])[:_NUM_HEATMAPS]
    maps = []
    for row in most:
        moved = movement.of_probe(traces, row["rollout"], process=row["process"])
        heatmap = render_movement(
            moved.steps, moved.tokens, moved.regimes, moved.notes, title=moved.title, theme=theme, standalone=False
        )
        maps.append(f'<div class="rp-card">{heatmap}</div>')
    formats = {
        "token": _token,
        "token_type": str,
        "visibility": str,
        "changes": str,
        "way": str,
        "information_gap": _signed,
        "example": str,
    }
    return (
        _pair(
            figures.sankey(movement.transitions(traces), movement.regime_notes(traces), theme=theme),
            figures.stacked_shares(regimes.shares_over_steps(traces, probe=True), title="probes", theme=theme),
        )
        + "".join(maps)
        + _table(movement.most_moved(traces, limit=15), formats)
    )


def _imitated(run_dir: Path, traces: Traces | None, theme: str) -> str:
    if traces is None:
        return _none(NO_TRACES)
    bars = figures.separation_bars(illusion.separation(traces), theme=theme)
    formats = {
        "token": _token,
        "visibility": str,
        "regime": str,
        "target": str,
        "information_gap": _signed,
        "capability_gap": _signed,
        "loss": _number,
        "question": str,
        "answer": str,
        "expected": str,
        "step": str,
        "rollout": str,
    }
    return (
        _pair(
            figures.information_share(illusion.information_dominated_loss(traces), theme=theme),
            figures.reliability(illusion.reliability(run_dir), theme=theme),
        )
        + _plot(bars)
        + _table(illusion.worst_cases(traces, limit=15), formats)
    )


def _answers(traces: Traces | None, run: str, count: int, theme: str) -> str:
    """Answers as HTML: in turn one of the worst cases, the largest gaps, and the newest; no answer twice."""
    if traces is None:
        return _none(NO_TRACES)
    worst = [
        (row["step"], row["process"], row["rollout"], row["position"])
        for row in illusion.worst_cases(traces, limit=4 * count).rows
    ]
    orders = [worst]
    for order in ("abs_information_gap", "abs_capability_gap", "step"):
        page = tokens.page(traces, Selection(order=order), size=count)
        orders.append([(row["step"], row["process"], row["rollout"], None) for row in page.rows])
    chosen: dict[tuple, int | None] = {}
    for rank in range(max(map(len, orders), default=0)):
        for candidates in orders:
            if rank < len(candidates) and len(chosen) < count:
                chosen.setdefault(candidates[rank][:3], candidates[rank][3])
    parts = []
    for (step, process, rollout), position in chosen.items():
        view = tokens.answer(traces, step, rollout, process=process, name=run)
        parts.append(
            f'<div class="rp-answer">{render_tokens(view, theme=theme, standalone=False, pinned=position)}</div>'
        )
    return "<br>".join(parts) or _none(NO_TRACES)


def _plot(figure: go.Figure) -> str:
    inner = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config=_PLOT,
        default_width="100%",
        default_height=f"{figure.layout.height}px",
    )
    return f'<div class="rp-card rp-wide">{inner}</div>'


def _pair(*plots: go.Figure) -> str:
    return f'<div class="rp-pair">{"".join(map(_plot, plots))}</div>'


def _table(table: Table, formats: dict) -> str:
    if table.empty:
        return _none(table.empty)
    numbers = {
        name
        for name, format_value in formats.items()
        if format_value in (_share, _points, _signed, _number) or pd.api.types.is_numeric_dtype(table.frame[name])
    }
    heads = "".join(
        f'<th scope="col"{" class=rp-number" if name in numbers else ""}>{escape(name.replace("_", " "))}'
        f"{f'<br>{escape(table.units[name])}' if table.units.get(name) else ''}</th>"
        for name in formats
    )
    body = "".join(
        f"<tr>{''.join(_cell(row[name], format_value, name in numbers) for name, format_value in formats.items())}</tr>"
        for row in table.rows
    )
    rows = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="rp-card rp-wide"><table class="rp-table">{rows}</table></div>'


def _cell(value: object, format_value: Callable, is_number: bool) -> str:
    text = NONE if value is None else escape(format_value(value))
    return f'<td dir="auto"{" class=rp-number" if is_number else ""}>{text}</td>'


def _none(message: str) -> str:
    return f'<p class="rp-none">{escape(message)}</p>'


def _token(value: object) -> str:
    return visible_text(str(value))


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(value: float) -> str:
    return signed(100 * value, 1)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _length(value: float) -> str:
    return f"{value:.1f}"


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")
