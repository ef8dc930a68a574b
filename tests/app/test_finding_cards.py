"""The finding cards of Illusion: the numbers of the summary, and the key that records what is missing."""

import re
from html import unescape
from pathlib import Path

import pytest
from known_answers import STUDENT, TEACHER, rows
from playwright.sync_api import expect

from workbench.app.context import AppContext
from workbench.app.finding_cards import findings_html
from workbench.app.tabs import leakage
from workbench.evals.findings import find, sentences
from workbench.evals.records import EvalRecord, save_records
from workbench.runs.folder import RunFolder

CONFIG = "models: {teacher: t}\nmethod: {name: dopd, privilege: crop}\n"
WRONG = rows(0, "teacher", "wrong_crop", "11100001", "visible")


def cards(tmp_path: Path, answered: list[EvalRecord], config: str = CONFIG) -> list[str]:
    """The text of each card."""
    folder = RunFolder.create(tmp_path / "demo", config, seed=0, method="dopd")
    for step in {row.step for row in answered}:
        save_records(folder.path, step, [row for row in answered if row.step == step])
    sections = re.findall(r"<section>(.*?)</section>", findings_html(folder.path), flags=re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", section)).split()) for section in sections]


def test_cards_known_records_give_numbers_by_hand(tmp_path: Path) -> None:
    """The numbers are derived in tests/evals/test_findings.py."""
    pay, gained, claimed = cards(tmp_path, STUDENT + TEACHER + WRONG)
    assert pay.startswith(
        "Does the evidence help? Yes +50.0 points [+13.0, +87.0] the teacher, with and without crop: 8 questions"
    )
    assert "image alone 37.5% [13.7, 69.4]" in pay and "with crop 87.5%" in pay and "with wrong_crop 50.0%" in pay
    assert "evaluation" not in pay, "nothing is missing"
    assert gained.startswith(
        "Accuracy gain +37.5 points [−14.1, +89.1] accuracy of the student on 8 questions that the image answers"
    )
    assert "step 0 25.0% step 9 62.5%" in gained
    assert claimed.startswith("Over-confidence +65.0 points +5.0 points before, change +60.0 points")
    assert "confidence, step 0 30.0% accuracy, step 0 25.0% confidence, step 9 90.0% accuracy, step 9 25.0%" in claimed


def test_cards_and_summary_agree(tmp_path: Path) -> None:
    _, gained, claimed = cards(tmp_path, STUDENT + TEACHER)
    findings = find(STUDENT + TEACHER, "crop")
    first, second, _ = sentences(findings, run="a", config="b", privilege="crop")
    assert "+37.5 points" in first and "+37.5 points" in gained
    assert "Over-confidence: +65 points" in second and "+65.0 points" in claimed


@pytest.mark.parametrize(
    ("answered", "config", "card", "sentence"),
    [
        (STUDENT + TEACHER, CONFIG, 0, "Add wrong_crop to evaluation.contexts"),
        (STUDENT, CONFIG, 0, "Add crop to evaluation.contexts"),
        (STUDENT, CONFIG, 0, "evaluation.teacher=true"),
        (STUDENT, CONFIG.replace("crop", "hint"), 0, "Add hint to evaluation.contexts"),
        (STUDENT + TEACHER, CONFIG.replace("crop", "hint"), 0, "The evidence of this run, hint, was not evaluated"),
        (STUDENT[:12] + TEACHER, CONFIG, 1, "Only step 0 is evaluated"),
        (TEACHER, CONFIG, 1, "Add plain to evaluation.contexts"),
        (
            rows(0, "student", "plain", "1", None) + rows(9, "student", "plain", "1", None),
            CONFIG,
            1,
            "evaluation.max_examples",
        ),
        (rows(0, "student", "plain", "10", None) + rows(9, "student", "plain", "11", None), CONFIG, 2, "no marks"),
    ],
)
def test_cards_missing_record_names_config_key(
    tmp_path: Path, answered: list[EvalRecord], config: str, card: int, sentence: str
) -> None:
    assert sentence in cards(tmp_path, answered, config)[card]


def test_cards_useless_evidence_answers_no(tmp_path: Path) -> None:
    useless = rows(0, "teacher", "crop", "11100000", "visible")
    assert cards(tmp_path, STUDENT + TEACHER[:8] + useless)[0].startswith("Does the evidence help? No 0.0 points")


def test_headline_run_without_evaluations_names_config_key(context: AppContext) -> None:
    head = leakage.draw(context, "photos", "light", "")[0]
    assert "data.eval=SOURCE" in head and "wbu-findings" not in head


def test_cards_on_desk_and_phone_fit_page(visit) -> None:
    """Three cards side by side on a desk, one below the other on a phone, none wider than the page."""
    page = visit("run=dopd", "leakage")
    sections = page.locator("#leakage-headline .wbu-findings section")
    expect(sections).to_have_count(3)
    expect(sections.first).to_contain_text("Does the evidence help?")
    assert len({round(card.bounding_box()["y"]) for card in sections.all()}) == 1
    track = sections.first.locator("dd:has(> i)").first
    filled = track.locator("i").bounding_box()["width"] / track.bounding_box()["width"]
    written = sections.first.locator("dl > div").first.locator("dd").last.inner_text()
    assert filled == pytest.approx(float(written.split("%")[0]) / 100, abs=0.02)
    page.set_viewport_size({"width": 390, "height": 800})
    boxes = [card.bounding_box() for card in [*sections.all(), *sections.locator("dd").all()]]
    assert len({round(box["y"]) for box in boxes[:3]}) == 3 and all(
        box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes
    )
