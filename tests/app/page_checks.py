"""Checks of every page: it fits its window, names its controls, raises no script error and calls no other server."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import BrowserContext, Locator, Page, TimeoutError, expect

from workbench.app.layout import PLACES, place_of

PATIENCE_MS = 120_000  # a busy machine is slow, and a wrong page stays wrong
SHOWS = {  # what a tab has when it is drawn
    "runs": "#runs-all tr[data-run]",
    "new-run": "#new-run-start",
    "answers": "#answers-answer .wb-detail .wb-views",
    "movement": "#movement-shares .js-plotly-plot .main-svg",
    "compare": "#compare-config table",
    "leakage": "#leakage-accuracy .js-plotly-plot",
    "geometry": "#geometry-about h2",
    "data": "#data-example .wb-figure",
    "studies": "#studies-figure .js-plotly-plot .main-svg",
    "training": "#training-charts .js-plotly-plot .main-svg",
}
FITS = """tab => document.documentElement.scrollWidth <= innerWidth
    && [...document.querySelectorAll(`${tab} .js-plotly-plot`)].every(plot => {
        const svg = plot.querySelector('.main-svg');
        return plot.offsetWidth === 0 || (svg && Math.abs(svg.clientWidth - plot.clientWidth) < 2);
    })"""
NAMELESS = """tab => [...document.querySelectorAll(
        `${tab} :is(button, input, select, textarea, [role=grid], [role=tab])`)]
    .filter(one => one.offsetParent && !one.closest('.js-plotly-plot') && one.type !== 'file')
    .filter(one => !(one.ariaLabel || one.ariaLabelledByElements?.length || one.labels?.length || one.title
        || one.textContent.trim() || one.closest('label')?.textContent.trim()))
    .map(one => one.outerHTML.slice(0, 200))"""  # what a screen reader has no name for

OUTSIDE = """tab => {
    const box = one => one.getBoundingClientRect();
    const isScrolled = one => ['auto', 'scroll'].includes(getComputedStyle(one).overflowX);
    const scrolls = one => one && (isScrolled(one) || scrolls(one.parentElement));
    const name = one => `${one.tagName} ${one.className?.baseVal ?? one.className} ${one.textContent.slice(0, 40)}`;
    const result = [...document.querySelectorAll(`#app-header *, #app-runs *, ${tab} *`)]
        .filter(one => one.checkVisibility() && !one.closest('svg') && box(one).width > 0)
        .filter(one => (box(one).right > innerWidth + 1 || box(one).left < -1) && !scrolls(one.parentElement))
        .map(name);
    for (const plot of document.querySelectorAll(`${tab} .js-plotly-plot`)) {
        if (!plot.checkVisibility()) continue;
        const [card, texts] = [box(plot), [...plot.querySelectorAll('.legendtext, .annotation-text')]];
        for (const text of [...texts, ...plot.querySelectorAll('.gtitle, .xtitle, .ytitle, .xtick text, .ytick text')])
            if (box(text).left < card.left - 1 || box(text).right > card.right + 1) result.push(`cut: ${name(text)}`);
        texts.forEach((text, k) => texts.slice(k + 1).forEach(other => {
            const [a, b] = [box(text), box(other)];
            const isApart = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 3;
            if (!isApart(a, b) && !isApart(b, a)) result.push(`${name(text)} lies on ${name(other)}`);
        }));
    }
    return result;
}"""  # what is visible and outside the window, or a figure's text that is cut off or on top of another

REFERENCES = """() => {
    const found = { local: 0, broken: [] };
    for (const part of document.querySelectorAll('.js-plotly-plot *')) {
        if (!part.closest('.js-plotly-plot').checkVisibility()) continue;
        for (const { name, value } of part.attributes)
            for (const [whole, target] of value.matchAll(/url\\(["']?([^"')]*)["']?\\)/g))
                if (target[0] === '#' && document.getElementById(target.slice(1))) found.local += 1;
                else found.broken.push(`${part.tagName} ${name}=${whole}`);
    }
    return found;
}"""  # of the visible figures: references to their own areas, clips and gradients, and those that lead elsewhere


def click_tab(page: Page, tab: str) -> None:
    """Open a tab by its place and, within it, by its own name."""
    group = place_of(tab)
    page.locator(f"#place-{group}-button").click()
    if len(PLACES[group][1]) > 1:
        page.locator(f"#tab-{tab}-button").click()


def open_tab(page: Page, tab: str) -> None:
    """Open a tab and wait until it is drawn."""
    click_tab(page, tab)
    page.locator(SHOWS[tab]).first.wait_for()


def hover_card(page: Page, token: Locator) -> Locator:
    """Hover over a token and return its card. The page may draw the answer again under a resting mouse."""
    card = page.locator(".wb-card:popover-open")
    for _ in range(60):
        page.mouse.move(0, 0)
        token.hover()
        with suppress(TimeoutError):
            card.wait_for(timeout=2_000)
            break
    card.wait_for()
    return card


def nameless(page: Page, part: str) -> list[str]:
    """The beginnings of controls inside `part` (a selector) that have no accessible name."""
    return page.evaluate(NAMELESS, part)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def watched_pages(visitor: BrowserContext, address: str, expected: str = "$^") -> Iterator[Callable[[str], Page]]:
    """A function that opens a query of the app at `address` in a new page.

    At the end the pages are closed. None may have requested another address or raised a script error, except errors
    that match `expected`.
    """
    pages, foreign, errors = [], [], []
    expect.set_options(timeout=PATIENCE_MS)

    def open_query(query: str) -> Page:
        page = visitor.new_page()
        pages.append(page)
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: foreign.append(request.url))
        page.on("pageerror", lambda error: errors.append(f"{error.name}: {error} {error.stack}"))
        page.goto(f"{address}/?{query}")
        return page

    yield open_query
    for page in pages:
        page.close()
    assert [url for url in foreign if not url.startswith((address, "data:", "blob:"))] == []
    assert [error for error in errors if not re.search(expected, error)] == []
