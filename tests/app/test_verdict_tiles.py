"""The tiles of Leakage: the numbers of the verdicts, and how they lie on the page."""

from pathlib import Path

import pytest
from known_answers import STUDENT, TEACHER
from playwright.sync_api import expect

from workbench.analysis.leakage import verdicts
from workbench.app.context import AppContext
from workbench.app.tabs import leakage
from workbench.app.verdict_tiles import tiles_html
from workbench.evals.findings import find, sentences
from workbench.evals.records import save_records
from workbench.runs.folder import RunFolder

CONFIG = "models: {teacher: t}\nmethod: {name: dopd, privilege: crop}\n"


def test_tiles_and_summary_agree(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "<b>demo", CONFIG, seed=0, method="dopd")
    for step in (0, 9):
        save_records(folder.path, step, [row for row in STUDENT + TEACHER if row.step == step])
    html = tiles_html(verdicts(folder.path), "<b>demo")
    first, second, _ = sentences(find(STUDENT + TEACHER, "crop"), run="a", config="b", privilege="crop")
    assert "+37.5 points" in first and "+37.5 points" in html
    assert "a change of +60.0" in second and "+60.0 points" in html
    assert html.count("<section>") == 4 and "<b>demo" not in html
    assert "not shown" in html and "not recorded" in html, "an open interval, and no traces"


def test_tiles_run_without_evaluations_name_config_key(context: AppContext) -> None:
    head = leakage.draw(context, "photos", "light", {}, "")[0]
    assert "data.eval=SOURCE" in head and "wbu-findings" in head


def test_tiles_on_desk_and_phone_fit_page(visit) -> None:
    """Four tiles in two rows or one on a desk, one below the other on a phone, none wider than the page."""
    page = visit("run=dopd", "leakage")
    sections = page.locator("#leakage-headline .wbu-findings section")
    expect(sections).to_have_count(4)
    expect(sections.first).to_contain_text("Does the evidence help?")
    assert len({round(tile.bounding_box()["y"]) for tile in sections.all()}) <= 2
    track = sections.first.locator("dd:has(> i)").first
    filled = track.locator("i").bounding_box()["width"] / track.bounding_box()["width"]
    written = sections.first.locator("dl > div").first.locator("dd").last.inner_text()
    assert filled == pytest.approx(float(written.split("%")[0]) / 100, abs=0.02)
    page.set_viewport_size({"width": 390, "height": 800})
    boxes = [tile.bounding_box() for tile in [*sections.all(), *sections.locator("dd").all()]]
    assert len({round(box["y"]) for box in boxes[:4]}) == 4 and all(
        box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes
    )
