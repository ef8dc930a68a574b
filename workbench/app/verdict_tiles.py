"""The four tiles of Leakage: a number with its interval, and one sentence that claims no more than the interval."""

from collections.abc import Sequence
from html import escape

from workbench.analysis.leakage import BAD, GOOD, NEUTRAL, OPEN, UNKNOWN, Share, Verdict

_WORDS = {GOOD: "shown", BAD: "shown", OPEN: "not shown", NEUTRAL: "measured", UNKNOWN: "not recorded"}


def tiles_html(verdicts: Sequence[Verdict], run: str) -> str:
    """The tiles as HTML. run: name of the run, for screen readers."""
    label = escape(f"verdicts of {run}", quote=True)
    return f'<div class="wbu-findings" role="group" aria-label="{label}">{"".join(map(_tile, verdicts))}</div>'


def _tile(verdict: Verdict) -> str:
    badge = f'<span class="wbu-state wbu-is-{verdict.state}">{_WORDS[verdict.state]}</span>'
    interval = f" <em>{escape(verdict.interval)}</em>" if verdict.interval else ""
    shares = f"<dl>{''.join(map(_share, verdict.shares))}</dl>" if verdict.shares else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in verdict.notes)
    over = f"<small>{escape(verdict.over)}</small>" if verdict.over else ""
    return (
        f"<section><h3>{escape(verdict.title)} {badge}</h3><p><b>{escape(verdict.number)}</b>{interval}</p>"
        f'<p class="wbu-verdict">{escape(verdict.sentence)}</p>{over}{shares}{notes}</section>'
    )


def _share(share: Share) -> str:
    interval, whisker = "", ""
    if share.low is not None and share.high is not None:
        interval = f" <small>[{100 * share.low:.1f}, {100 * share.high:.1f}]</small>"
        whisker = f'<u style="left:{100 * share.low:.1f}%;right:{100 - 100 * share.high:.1f}%"></u>'
    return (
        f'<div><dt>{escape(share.label)}</dt><dd class="wbu-{share.kind}" aria-hidden="true"><i '
        f'style="width:{100 * share.value:.1f}%"></i>{whisker}</dd><dd>{100 * share.value:.1f}%{interval}</dd></div>'
    )
