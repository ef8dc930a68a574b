"""What holds of every tab: it fits its window, and a screen reader has a name for every control."""

from playwright.sync_api import Page

SHOWS = {  # what a tab has when it is drawn
    "launch": "#launch-start",
    "tokens": "#tokens-answer .wb-detail .wb-views",
    "movement": "#movement-shares .js-plotly-plot .main-svg",
    "compare": "#compare-config table",
    "illusion": "#illusion-accuracy .js-plotly-plot",
    "geometry": "#geometry-about h2",
    "data": "#data-example .wb-figure",
    "studies": "#studies-figure .js-plotly-plot .main-svg",
    "report": "#report-about h2",
    "monitor": "#monitor-shares .js-plotly-plot .main-svg",
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


def nameless(page: Page, part: str) -> list[str]:
    """The beginnings of controls inside `part` (a selector) that have no accessible name."""
    return page.evaluate(NAMELESS, part)
