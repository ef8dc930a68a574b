"""Charts of Training in a real browser: choices, legend, crosshair, downloads, and a click on a step."""

import csv
import io
import re
from pathlib import Path

from page_checks import SHOWS, open_tab, settle, whole_figures
from playwright.sync_api import Locator, Page, expect

from workbench.analysis import movement
from workbench.runs.folder import RunFolder


def card(page: Page, name: str) -> Locator:
    """The card of a chart, scrolled into view and drawn."""
    result = page.locator(f".wbf-card[data-name='{name}']")
    result.scroll_into_view_if_needed()
    result.locator(".main-svg").first.wait_for()
    settle(page)  # a chart that is drawn anew moves those below it
    return result


def hover(page: Page, chart: Locator, fraction: float) -> None:
    """Move the mouse over a chart, at a fraction of its width, until the chart responds."""
    box = chart.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + fraction * box["width"], box["y"] + box["height"] / 2, steps=2)
    chart.locator(".hoverlayer > *").first.wait_for(state="attached")


def saved(page: Page, button: Locator) -> Path:
    with page.expect_download() as download:
        button.click()
    return download.value.path()


def test_charts_choices_are_kept_in_address_and_drawn(visit) -> None:
    page = visit("run=dopd&with=opd&metrics=loss,entropy&smooth=0.5&log=1&x=tokens", "training")
    loss = card(page, "loss")
    expect(page.locator(".wbf-runs .wbf-entry")).to_have_count(2)
    axes = loss.locator(".wbf-plot").evaluate("plot => [plot.layout.yaxis.type, plot.layout.xaxis.title.text]")
    assert axes == ["log", "answer tokens trained on"]
    expect(page.locator("#training-smooth input[type=number]")).to_have_value("0.5")
    page.locator("#training-metrics input").click()
    page.keyboard.type("grad norm")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("metrics=loss%2Centropy%2Cgrad_norm"))
    card(page, "grad_norm")
    page.reload()
    expect(page.locator(".wbf-card h3")).to_have_text(["entropy", "loss", "grad norm"])
    whole_figures(page, least=0)


def test_charts_legend_hides_run_and_crosshair_is_shared(visit) -> None:
    page = visit("run=dopd&with=opd&metrics=loss,grad_norm", "training")
    loss, other = card(page, "loss"), card(page, "grad_norm")
    entry = page.locator(".wbf-runs .wbf-entry").nth(1)
    shown_curves = "plot => plot.data.filter(trace => trace.meta.curve && trace.visible !== false).length"
    assert loss.locator(".wbf-plot").evaluate(shown_curves) == 2
    entry.click()
    expect(page.locator(".wbf-runs .wbf-entry").nth(1)).to_have_attribute("aria-pressed", "false")
    page.wait_for_function(
        "() => document.querySelector('[data-name=loss] .wbf-plot').data.some(trace => trace.visible === false)"
    )
    assert loss.locator(".wbf-plot").evaluate(shown_curves) == 1
    hover(page, loss, 0.5)
    expect(other.locator(".wbf-cross")).to_be_visible()


def test_charts_downloads_hold_recorded_numbers(visit, runs: Path) -> None:
    page = visit("run=dopd&metrics=loss", "training")
    loss = card(page, "loss")
    rows = list(csv.DictReader(saved(page, loss.get_by_role("button", name="CSV")).read_text().splitlines()))
    expected = [line["loss"] for line in RunFolder(runs / "dopd").metrics("train")]
    assert [float(row["value"]) for row in rows] == expected and [row["step"] for row in rows] == ["1", "2", "3", "4"]
    whole = list(csv.DictReader(saved(page, page.locator("#training-csv")).read_text().splitlines()))
    assert [float(row["value"]) for row in whole] == expected
    image = saved(page, loss.get_by_role("button", name="SVG")).read_text()
    assert image.startswith("<svg") and "url(http" not in image and "loss" in image
    assert saved(page, loss.get_by_role("button", name="PNG")).read_bytes()[:4] == b"\x89PNG"
    open_tab(page, "movement")
    save = page.locator("#movement-probes button[data-csv]")
    text = saved(page, save).read_bytes().decode()  # answers of random weights have any sign, line feeds too
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    listed = movement.probes(runs / "dopd").rows
    assert head[:2] == ["probe", "domain"] and [row[1] for row in rows] == [row["domain"] for row in listed]
    assert [row[head.index("tokens")] for row in rows] == [str(row["tokens"]) for row in listed]


def test_accuracy_csv_names_each_curve_of_each_panel(visit, runs: Path) -> None:
    page = visit("run=dopd", "training")
    text = saved(page, card(page, "accuracy-and-confidence").get_by_role("button", name="CSV")).read_text()
    rows = {(row["curve"], row["step"]): row["accuracy, confidence"] for row in csv.DictReader(text.splitlines())}
    for line in RunFolder(runs / "dopd").metrics("eval"):
        for key in ("accuracy", "confidence"):
            value = rows[f"student, plain: {key}, visible questions", str(line["step"])]
            assert float(value) == line[f"{key}/student/plain/visible"]
    assert len(rows) == len(text.splitlines()) - 1, "no two rows of a curve share a step"


def test_charts_click_on_step_opens_its_answers(visit) -> None:
    page = visit("run=dopd&metrics=loss", "training")
    loss = card(page, "loss")
    hover(page, loss, 0.64)  # step 3 of 1 to 4
    page.mouse.down()
    page.mouse.up()
    page.locator(SHOWS["answers"]).first.wait_for()
    expect(page).to_have_url(re.compile("tab=answers.*at_step=3|at_step=3.*tab=answers"))
    page.go_back()
    expect(page).to_have_url(re.compile("tab=training"))
