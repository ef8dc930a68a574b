"""The state of a run as HTML: progress, errors, and the command that started it."""

import time
from html import escape
from pathlib import Path

from workbench.analysis.run_columns import span
from workbench.app.context import note
from workbench.runs.commands import copyable
from workbench.runs.jobs import JobState, config_file


def status_html(state: JobState) -> str:
    """Status, progress, ETA, errors and warnings of a run."""
    done, steps = state.step, state.steps
    share = min(1.0, done / steps) if steps else 0.0
    facts = [
        ("method", state.method or "–"),
        ("step", f"{done:,} of {steps:,}" if steps else f"{done:,}"),
        ("ETA", span(state.remaining_s) if state.remaining_s is not None else "–"),
        ("started", time.strftime("%Y-%m-%d %H:%M", time.localtime(state.started)) if state.started else "–"),
        _update(state),
    ]
    if state.doing:
        facts.append(("now", state.doing))
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    notes = note(state.error, "error") if state.error else ""
    notes += "".join(note(warning, "warning") for warning in state.warnings)
    if state.status in ("failed", "stopped", "died") and not state.can_resume:
        notes += note(
            "This run cannot be resumed: it ended before its run folder was created. Choose it in New run under "
            "Start from, correct it and start it again."
        )
    if state.skipped:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in state.skipped.items())
        notes += note(f"Skipped examples: {reasons}")
    command = f'<p class="app-command"><code>{escape(copyable(_plain(state)))}</code></p>' if state.command else ""
    return (
        f'<div class="app-run"><h2>{escape(state.name)}</h2><span class="app-badge app-is-{escape(state.status)}" '
        f'role="status">{escape(state.status)}</span></div><div class="app-progress" role="progressbar" '
        f'aria-label="Steps done" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{100 * share:.0f}"><i '
        f'style="width:{100 * share:.1f}%"></i></div><dl class="app-facts">{listed}</dl>{notes}{command}'
    )


def _update(state: JobState) -> tuple[str, str]:
    """When a run that is alive recorded its state last, or when another ended."""
    if state.silent_s is None:
        return "last update", "–"
    if state.is_alive:
        return "last update", f"{span(state.silent_s)} ago"
    return "ended", time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - state.silent_s))


def _plain(state: JobState) -> tuple[str, ...]:
    """The command of a run as users type it; for a run started from the page, with the run's own configuration."""
    command, run_dir = state.command, state.run_dir
    if command[1:3] == ("-m", "workbench"):
        command = ("workbench", *command[3:])
    elif command[0].endswith(("workbench", "__main__.py")):
        command = ("workbench", *command[1:])
    if command[1:2] == ("train",) and Path(command[-1]).parts[-3:-1] == (".jobs", run_dir.name):
        file = config_file(run_dir) or run_dir / "config.yaml"
        return ("workbench", "train", str(file), f"name={run_dir.name}-again")
    return tuple(str(run_dir) if part == str(run_dir.resolve()) else part for part in command)
