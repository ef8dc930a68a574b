"""The tab of what was learned and what was only imitated."""

from html import unescape
from pathlib import Path

import pytest

from workbench.analysis import illusion as measured
from workbench.app.context import AppContext
from workbench.app.tabs import leakage
from workbench.render.text import signed

HEAD, ACCURACY, SHARE, ERRORS, PART, WORST, WHO, RELIABILITY, OVER, ENTROPY, SEPARATION, TABLE = range(12)


def test_leakage_part_of_address_limits_tokens(context: AppContext, runs: Path) -> None:
    drawn = leakage.draw(context, "photos", "light", {"part": "last"}, "")
    assert drawn[PART] == "last" and "(steps 1 to 2)" in drawn[WORST], "too short for quarters: all its steps"
    assert leakage.draw(context, "photos", "light", {"part": "no such"}, "")[PART] == ""


def test_leakage_errors_have_answers_before_training(context: AppContext, runs: Path) -> None:
    drawn = leakage.draw(context, "dopd", "light", {}, "")[ERRORS]
    assert "Confident errors at step 4" in drawn and "answer before training" in drawn
    assert "step 0:" in drawn and "step 4:" in drawn


def test_leakage_reliability_follows_policy_and_context(context: AppContext) -> None:
    drawn = leakage.draw(context, "dopd", "dark", {}, "student, crop")
    assert drawn[WHO].value == "student, crop" and "student, crop" in drawn[RELIABILITY].layout.title.text
    assert leakage.draw(context, "dopd", "dark", {}, "nobody, plain")[WHO].value in {
        value for _, value in drawn[WHO].choices
    }


def test_overconfidence_uses_first_and_newest_evaluation(context: AppContext) -> None:
    accuracy = measured.accuracy(context.run_dir("dopd"))
    result, group = leakage.overconfidence(accuracy)
    rows = result.rows
    assert group in result.units["overconfidence"] and any(row["policy"] == "student, plain (step 0)" for row in rows)
    assert len(rows) == len({row["policy"] for row in rows})
    assert any(row["policy"] == "student, plain (step 4)" for row in rows) and any(
        "step 0" in row["policy"] for row in rows
    ), "the teacher"


@pytest.mark.parametrize("run", ["opd", "begun"])
def test_leakage_unknown_visibility_shows_remedy(context: AppContext, run: str) -> None:
    drawn = leakage.draw(context, run, "light", {}, "")
    assert "wbu-empty" in drawn[WORST] and drawn[SHARE].layout.annotations[0].text


def test_leakage_run_without_evaluation_names_config_key(context: AppContext) -> None:
    output = leakage.draw(context, "photos", "light", {}, "")[ACCURACY].layout.annotations[0].text.replace("<br>", " ")
    assert "its data.eval is null" in output and "data.eval=SOURCE" in output


def test_leakage_confidence_explained_and_gap_in_points(context: AppContext) -> None:
    drawn = leakage.draw(context, "dopd", "light", {}, "")
    assert measured.CONFIDENCE_NOTE in unescape(drawn[HEAD]) and "a lower bound" in measured.CONFIDENCE_NOTE
    row = next(row for row in measured.accuracy(context.run_dir("dopd")).rows if row["step"] == 4)
    assert signed(100 * row["overconfidence"], 1) in drawn[TABLE]
    assert drawn[OVER].layout.xaxis.title.text.startswith("points: confidence minus accuracy")
