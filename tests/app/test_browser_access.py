"""Every tab in both themes and at every width; without a mouse; for screen readers.

Screenshots of every tab, light and dark, narrow and wide, go to the folder $WORKBENCH_SCREENSHOTS if it is set.
"""

import json
import os
import re
from pathlib import Path

import axe_playwright_python
from page_checks import FITS, OUTSIDE, SHOWS, nameless, open_tab, whole_figures
from playwright.sync_api import Page, expect

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
SERIOUS = """.then(({ violations }) => violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => [id, nodes.map(({ html }) => html.slice(0, 160))]))"""
BRIEF = "resultTypes: ['violations'], selectors: false, preload: false"  # of what passes, no paths are made
FAULTS = f"() => axe.run(document, {{ rules: {{ 'color-contrast': {{ enabled: false }} }}, {BRIEF} }}){SERIOUS}"
# contrast of one text of each kind: color, size and weight, and what is painted behind it. axe takes seconds for all
PALE = """() => {
    const kinds = new Set(), paints = new Map();
    const paintOf = one => {
        if (!one || paints.has(one)) return paints.get(one) ?? '';
        const { backgroundColor, backgroundImage, opacity } = getComputedStyle(one);
        const behind = paintOf(one.parentElement), paint = backgroundColor + backgroundImage + opacity;
        paints.set(one, paint === 'rgba(0, 0, 0, 0)none1' ? behind : behind + paint);
        return paints.get(one);
    };
    const hasText = one => [...one.childNodes].some(({ nodeType, data }) => nodeType === 3 && data.trim());
    const include = [...document.querySelectorAll('*')].filter(one => {
        if (!one.checkVisibility() || !(hasText(one) || one.matches('input, textarea'))) return false;
        const { color, fill, fontSize, fontWeight } = getComputedStyle(one);
        const kind = [color, fill, fontSize, fontWeight, paintOf(one)].join();
        return !kinds.has(kind) && kinds.add(kind);
    });
    return axe.run({ include }, { runOnly: ['color-contrast'], BRIEF })SERIOUS;
}""".replace("SERIOUS", SERIOUS).replace("BRIEF", BRIEF)
WINDOWS = ((1920, 1000), (390, 800), (1280, 1000))  # a wide screen, a phone, a laptop


def press_until(page: Page, key: str, selector: str, most: int = 60) -> None:
    """Press a key until the focused element matches `selector`."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
            return
    raise AssertionError(f"{most} times {key} do not reach {selector}")


def test_keyboard_alone_reaches_token_of_another_run(visit) -> None:
    page = visit("run=opd", "studies", fresh=True)
    press_until(page, "Tab", "#app-runs button[title='dopd']")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("run=dopd"))
    press_until(page, "Tab", "#place-answers-button")
    page.keyboard.press("Enter")
    page.locator(SHOWS["answers"]).first.wait_for()
    press_until(page, "Tab", "#answers-list tr[data-key]")
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile("rollout=1"))
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 1")
    press_until(page, "Tab", "#answers-answer .wb-t")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("rollout=1&token=\\d+"))
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token")


def check_fit(page: Page, tab: str, theme: str) -> None:
    """At every width the figures fill their cards; on a phone nothing is outside the window or on another text."""
    screenshots = os.environ.get("WORKBENCH_SCREENSHOTS")
    for width, height in WINDOWS:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function(FITS, arg=f"#tab-{tab}")
        if width < 400:
            assert page.evaluate(OUTSIDE, f"#tab-{tab}") == [], tab
            if tab == "training":
                check_head_on_phone(page)
        elif screenshots is not None:
            page.wait_for_timeout(800)  # Plotly moves a Sankey's nodes to their new places by and by
            file = Path(screenshots) / f"{tab}-{width}-{theme}.png"
            page.screenshot(path=file, full_page=True, animations="disabled")


def check_head_on_phone(page: Page) -> None:
    """The facts of the run are in one column, and the buttons are below them, not over them."""
    stop, facts = (page.locator(name).bounding_box() for name in ("#training-stop", "#training-status .app-facts"))
    assert facts["width"] > 300
    assert stop["y"] >= facts["y"] + facts["height"]


def serious_faults(page: Page, theme: str) -> list:
    """What axe-core finds; in the dark theme, which differs in nothing but colors, of colors alone."""
    return page.evaluate(PALE) + (page.evaluate(FAULTS) if theme == "light" else [])


def test_every_tab_in_both_themes_fits_window_and_has_no_serious_fault(visit) -> None:
    page = visit("run=dopd&with=opd", "runs")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert nameless(page, "#app-header") == []
    themes, faults = ["light", "dark"], {}
    for tab in SHOWS:
        open_tab(page, tab)
        whole_figures(page, least=0)
        assert nameless(page, f"#tab-{tab}") == [], tab
        faults[tab, themes[0]] = serious_faults(page, themes[0])
        check_fit(page, tab, themes[0])
        themes.reverse()
        page.locator("#app-theme").click()  # draws the open tab in the other theme; the next one opens in it
        whole_figures(page, least=0)
        faults[tab, themes[0]] = serious_faults(page, themes[0])
        if "WORKBENCH_SCREENSHOTS" in os.environ:
            check_fit(page, tab, themes[0])
        assert page.evaluate(FITS, f"#tab-{tab}"), tab
    page.evaluate("localStorage.removeItem('workbench-theme')")  # the next visitor is the same
    faults = {f"{tab}, {theme}": serious for (tab, theme), serious in faults.items() if serious}
    assert not faults, json.dumps(faults, indent=1)
