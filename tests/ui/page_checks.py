"""What holds of every tab: it fits its window, and a screen reader has a name for every control."""

from playwright.sync_api import Page

FITS = """tab => document.documentElement.scrollWidth <= innerWidth
    && [...document.querySelectorAll(`${tab} .js-plotly-plot`)].every(plot => plot.offsetWidth === 0 || (
        plot.querySelector('.main-svg') && Math.abs(plot.querySelector('.main-svg').clientWidth - plot.clientWidth) < 2))"""
NAMELESS = """tab => [...document.querySelectorAll(`${tab} :is(button, input, select, textarea, [role=grid], [role=tab])`)]
    .filter(one => one.offsetParent && !one.closest('.js-plotly-plot') && one.type !== 'file')
    .filter(one => !(one.ariaLabel || one.ariaLabelledByElements?.length || one.labels?.length || one.title
        || one.textContent.trim() || one.closest('label')?.textContent.trim()))
    .map(one => one.outerHTML.slice(0, 200))"""  # what a screen reader has no name for


def nameless(page: Page, part: str) -> list[str]:
    """The beginnings of controls inside `part` (a selector) that have no accessible name."""
    return page.evaluate(NAMELESS, part)
