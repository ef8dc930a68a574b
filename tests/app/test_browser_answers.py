"""The tabs that read a run, in a real browser: hover, pin, keyboard, links, own image, report."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_checks import SHOWS, click_tab, hover_card
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from small import run_config

from workbench.traces.reader import open_traces
from workbench.training.run import train

BUILT_IN = Path(__file__).parents[2] / "data/models"


def test_tokens_hover_pin_keys_and_mouse_follow_answers(visit) -> None:
    page = visit("run=dopd", "answers")
    token = page.locator("#answers-answer .wb-t").nth(1)
    card = hover_card(page, token)
    assert card.locator("[data-logprob]").count() == 3, "the written token under every view"
    token.click()
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token 2 of")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token 3 of")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token 2 of")
    pinned = re.compile("step=4&rollout=0&token=1")  # its answer too: the run goes on, and another will be the newest
    expect(page).to_have_url(pinned)
    for tab in ("movement", "answers"):
        click_tab(page, tab)
    expect(page).to_have_url(pinned)
    page.locator("#answers-list tr[data-key]").nth(1).click()
    expect(page).to_have_url(re.compile("step=4&rollout=1$"))
    move_through_answers(page)


def move_through_answers(page: Page) -> None:
    """From rollout 1 of step 4 to others, by keys and by mouse; the numbers must be those of the open answer."""
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 1")
    page.locator("#answers-answer .wb-chip[data-by='entropy']").click()
    page.locator("#answers-answer .wb-t").first.click()
    for rollout in ("2", "3"):
        page.keyboard.press("ArrowDown")
        expect(page.locator("#answers-answer .wb-meta")).to_contain_text(f"rollout {rollout}")
        expect(page.locator("#answers-answer .wb-tokens")).to_have_attribute("data-by", "entropy")
        expect(page.locator("#answers-answer .wb-t[aria-pressed='true']")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 2")

    page.locator("#answers-list tr[data-key]").nth(5).click()
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 5")
    expect(page).to_have_url(re.compile("step=4.*rollout=5"))
    expect(page.locator("#answers-list tr[aria-selected='true']")).to_have_attribute(
        "data-key", re.compile('"rollout": 5')
    )
    num_tokens, num_texts = page.evaluate(
        """() => { const root = document.querySelector('#answers-answer .wb-tokens');
                   const data = JSON.parse(root.querySelector('template.wb-data').content.textContent);
                   return [[...root.querySelectorAll('.wb-t')].length, data.text.length]; }"""
    )
    assert num_tokens == num_texts, "the numbers are those of this answer"

    first, second = (page.locator(f"#answers-{name} input") for name in ("step", "regime"))
    first.focus()
    expect(first).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Tab")  # a list closes when the Tab key leaves it
    expect(second).to_be_focused()
    expect(first).to_have_attribute("aria-expanded", "false")


def test_tokens_link_page_and_filter_survive_reload(visit) -> None:
    page = visit("run=dopd&step=2&rollout=5&token=1", "answers")
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("step 2")
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 5")
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text("token 2 of")
    page.reload()
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 5")
    page.locator("#answers-on").click()
    expect(page.locator("#answers-where")).to_contain_text("21–24 of 24")
    page.locator("#answers-step input").click()
    page.get_by_role("option", name="2", exact=True).click()
    expect(page.locator("#answers-where")).to_contain_text("1–6 of 6")
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("step 2")
    expect(page).to_have_url(re.compile("at_step=2"))
    with page.expect_download() as saved:
        page.locator("#answers-export").click()
    lines = [json.loads(line) for line in saved.value.path().read_text("utf-8").splitlines()]
    assert saved.value.suggested_filename == "dopd-answers.jsonl" and [line["step"] for line in lines] == [2] * 6
    page.locator("#answers-fold").click()
    expect(page.locator("#answers-list")).to_be_hidden()
    expect(page).to_have_url(re.compile("list=closed"))
    page.reload()
    expect(page.locator("#answers-step input")).to_have_value("2")
    expect(page.locator("#answers-fold")).to_contain_text("▸")
    expect(page.locator("#answers-list")).to_be_hidden()
    expect(page.locator("#answers-related")).to_contain_text("Samples of this prompt")
    page.go_back()
    expect(page.locator("#answers-where")).to_contain_text("1–6 of 6")
    expect(page).not_to_have_url(re.compile("list=closed"))


@pytest.fixture
def scenes(runs: Path) -> Iterator[str]:
    """A run of the built-in models, whose answers have tokens of several kinds."""
    data = {"train": "scenes:train?count=40", "eval": None}
    folders = {name: BUILT_IN / name for name in ("student", "teacher")}
    values = {
        "sampling__max_completion_length": 24,
        "training__steps": 2,
        "training__batch_size": 16,
        "trace__probes": 0,
    }
    train(run_config(folders, runs, name="scenes", data=data, **values))
    yield "scenes"
    shutil.rmtree(runs / "scenes")


def test_token_filters_combined_match_one_marked_token(visit, scenes: str, runs: Path) -> None:
    result = (
        open_traces(runs / scenes)
        .sql("SELECT step, rollout_idx, position, regime, token_type, visibility FROM tokens")
        .to_pylist()
    )
    fitting = {}
    for row in result:
        for token_type, visibility in (
            (row["token_type"], row["visibility"]),
            (row["token_type"], None),
            (None, row["visibility"]),
        ):
            if token_type or visibility:
                fitting.setdefault((row["regime"], token_type, visibility), {}).setdefault(
                    (row["step"], row["rollout_idx"]), []
                ).append(row["position"])

    def apart(chosen: tuple) -> int:
        """Answers that have a token for each of the three."""
        names = ("regime", "token_type", "visibility")
        each = [
            {(row["step"], row["rollout_idx"]) for row in result if row[name] == value}
            for name, value in zip(names, chosen, strict=True)
            if value
        ]
        return len(set.intersection(*each))

    chosen = max(fitting, key=lambda item: apart(item) - len(fitting[item]))
    answers = fitting[chosen]
    assert apart(chosen) > len(answers), "a filter that asked for each by itself would keep more"
    query = "&".join(
        f"{name}={value}" for name, value in zip(("regime", "token_type", "visibility"), chosen, strict=True) if value
    )
    page = visit(f"run={scenes}&{query}", "answers")
    expect(page.locator("#answers-where")).to_contain_text(f"of {len(answers)} answers")
    key = json.loads(page.locator("#answers-list tr[aria-selected='true']").get_attribute("data-key"))
    positions = answers[key["step"], key["rollout"]]
    marked = [int(element.get_attribute("data-i")) for element in page.locator("#answers-answer .wb-match").all()]
    assert marked == sorted(positions)
    first = page.locator("#answers-answer .wb-match").first
    expect(first).to_have_attribute("aria-pressed", "true")
    expect(first).to_be_in_viewport()
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text(f"token {positions[0] + 1} of")


def test_own_image_box_drawn_by_mouse_is_scored(visit, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (40, 90, 200)).save(tmp_path / "own.png")
    page = visit("run=dopd", "data")
    page.locator("#data-own").get_by_text("Your own image").click()
    page.locator("#data-file input[type=file]").set_input_files(tmp_path / "own.png")
    picture = page.locator("#data-preview .wb-picture")
    picture.wait_for()
    picture.scroll_into_view_if_needed()
    spot = picture.bounding_box()
    page.mouse.move(spot["x"] + 0.2 * spot["width"], spot["y"] + 0.2 * spot["height"])
    page.mouse.down()
    page.mouse.move(spot["x"] + 0.6 * spot["width"], spot["y"] + 0.7 * spot["height"], steps=4)
    page.mouse.up()
    expect(page.locator("#data-boxes textarea")).to_have_value(re.compile(r"\d+ \d+ \d+ \d+ region"))
    page.locator("#data-own-score").click()
    expect(page.locator("#data-scored [role=alert]")).to_contain_text("The question is empty")
    page.locator("#data-question textarea").fill('<script>alert(1)</script> & "עברית" 🙂?')
    page.locator("#data-own-given textarea, #data-own-given input").fill("at top left")
    page.locator("#data-own-score").click()
    expect(page.locator("#data-scored .wb-ask")).to_have_text('<script>alert(1)</script> & "עברית" 🙂?')
    assert page.locator("#data-scored .wb-t").count() >= 3
    expect(page.locator("#data-scored .wb-tokens")).to_be_in_viewport()
    page.locator("#data-list tr[data-key]").nth(1).click()
    expect(page.locator("#data-scored .wb-t")).to_have_count(0)  # the scores are not of this example


def test_report_written_opens_without_requests(visit, visitor: BrowserContext, runs: Path, tmp_path: Path) -> None:
    page = visit("run=dopd", "data")
    page.locator("#app-report").click()
    page.locator("#report-write").click()
    link = page.locator("#report-link")
    expect(link).to_contain_text("dopd-report.html")
    expect(page.locator("#report-result")).to_contain_text(
        f"Open {(runs / 'dopd' / 'report.html').resolve()} in a browser"
    )
    with page.expect_download() as waiting:
        link.click()
    waiting.value.save_as(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == (runs / "dopd" / "report.html").read_bytes()
    alone = visitor.new_page()
    requested, faults = [], []
    alone.on(
        "request",
        lambda request: requested.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    alone.on("pageerror", lambda error: faults.append(str(error)))
    alone.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    alone.goto((tmp_path / "report.html").as_uri())
    alone.locator(".js-plotly-plot .main-svg").first.wait_for()
    alone.locator(".wb-t").nth(1).click()
    expect(alone.locator(".wb-detail").first).to_contain_text("token 2 of")
    assert requested == [] and faults == []
    alone.close()


def test_link_and_theme_survive_reload_and_unknown_run_errors(visit, address: str) -> None:
    page = visit("run=dopd&step=2&rollout=1", "studies")  # a tab without figures of a run, which take seconds to draw
    page.wait_for_url(re.compile("step=2&rollout=1"))  # parameters of another tab
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.locator("#app-theme").click()
    assert page.evaluate("document.body.classList.contains('dark')")
    page.reload()
    page.locator(SHOWS["studies"]).first.wait_for()
    expect(page.locator("#app-runs [aria-current='true']")).to_have_attribute("title", "dopd")
    assert page.evaluate("document.body.classList.contains('dark')")
    page.locator("#app-theme").click()  # the next visitor is the same
    page.goto(f"{address}/?run=gone&tab=training")
    expect(page.get_by_text('Run "gone" does not exist')).to_be_visible()


def test_worst_case_clicked_opens_in_tokens(visit) -> None:
    page = visit("run=photos", "leakage")
    row = page.locator("#leakage-worst tr[data-key]").first
    key = json.loads(row.get_attribute("data-key"))
    row.click()
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text(f"step {key['step']}")
    expect(page.locator("#answers-answer .wb-detail")).to_contain_text(f"token {key['position'] + 1} of")
