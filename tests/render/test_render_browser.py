"""A fragment in a real browser: what hovering, pinning, the keyboard and the choice of colors do."""

import json
import math
import re
from dataclasses import replace

import pytest

from workbench.render import RegimeNote, TokenCell, TokenView, page_head, render_movement, render_page, render_tokens

REGIMES = {
    "LH": RegimeNote("low gap, both sure: teacher, light", "teacher", "reverse KL", (("teacher", "reverse KL", 0.6),)),
    "HT": RegimeNote("high gap, teacher leads: teacher, strong", "teacher", "JSD"),
    "HS": RegimeNote("high gap, self leads: privileged self, light", "self", "reverse KL"),
}


def cell(text, regime, student, self_, teacher, **fields):
    logprobs = {"student": student, "self": self_, "teacher": teacher}
    best = {name: [(text, value), ("other", -3.0)] for name, value in logprobs.items()}
    note = REGIMES[regime]
    return TokenCell(text, 5, regime, note.target, note.divergence, 1.0, logprobs=logprobs, top_k=best, **fields)


TOKENS = (
    cell("the", "LH", -0.125, -0.25, -0.375, loss=0.1, effective=0.6, visibility="visible", entropies={"student": 0.5}),
    cell(" digit", "HT", -2.5, -1.5, -0.0624, loss=0.7, visibility="visible", entropies={"student": 1.5}),
    cell(" <b>&2", "HS", -1.83, -8.97, -11.82, loss=3.0, visibility="privileged", entropies={"student": 2.0}),
)
VIEW = TokenView(
    "a run",
    "which digit?",
    "the digit 2",
    TOKENS,
    expected="4",
    right=False,
    regimes=REGIMES,
    thresholds={"gap": 0.55, "probability_sum": 1.2},
)


class Opened:
    """A page that remembers what it complained about and what it asked for."""

    def __init__(self, browser):
        self.page = browser.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def show(self, file, color_scheme):
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.emulate_media(color_scheme=color_scheme)
        self.page.mouse.move(0, 0)
        self.page.goto(file.as_uri())
        return self

    def token(self, index, root=".wb-tokens"):
        return self.page.locator(f"{root} .wb-t[data-i='{index}']").first

    def fill(self, index):
        return self.token(index).evaluate("node => getComputedStyle(node).backgroundColor")


@pytest.fixture(scope="module")
def opened(browser):
    created = Opened(browser)
    yield created
    created.page.close()


@pytest.fixture
def open_page(opened, tmp_path):
    def open_html(html=None, color_scheme="light"):
        html = render_page([render_tokens(VIEW, standalone=False)], "t") if html is None else html
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        return opened.show(file, color_scheme)

    yield open_html
    external = [url for url in opened.requests if not url.startswith(("file:", "data:"))]
    complaints = opened.complaints.copy()
    opened.complaints.clear()
    opened.requests.clear()
    assert complaints == [], "the console must stay silent"
    assert external == [], "nothing may be asked of a network"


def numbers(texts):
    return [float(text.replace("−", "-")) for text in texts]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_hover_token_shows_logprobs_and_reason(open_page, index):
    opened = open_page()
    opened.token(index).hover()
    card = opened.page.locator(".wb-card:popover-open")
    card.wait_for(state="visible")
    displayed = numbers(card.locator("[data-logprob]").all_inner_texts())
    assert displayed == [round(TOKENS[index].logprobs[name], 3) for name in ("student", "self", "teacher")]
    assert TOKENS[index].regime in card.inner_text() and "mean 0.55" in card.inner_text()
    assert card.locator(".wb-option").count() == 6
    best = card.locator(".wb-option").first.inner_text()
    assert best.endswith("%") and f"{100 * math.exp(TOKENS[index].logprobs['student']):.0f}" in best
    opened.page.mouse.move(2, 2)
    card.wait_for(state="hidden")


def test_detail_effective_weight_shows_factors(open_page):
    opened = open_page()
    opened.token(0).click()
    facts = opened.page.locator(".wb-detail .wb-facts")
    assert "effective weight 0.60 = 1.00 (router) × 0.60 (loss)" in facts.inner_text()
    opened.token(1).click()  # what it counts was not recorded: the rule's part is not passed off as the whole
    assert "router weight (the loss weight is not recorded) 1.00" in facts.inner_text()
    assert "×0.6" in opened.page.locator(".wb-legend[data-for='regime']").inner_text()


def test_detail_missing_alternatives_names_config_key(open_page):
    bare = replace(VIEW, tokens=tuple(replace(token, top_k={}) for token in TOKENS))
    sections = [render_tokens(item, standalone=False) for item in (VIEW, bare)]
    details = open_page(render_page(sections, "t")).page.locator(".wb-detail")
    assert "trace.top_k" not in details.nth(0).inner_text()
    assert "the first trace.top_k_rollouts answers of a step" in details.nth(1).inner_text()


def test_pin_first_is_largest_loss_and_click_moves_it(open_page):
    opened = open_page()
    assert opened.token(2).get_attribute("aria-pressed") == "true"
    opened.page.evaluate("document.addEventListener('workbench:pin', e => window.pinned = e.detail.index)")
    assert opened.page.evaluate("window.pinned") is None
    opened.token(1).click()
    assert opened.page.evaluate("window.pinned") == 1
    assert [opened.token(k).get_attribute("aria-pressed") for k in range(3)] == [None, "true", None]
    bars = opened.page.locator(".wb-detail rect")
    gaps = {bar.get_attribute("class"): float(bar.get_attribute("data-gap")) for bar in bars.all()}
    assert gaps == {"wb-bar-information": 1.0, "wb-bar-capability": 1.4376, "wb-bar-total": 2.4376}
    widths = {bar.get_attribute("class"): float(bar.get_attribute("width")) for bar in bars.all()}
    assert widths["wb-bar-information"] + widths["wb-bar-capability"] == pytest.approx(widths["wb-bar-total"])


def test_prompt_long_is_scrolled_to_evidence(open_page):
    lines = "\n".join(f"line {number}" for number in range(40))
    prompts = {"student": lines, "teacher": f"{lines}\nboxes: lamp at 1 2 3 4\n{lines}"}
    html = render_page([render_tokens(replace(VIEW, prompts=prompts), standalone=False)], "t")
    mark = open_page(html).page.locator(".wb-prompt mark").first
    mark.wait_for()
    is_seen = """mark => { const [a, b] = [mark, mark.parentElement].map(one => one.getBoundingClientRect());
                           return a.top >= b.top && a.bottom <= b.bottom; }"""
    # the browser scrolls on the event "toggle", which comes a task or more after the first layout
    mark.page.wait_for_function(is_seen, arg=mark.element_handle())


def test_token_with_markup_stays_text(open_page):
    opened = open_page()
    assert opened.page.locator(".wb-detail code").inner_text() == "·<b>&2"
    assert opened.token(2).inner_text().endswith("<b>&2")


def test_pin_arrow_home_and_end_keys_move_it(open_page):
    opened = open_page()
    opened.token(0).click()
    where = "document.activeElement.dataset.i"
    for key, expected in [
        ("ArrowRight", "1"),
        ("ArrowRight", "2"),
        ("ArrowRight", "2"),
        ("ArrowLeft", "1"),
        ("Home", "0"),
    ]:
        opened.page.keyboard.press(key)
        assert opened.page.evaluate(where) == expected
    opened.page.keyboard.press("End")
    assert "token 3 of 3" in opened.page.locator(".wb-detail").inner_text()
    assert "capability −2.85, information −7.14" in opened.page.locator(".wb-status").text_content()
    assert opened.page.locator(".wb-t[tabindex='0']").count() == 1, "Tab enters and leaves the answer in one step"


def test_legend_long_answer_never_covers_pinned_token(open_page):
    long = replace(VIEW, tokens=TOKENS * 60)
    opened = open_page(render_page([render_tokens(long, standalone=False)], "t"))
    opened.page.set_viewport_size({"width": 1280, "height": 620})
    opened.page.get_by_role("button", name="information gap").click()
    opened.token(0).click()
    legend, covered = "document.querySelector('.wb-legends').getBoundingClientRect()", 0
    assert opened.page.evaluate(f"{legend}.bottom <= innerHeight"), "it stays in sight"
    for _ in range(100):
        opened.page.keyboard.press("ArrowRight")
        covered += opened.page.evaluate(f"document.activeElement.getBoundingClientRect().bottom > {legend}.top")
    assert covered == 0


def test_focus_by_keyboard_has_outline(open_page):
    opened = open_page()
    opened.token(0).click()
    opened.page.keyboard.press("ArrowRight")
    assert opened.token(1).evaluate("node => getComputedStyle(node).outlineStyle") == "solid"


def test_up_and_down_keys_emit_host_events(open_page):
    opened = open_page()
    opened.page.evaluate(
        "window.moves = []; document.addEventListener('workbench:rollout', e => moves.push(e.detail.direction))"
    )
    opened.token(0).click()
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowUp")
    assert opened.page.evaluate("moves") == [1, -1]


def test_quantity_chosen_changes_colors_and_legend(open_page):
    opened = open_page()
    seen = {}
    for quantity in ("regime", "capability", "information", "loss", "entropy", "visibility"):
        opened.page.locator(f".wb-chip[data-by='{quantity}']").click()
        assert opened.page.locator(".wb-chip[aria-pressed='true'][data-by]").get_attribute("data-by") == quantity
        visible = [
            element.get_attribute("data-for")
            for element in opened.page.locator(".wb-legend").all()
            if element.is_visible()
        ]
        assert visible == [quantity]
        seen[quantity] = tuple(opened.fill(k) for k in range(3))
    assert len(set(seen.values())) == 6
    assert seen["visibility"][0] == seen["visibility"][1] != seen["visibility"][2]
    assert seen["regime"][2] == "rgb(230, 159, 0)", "self leads: orange"


def test_diffusion_tokens_show_denoising_step(open_page):
    assert open_page().page.locator(".wb-chip[data-by='denoising']").count() == 0, "these were"
    steps = [replace(item, denoising_step=step) for item, step in zip(TOKENS, (4, 0, 2), strict=True)]
    opened = open_page(render_page([render_tokens(replace(VIEW, tokens=tuple(steps)), standalone=False)], "t"))
    opened.page.locator(".wb-chip[data-by='denoising']").click()
    assert len({opened.fill(k) for k in range(3)}) == 3
    opened.token(0).hover()
    assert re.search(r"denoising step\s*4", opened.page.locator(".wb-card:popover-open").inner_text())
    opened.token(1).click()
    assert re.search(r"denoising step\s*0", opened.page.locator(".wb-detail").inner_text())


def test_bars_chip_clicked_hides_bars(open_page):
    opened = open_page()
    height = "node => getComputedStyle(node, '::after').height"
    assert opened.token(2).evaluate(height) != opened.token(0).evaluate(height)
    opened.page.locator(".wb-chip[data-bars]").click()
    assert opened.token(2).evaluate("node => getComputedStyle(node, '::after').display") == "none"


def luminance(rgb):
    red, green, blue = (int(value) for value in re.findall(r"\d+", rgb)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def text_of_page(opened):
    return luminance(opened.page.locator(".wb-ask").first.evaluate("node => getComputedStyle(node).color"))


@pytest.mark.parametrize(
    ("theme", "system", "body", "is_dark"),
    [
        ("auto", "light", "", False),
        ("auto", "dark", "", True),
        ("light", "dark", "", False),
        ("dark", "light", "", True),
        ("auto", "light", "dark", True),
        ("light", "light", "dark", False),
        ("auto", "dark", "gradio-container", False),
        ("auto", "light", "dark gradio-container", True),
    ],
)
def test_theme_follows_caller_then_host_then_system(open_page, theme, system, body, is_dark):
    html = f"<!DOCTYPE html><body class='{body}'>{render_tokens(VIEW, theme=theme)}</body>"
    opened = open_page(html, color_scheme=system)
    assert (text_of_page(opened) > 128) is is_dark


def test_style_host_rules_do_not_apply(open_page):
    host = """<style>.host .prose * { color: rgb(255, 0, 0) }
        .host .page table, .host .page p { margin: 99px; font-size: 40px }
        .host .prose.page button { background: red; padding: 50px; transition: all 9s }
        .host .prose td { border: 9px solid }</style>"""
    fragment = render_tokens(VIEW, theme="light")
    opened = open_page(f"<!DOCTYPE html>{host}<div class='host'><div class='prose page'>{fragment}</div></div>")
    color = "node => getComputedStyle(node).color"
    for selector in (".wb-t", ".wb-ask", ".wb-legend td", ".wb-why", ".wb-why b", ".wb-views td"):
        assert opened.page.locator(selector).first.evaluate(color) != "rgb(255, 0, 0)", selector
    assert opened.page.locator(".wb-legend").first.evaluate("node => getComputedStyle(node).marginTop") == "0px"
    assert opened.page.locator(".wb-legend td").first.evaluate("node => getComputedStyle(node).borderTopWidth") == "0px"
    assert opened.fill(2) == "rgb(230, 159, 0)"


def test_fragment_inserted_later_works_without_script(open_page):
    """As in Gradio, whose HTML component sets innerHTML on every update."""
    opened = open_page(f"<!DOCTYPE html><head>{page_head()}</head><body><div id='host'></div></body>")
    for pinned in (0, 1):
        html = render_tokens(VIEW, standalone=False, pinned=pinned)
        opened.page.evaluate(f"document.getElementById('host').innerHTML = {json.dumps(html)}")
        opened.page.locator(".wb-detail .wb-views").wait_for()
        assert f"token {pinned + 1} of 3" in opened.page.locator(".wb-detail").inner_text()
    opened.token(2).click()
    assert "token 3 of 3" in opened.page.locator(".wb-detail").inner_text()


def test_several_fragments_on_page_stay_independent(open_page):
    movement = render_movement([0, 20], ["the", "2"], [["LH", "HS"], ["LH", "LH"]], REGIMES)
    opened = open_page(render_page([render_tokens(VIEW), ("again", render_tokens(VIEW)), movement], "t"))
    opened.page.locator(".wb-tokens").nth(1).locator(".wb-t").first.click()
    opened.page.locator(".wb-tokens").nth(1).locator(".wb-chip[data-by='loss']").click()
    details = opened.page.locator(".wb-detail").all_inner_texts()
    assert "token 3 of 3" in details[0] and "token 1 of 3" in details[1]
    assert [element.get_attribute("data-by") for element in opened.page.locator(".wb-tokens").all()] == [
        "regime",
        "loss",
    ]
    assert opened.page.locator(".wb-cell").nth(1).evaluate("node => getComputedStyle(node).fill") == "rgb(230, 159, 0)"


def test_empty_answer_and_missing_views_log_no_error(open_page):
    alone = TokenView(
        "t", "q", "a", (TokenCell("a", 1, "ALL", "teacher", logprobs={"student": -1.0}), TokenCell("b", 2, "ALL"))
    )
    opened = open_page(render_page([render_tokens(TokenView("t", "q", "", ())), render_tokens(alone, pinned=1)], "t"))
    opened.page.locator(".wb-t").first.hover()
    opened.page.locator(".wb-card:popover-open").wait_for()
    assert "–" in opened.page.locator(".wb-detail").nth(1).inner_text()


def test_recolor_and_pin_2000_tokens_are_quick(open_page):
    tokens = tuple(
        cell(f" w{k}", ("LH", "HT", "HS")[k % 3], -0.1 * (k % 7), -0.2 * (k % 5), -0.1, loss=k / 900)
        for k in range(2000)
    )
    opened = open_page(render_page([render_tokens(TokenView("t", "q", "a", tokens, regimes=REGIMES))], "t"))
    opened.page.evaluate("window.workbenchTokens.tokenAt(document.querySelector('.wb-tokens'), 1985).scrollIntoView()")
    timed = """async () => {
        const root = document.querySelector('.wb-tokens');
        const spent = async (act) => {
            const start = performance.now(); act(); root.getBoundingClientRect();
            document.querySelector('.wb-t').offsetTop; return performance.now() - start; };
        const color = await spent(() => root.querySelector('[data-by="capability"].wb-chip').click());
        const pin = await spent(() => root.querySelector('.wb-t[data-i="1985"]').click());
        return [color, pin];
    }"""
    color_ms, pin_ms = opened.page.evaluate(timed)
    # 80 to 400 and 15 ms on two busy cores; the bounds leave room for a busy machine
    assert color_ms < 1500 and pin_ms < 500, (color_ms, pin_ms)


def long_answer(count=4000):
    """An answer in which every hundredth token is HS; between them all views agree for 60 tokens."""
    calm, unsure = cell(" and", "LH", -0.1, -0.1, -0.1), cell(" so", "HT", -2.0, -1.0, -0.1)
    tokens = [
        cell(" 7", "HS", -3.0, -0.1, -0.2) if k % 100 == 50 else unsure if k % 100 > 60 else calm for k in range(count)
    ]
    tokens[3] = cell(" 👩‍👩‍👧\n", "LH", -0.1, -0.1, -0.1)
    return TokenView("t", "q", "|a|\n你好 👩‍👩‍👧", tuple(tokens), regimes=REGIMES)


def until(page, expression):
    """Waits for what a frame or an observer brings; the page's policy forbids wait_for_function."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


@pytest.fixture(scope="module")
def long_page():
    return render_page([render_tokens(long_answer(), standalone=False, pinned=0, marked={7})], "t")


@pytest.fixture
def opened_long(open_page, long_page):
    return open_page(long_page)


def test_long_answer_holds_tokens_near_the_screen_only(opened_long):
    page = opened_long.page
    count = "document.querySelectorAll('.wb-t').length"
    assert 200 < page.evaluate(count) < 2000
    page.evaluate("document.querySelectorAll('.wb-chunk')[15].scrollIntoView()")
    until(page, "[...document.querySelectorAll('.wb-t')].some(t => Number(t.dataset.i) > 3500)")
    until(page, "document.querySelector('.wb-t[data-i=\"200\"]') === null")
    assert page.evaluate(count) < 2000


def test_long_answer_steps_to_next_token_of_regime(opened_long):
    page = opened_long.page
    page.get_by_label("tokens to step through").select_option("HS (40)")
    for expected in ("50", "150"):
        page.get_by_label("next such token").click()
        assert page.locator(".wb-tokens").get_attribute("data-pin") == expected
    for _ in range(3):
        page.get_by_label("previous such token").click()
    assert page.locator(".wb-tokens").get_attribute("data-pin") == "3850", "it goes on from the other end"
    box = page.locator(".wb-t[data-i='3850']").bounding_box()
    assert 0 < box["y"] < 900


def test_long_answer_strip_click_pins_token_there(opened_long):
    strip = opened_long.page.locator(".wb-strip")
    assert "HS 40" in strip.get_attribute("aria-label")
    box = strip.bounding_box()
    opened_long.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 5)
    assert abs(int(opened_long.page.locator(".wb-tokens").get_attribute("data-pin")) - 2000) < 10
    marks = """(() => { const mark = document.querySelector('.wb-strip .wb-screen');
        const [x, width] = ['x', 'width'].map(name => Number(mark.getAttribute(name)));
        return x > 100 && x < 200 && x + width > 200; })()"""
    until(opened_long.page, marks)  # token 2000 of 4000 is at 200 of 400, whatever fits on the screen


def test_long_answer_chart_zooms_by_drag(opened_long):
    page, curve = opened_long.page, opened_long.page.locator(".wb-curve")
    page.get_by_label("quantity of the chart").select_option("log-prob, student")
    assert "-3" in curve.get_attribute("aria-label").replace("−", "-")
    box = curve.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40, steps=3)
    page.mouse.up()
    first, last = map(int, re.findall(r"tokens (\d+) to (\d+)", curve.get_attribute("aria-label"))[0])
    assert abs(first - 1000) < 20 and abs(last - 2000) < 20
    page.get_by_label("the whole answer").click()
    assert "tokens 1 to 4000" in curve.get_attribute("aria-label")


def test_long_answer_fold_hides_agreed_tokens_and_opens_again(opened_long):
    page = opened_long.page
    page.get_by_label(re.compile("^fold ")).click()
    fold = page.locator(".wb-fold").nth(1)
    assert "all views agree" in fold.inner_text() and page.locator(".wb-t[data-i='120']").count() == 0
    page.locator(".wb-fold[data-fold='100']").click()
    assert page.locator(".wb-t[data-i='120']").count() == 1
    assert page.locator(".wb-t[data-i='7']").count() == 1, "a marked token is never folded"


def test_long_answer_down_key_moves_to_next_line(opened_long):
    page = opened_long.page
    page.evaluate(
        "window.moves = []; document.addEventListener('workbench:rollout', e => moves.push(e.detail.direction))"
    )
    opened_long.token(10).click()
    before = opened_long.token(10).bounding_box()
    page.keyboard.press("ArrowDown")
    after = page.evaluate("(() => { const b = document.activeElement.getBoundingClientRect(); return [b.x, b.y]; })()")
    assert page.evaluate("moves") == [] and abs(after[0] - before["x"]) < 80
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("moves") == [1]


def test_long_answer_plain_text_keeps_lines_and_graphemes(opened_long):
    opened_long.page.get_by_label("the answer as plain text").click()
    text = opened_long.page.locator(".wb-text")
    assert text.inner_text() == "|a|\n你好 👩‍👩‍👧" and not opened_long.page.locator(".wb-answer").is_visible()
