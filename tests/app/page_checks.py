"""Checks of every page: it fits its window, names its controls, raises no script error and calls no other server."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import BrowserContext, Locator, Page, Request, expect

from workbench.app.layout import PLACES, place_of

SETTLE_S = 15.0  # a request without an end is not waited for longer
PATIENCE_MS = 60_000  # a busy machine is slow, and a wrong page stays wrong
RUN_MS = 120_000  # for a program that the page has started
VIEWPORT = {"width": 1280, "height": 1000}
_PENDING: dict[Page, set[Request]] = {}  # by page: requests without a response
SHOWS = {  # what a tab has when it is drawn
    "runs": "#runs-all tr[data-run]",
    "new-run": "#new-run-start",
    "score": "#score-start",
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
    const isCut = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1
        || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
    const name = one => `${one.tagName} ${one.className?.baseVal ?? one.className} ${one.textContent.slice(0, 40)}`;
    const result = [...document.querySelectorAll(`#app-header *, #app-runs *, ${tab} *`)]
        .filter(one => one.checkVisibility() && !one.closest('svg') && box(one).width > 0)
        .filter(one => (box(one).right > innerWidth + 1 || box(one).left < -1) && !scrolls(one.parentElement))
        .map(name);
    for (const plot of document.querySelectorAll(`${tab} .js-plotly-plot`)) {
        if (!plot.checkVisibility()) continue;
        const [card, texts] = [box(plot), [...plot.querySelectorAll('.legendtext, .annotation-text')]];
        for (const text of [...texts, ...plot.querySelectorAll('.gtitle, .xtitle, .ytitle, .xtick text, .ytick text')])
            if (isCut(box(text), card)) result.push(`cut: ${name(text)}`);
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

# Notes the events that the page asks of the server's queue, until the stream of their results has their last message.
EVENTS = """(() => {
    const [open, ended, send] = [new Set(), new Set(), window.fetch.bind(window)];
    window.openEvents = open;
    const read = async (stream) => {
        let text = '';
        for await (const chunk of stream.pipeThrough(new TextDecoderStream())) {
            const lines = (text + chunk).split('\\n');
            text = lines.pop();
            for (const line of lines.filter(line => line.startsWith('data:'))) {
                const { msg, event_id: id } = JSON.parse(line.slice(5));
                if (msg === 'close_stream') open.clear();
                else if (msg === 'process_completed') { ended.add(id); open.delete(id); }
            }
        }
    };
    window.fetch = async (...request) => {
        const response = await send(...request);
        if (/queue\\/join/.test(response.url) && response.ok)
            response.clone().json().then(({ event_id: id }) => { if (!ended.has(id)) open.add(id); });
        if (/queue\\/data/.test(response.url) && response.ok) {
            const [stream, copy] = response.body.tee();
            read(copy).catch(() => open.clear()); // the server has gone
            return new Response(stream, response);
        }
        return response;
    };
})()"""

SHOW = """query => { history.replaceState(null, "", `?${query}`); dispatchEvent(new PopStateEvent("popstate")); }"""


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
    """Hover over a token and return its card."""
    settle(page)  # an answer that is drawn anew has no card
    token.scroll_into_view_if_needed()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # a scroll closes it
    page.mouse.move(0, 0)
    token.hover()
    card = page.locator(".wb-card:popover-open")
    card.wait_for()
    return card


def whole_figures(page: Page, least: int = 1) -> None:
    """Assert that no visible figure has a broken reference, and that at least `least` references resolve."""
    settle(page)
    result = page.evaluate(REFERENCES)
    assert result["broken"] == [] and result["local"] >= least, (page.url, result)


def nameless(page: Page, part: str) -> list[str]:
    """The beginnings of controls inside `part` (a selector) that have no accessible name."""
    return page.evaluate(NAMELESS, part)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Watched:
    """A page of the app at an address, and what it requested and complained about."""

    def __init__(self, visitor: BrowserContext, address: str) -> None:
        self.address = address
        self.page = visitor.new_page()
        self.foreign: list[str] = []
        self.errors: list[str] = []
        expect.set_options(timeout=PATIENCE_MS)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.add_init_script(EVENTS)
        self.pending = _PENDING[self.page] = set()
        self.page.on("request", self._note)
        for event in ("requestfinished", "requestfailed"):
            self.page.on(event, lambda request: self.pending.discard(request))
        self.page.on("framenavigated", lambda _: self.pending.clear())
        self.page.on("pageerror", lambda error: self.errors.append(f"{error.name}: {error} {error.stack}"))

    def _note(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)
        if "/heartbeat/" not in request.url:  # which lasts as long as the page
            self.pending.add(request)

    def load(self, query: str) -> Page:
        """Load a query of the app."""
        self.page.goto(f"{self.address}/?{query}")
        return self.page

    def show(self, query: str) -> Page:
        """Open a query in the page as it is, as the browser's history does: without the seconds that a load takes."""
        self.page.set_viewport_size(VIEWPORT)
        self.page.mouse.move(0, 0)
        self.page.evaluate(SHOW, query)
        settle(self.page)
        return self.page

    def faults(self, expected: str) -> list[str]:
        """Requests to other addresses and script errors except `expected` ones, since the last call."""
        result = [*self.foreign, *(error for error in self.errors if not re.search(expected, error))]
        self.foreign.clear()
        self.errors.clear()
        return result

    def close(self) -> None:
        _PENDING.pop(self.page, None)
        self.page.close()


def settle(page: Page) -> None:
    """Wait until the page has nothing left to ask of the server and to draw of its answers, at most SETTLE_S.

    Chromium may not report the end of a request; what a test then asserts has a patience of its own.
    """
    end, quiet = time.monotonic() + SETTLE_S, 0
    while quiet < 5 and time.monotonic() < end:
        page.evaluate("new Promise(done => setTimeout(done, 40))")  # after what the page has to do
        # Gradio leaves the stream of its queue open
        is_pending = any("/queue/data" not in request.url for request in _PENDING[page])
        quiet = 0 if is_pending or page.evaluate("window.openEvents.size") else quiet + 1


@contextmanager
def watched_pages(visitor: BrowserContext, address: str, expected: str = "$^") -> Iterator[Callable[[str], Page]]:
    """A function that opens a query of the app at `address` in a new page.

    At the end the pages are closed. None may have requested another address or raised a script error, except errors
    that match `expected`.
    """
    watched = []

    def open_query(query: str) -> Page:
        watched.append(Watched(visitor, address))
        return watched[-1].load(query)

    yield open_query
    for item in watched:
        item.close()
    assert [fault for item in watched for fault in item.faults(expected)] == []
