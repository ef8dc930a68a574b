"""Figures in a real browser: every control keeps their areas, clips and color bars, and they show right values."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import uvicorn
from page_checks import SHOWS, Watched, free_port, open_tab, whole_figures
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from small import run_config
from starlette.types import ASGIApp, Receive, Scope, Send

from workbench.app.server import serve
from workbench.evals.records import load_records
from workbench.training.run import train


def change_every_control(page: Page, tab: str) -> int:
    """Choose the last option of every list and switch of a tab, check its figures each time; return their number."""
    lists = page.locator(f'#tab-{tab} input[role="combobox"]').filter(visible=True)
    switches = page.locator(f"#tab-{tab} fieldset").filter(visible=True)
    num_lists, num_switches = lists.count(), switches.count()
    for idx in range(num_lists):
        lists.nth(idx).click()
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        whole_figures(page, least=0)
    for idx in range(num_switches):
        switches.nth(idx).locator("input").last.click()
        whole_figures(page, least=0)
    return num_lists + num_switches


def test_figures_every_control_and_other_answer_keep_references(visit) -> None:
    page = visit("run=dopd&with=opd", "movement")
    controls = {"movement": 6, "training": 5, "leakage": 1, "studies": 3}
    for tab, least in controls.items():
        open_tab(page, tab)
        assert change_every_control(page, tab) >= least, tab
        whole_figures(page)
    open_tab(page, "answers")  # another answer changes the address of figures that are drawn
    page.locator("#answers-list tr[data-key]").nth(1).click()
    expect(page.locator("#answers-answer .wb-meta")).to_contain_text("rollout 1")
    page.locator("#answers-answer .wb-t").nth(1).click()
    expect(page).to_have_url(re.compile("token=1"))
    for tab in (*controls, "movement"):
        open_tab(page, tab)
        whole_figures(page)
    expect(page).to_have_url(re.compile("color=entropy_student"))
    page.locator("#movement-probes tr[data-key]").nth(1).click()
    expect(page).to_have_url(re.compile("probe=1"))
    whole_figures(page)
    page.locator("#movement-moved tr[data-key]").first.click()
    page.locator(SHOWS["answers"]).wait_for()
    expect(page).to_have_url(re.compile("tab=answers.*probe=1"))
    expect(page.locator("#answers-source").get_by_label("probes")).to_be_checked()
    open_tab(page, "movement")
    whole_figures(page)


def test_compare_other_example_and_layout_show_both_answers(visit) -> None:
    page = visit("run=dopd&with=opd", "compare")
    expect(page.locator("#compare-views .wb-tokens")).to_have_count(2)
    expect(page.locator("#compare-aligned .wbu-token").first).to_be_visible()
    page.locator("#compare-examples tr[data-key]").nth(1).click()
    expect(page).to_have_url(re.compile("with=opd.*example="))
    page.locator("#compare-layout").get_by_text("side by side").click()
    expect(page.locator("#compare-views .wbu-sides")).to_be_visible()
    expect(page).to_have_url(re.compile("layout=beside"))


class Proxy:
    """Forwards requests below a path without the path, as a proxy does; answers 404 to all others."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(f"{self.prefix}/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            path = scope.get("path", "").removeprefix(self.prefix)
            await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


@pytest.fixture
def behind_a_proxy(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the page behind a proxy that serves it under a path."""
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/lab/workbench")
    app = serve(runs, configs=runs, port=free_port())
    port = free_port()
    proxy = uvicorn.Server(
        uvicorn.Config(Proxy(app.app, "/lab/workbench"), port=port, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=proxy.run)
    thread.start()
    while not proxy.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/lab/workbench/"
    proxy.should_exit = True
    app.close()
    thread.join()


def test_figures_behind_proxy_path_keep_references(behind_a_proxy: str, visitor: BrowserContext) -> None:
    watched = Watched(visitor, behind_a_proxy.removesuffix("/"))
    page, missing = watched.page, []
    page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    watched.load("run=dopd&tab=movement")
    page.locator(SHOWS["movement"]).first.wait_for()
    page.locator("#movement-value").get_by_text("capability gap").click()
    expect(page).to_have_url(re.compile(r"/lab/workbench/\?.*color=capability_gap"))
    whole_figures(page)
    open_tab(page, "training")  # its charts import Plotly by an address of their own
    whole_figures(page)
    assert [url for url in missing if "/lab/workbench/" in url] == []
    watched.close()


LONG_QUESTION = "\n".join(f"line {number}" for number in range(1, 13))


@pytest.fixture(scope="module")
def long_run(runs: Path, models: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run of long answers to a question of twelve lines, with one learning rate throughout."""
    image = tmp_path_factory.mktemp("data") / "image.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(image)
    rows = [{"id": f"q{row}", "question": LONG_QUESTION, "images": [str(image)], "answer": "7"} for row in range(4)]
    data = image.with_name("long.jsonl")
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    values = {"sampling__max_completion_length": 240, "training__steps": 2, "training__schedule": "constant"}
    settings = {
        "training__batch_size": 2,
        "evaluation__max_examples": 2,
        "method__privilege": "answer",
        "trace__probes": 2,
        "trace__probe_every": 1,
        "evaluation__contexts": ["plain"],
    }
    train(run_config(models, runs, name="long", data={"train": str(data), "eval": str(data)}, **values, **settings))
    yield "long"
    shutil.rmtree(runs / "long")


def range_of(page: Page, title: str, axis: str = "yaxis") -> list[float]:
    """The range of an axis of the figure of this title."""
    return page.evaluate(
        """([title, axis]) => [...document.querySelectorAll('.js-plotly-plot')]
            .map(plot => plot._fullLayout || {})
            .find(layout => (layout.meta?.title || layout.title?.text || '').includes(title))[axis].range""",
        [title, axis],
    )


def test_long_run_answers_are_clipped_and_constant_rate_starts_at_zero(visit, long_run: str) -> None:
    page = visit(f"run={long_run}", "training")
    page.locator(".wbf-card[data-name=learning-rate]").scroll_into_view_if_needed()
    page.locator(".wbf-card[data-name=learning-rate] .main-svg").first.wait_for()
    low, high = range_of(page, "Learning rate")
    assert low == 0 and 1e-3 <= high < 2e-3, "a rate of 1e-3, drawn from zero"
    text = page.locator("#training-answers .wbu-clip.wbu-cut").first
    cut = text.bounding_box()["height"]
    assert cut < 120
    text.click()
    expect(text).to_have_class(re.compile("wbu-whole"))
    assert text.bounding_box()["height"] > 1.5 * cut
    text.press("Enter")
    expect(text).not_to_have_class(re.compile("wbu-whole"))
    for tab, rows in (("movement", "#movement-probes tr[data-key]"), ("answers", "#answers-list tr[data-key]")):
        open_tab(page, tab)
        row = page.locator(rows).first
        assert row.bounding_box()["height"] < 130, tab
        question = row.locator(".wbu-clip", has_text="line 1").first
        assert question.evaluate("one => getComputedStyle(one).whiteSpace") == "pre-wrap"
        assert question.text_content() == LONG_QUESTION
    # colors and legend stay in sight while a long answer is scrolled
    page.locator("#answers-answer .wb-t").nth(150).scroll_into_view_if_needed()
    expect(page.locator("#answers-answer .wb-chips")).to_be_in_viewport()
    expect(page.locator("#answers-answer .wb-legends")).to_be_in_viewport()
    # a heat map of hundreds of tokens fits the page, and its words do not overlap
    open_tab(page, "movement")
    assert page.locator("#movement-map svg").first.bounding_box()["width"] < 1400
    page.locator("#movement-value").get_by_text("capability gap").click()
    ticks = page.locator("#tab-movement .js-plotly-plot:has(.hm) .xtick text")
    ticks.first.wait_for()
    boxes = sorted((box["x"], box["x"] + box["width"]) for box in (element.bounding_box() for element in ticks.all()))
    assert len(boxes) < 40 and all(left[1] <= right[0] for left, right in pairwise(boxes))


def test_wrong_answer_clicked_opens_it_and_its_picture(visit, runs: Path) -> None:
    page = visit("run=dopd", "leakage")
    row = page.locator("#leakage-wrong tr[data-key]").nth(1)
    key = json.loads(row.get_attribute("data-key"))
    record = [record for record in load_records(runs / "dopd") if record.step == key["step"]][key["rollout"]]
    assert (record.step, record.policy, record.reward) == (4, "student", 0)
    row.click()
    expect(page).to_have_url(re.compile(f"tab=answers&step=4&rollout={key['rollout']}&evaluation=1$"))
    expect(page.locator("#answers-answer .wbu-text")).to_contain_text(record.text)
    expect(page.locator("#answers-answer")).to_contain_text(f"student, given {record.context}")
    page.locator("#answers-answer a", has_text="in Data").click()
    page.locator(SHOWS["data"]).first.wait_for()
    expect(page).to_have_url(re.compile("tab=data"))
    expect(page.locator("#data-list tr[aria-selected='true']")).to_have_attribute(
        "data-key", re.compile(re.escape(record.example_id))
    )
    expect(page.locator("#data-given textarea, #data-given input").first).to_have_value(record.text)


def test_illusion_figures_titles_match_axes_and_colors(visit, runs: Path) -> None:
    drawn = """() => [...document.querySelectorAll('#tab-leakage .js-plotly-plot')].map(one => ({
        title: one._fullLayout.title.text, axis: one._fullLayout.xaxis?.title?.text || '',
        tints: one.data.map(trace => [trace.name, trace.line?.color || trace.marker?.color]),
        bars: one.data[0]?.y }))"""
    for run in ("dopd", "photos"):
        page = visit(f"run={run}", "leakage")
        result = page.evaluate(drawn)
        tints: dict[str, set] = {}
        for figure in result:
            for name, tint in figure["tints"]:
                for visibility in ("visible", "privileged"):
                    if name and name.split()[0] == visibility:
                        tints.setdefault(visibility, set()).add(tint)
        assert all(len(each) == 1 for each in tints.values()) and (tints or run != "dopd")
        for figure in result:
            group = re.search(r"Over-confidence on (\w+) questions", figure["title"])
            if group and figure["bars"]:
                assert f"accuracy on {group[1]} questions" in figure["axis"].replace("<br>", " ")
                assert {"student, plain (step 0)", "student, plain (step 4)"} <= set(figure["bars"]), "before and after"
